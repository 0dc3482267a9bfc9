"""The units of deploy/systemd and the configurations installed with them, as far as no host has to run them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kingtask import __version__
from kingtask.config import BrokerConfig, WorkerConfig, load_broker, load_worker
from kingtask.endpoint import SOCKET
from kingtask.store.redis.address import parse_address

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEMD = DEPLOY / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("kingtask*.*") if path.suffix in (".service", ".target"))
EXPOSURE = {"kingtask-broker.service": 2.0, "kingtask-worker.service": 4.0, "kingtask-worker@.service": 4.0}
"""The most that systemd-analyze security may say."""

analyzes = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Their directory, with a program that is there: `verify` wants it to be."""
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(re.sub(r"/opt/kingtask/venv/bin/kingtask-\w+", "/bin/true", text))
    return tmp_path


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_there_are_the_units_that_the_page_names():
    assert UNITS == [
        "kingtask-broker.service",
        "kingtask-worker.service",
        "kingtask-worker@.service",
        "kingtask.target",
    ]


@analyzes
def test_systemd_accepts_them(units: Path):
    named = [units / name.replace("@", "@example") for name in UNITS]
    (units / "kingtask-worker@example.service").symlink_to(units / "kingtask-worker@.service")
    told = analyze("verify", "--man=no", *named)
    assert not [line for line in told.splitlines() if "kingtask" in line]  # it may complain of this host's units


@analyzes
@pytest.mark.parametrize("example", sorted(SYSTEMD.glob("*.d/*.example")), ids=lambda path: path.name)
def test_systemd_accepts_the_drop_ins(units: Path, example: Path):
    place = units / example.parent.name
    place.mkdir()
    (place / example.name.removesuffix(".example")).write_text(example.read_text())
    told = analyze("verify", "--man=no", units / example.parent.name.removesuffix(".d"))
    assert not [line for line in told.splitlines() if "kingtask" in line]


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_memory_processes_and_core_dumps_are_bounded(name: str):
    text = (SYSTEMD / name).read_text()
    for setting in ("LimitCORE=0", r"MemoryMax=\d+[G%]", r"TasksMax=\d+", r"LimitNOFILE=\d+"):
        assert re.search(rf"^{setting}$", text, re.MULTILINE), setting


@analyzes
@pytest.mark.parametrize("name", EXPOSURE)
def test_it_is_hardened(units: Path, name: str):
    """Of the template an instance."""
    path = units / name.replace("@", "@example")
    if not path.exists():
        shutil.copy(units / name, path)
    told = analyze("security", "--offline=yes", "--no-pager", path)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert match is not None, told
    assert float(match[1]) <= EXPOSURE[name]
    page = re.search(r"reports ([0-9.]+) and ([0-9.]+) \(systemd (\d+)\)", (DEPLOY / "README.md").read_text())
    assert page is not None
    if analyze("--version").startswith(f"systemd {page[3]} "):
        assert match[1] == page[1 + ("worker" in name)], "the page says so"


def test_the_template_is_the_unit_for_another_configuration():
    unit, template = ((SYSTEMD / f"kingtask-worker{at}.service").read_text() for at in ("", "@"))
    differing = set(template.splitlines()) ^ set(unit.splitlines())
    assert {line.partition("=")[0] for line in differing if not line.startswith("#")} == {"Description", "ExecStart"}
    assert "ExecStart=/opt/kingtask/venv/bin/kingtask-worker -c /etc/kingtask/worker-%i.yaml\n" in template
    assert "ExecStart=/opt/kingtask/venv/bin/kingtask-worker\n" in unit


@pytest.mark.parametrize("name", [name for name in UNITS if "worker" in name])
def test_the_worker_has_time_to_drain_before_systemd_kills_it(name: str):
    match = re.search(r"^TimeoutStopSec=(\d+)$", (SYSTEMD / name).read_text(), re.MULTILINE)
    config = WorkerConfig(bin_path=("/x",))
    assert match is not None
    assert int(match[1]) > config.drain_timeout + config.kill_grace


def with_password(daemon: str, place: Path) -> str:
    """The installed configuration, with a password file that is there."""
    password = place / "redis.password"
    password.write_text("s3cret")
    password.chmod(0o600)
    text = (DEPLOY / f"{daemon}.yaml").read_text()
    credential = f"/run/credentials/kingtask-{daemon}.service/secret_redis.password"
    assert text.count(f"\nredis_password_file: {credential}\n") == 1
    return text.replace(credential, str(password))


def installed_broker(place: Path) -> BrokerConfig:
    path = place / "broker.yaml"
    path.write_text(with_password("broker", place))
    return load_broker(path)


def test_the_installed_broker_listens_where_clients_look(tmp_path: Path):
    config = installed_broker(tmp_path)
    assert config.endpoints == [f"ipc://{SOCKET}"]
    assert config.wakeup_endpoints == [f"ipc://{SOCKET}.wakeup"]


def test_the_installed_worker_is_woken_by_the_installed_broker(tmp_path: Path):
    text = with_password("worker", tmp_path)
    match = re.search(r"^concurrency: (\d+)\nrun_as: \{user: \[(.+)\]\}$", text, re.MULTILINE)
    assert match is not None
    users = match[2].split(", ")
    assert len(users) == int(match[1]) > 1, "one for each slot"
    created, homes = ((SYSTEMD / f"kingtask.{kind}").read_text() for kind in ("sysusers", "tmpfiles"))
    for user in users:
        home = re.search(rf"^u {user} - \".+\" (/\S+)$", created, re.MULTILINE)
        assert home is not None
        assert re.search(rf"^d {home[1]} +0700 {user} +{user}$", homes, re.MULTILINE)
    text = text.replace(match[0], "concurrency: 1\nrun_as: {user: nobody}")  # whom every host has
    for place in ("/usr/local/lib/kingtask", "/var/lib/kingtask/tasks"):
        (tmp_path / place[1:]).mkdir(parents=True)
        assert text.count(f" {place}\n") == 1
        text = text.replace(f" {place}\n", f" {tmp_path}{place}\n")
    path = tmp_path / "worker.yaml"
    path.write_text(text)
    assert load_worker(path).endpoints == installed_broker(tmp_path).endpoints
    for config in (load_worker(path), installed_broker(tmp_path)):
        redis = parse_address(config.redis)
        assert f"\nunixsocket {redis.path}\n" in (DEPLOY / "redis" / "redis.conf").read_text()
        assert f"\nuser {redis.user} on " in (DEPLOY / "redis" / "kingtask.acl").read_text()
    made = (SYSTEMD / "kingtask.tmpfiles").read_text()
    assert f"d {Path(SOCKET).parent} " in re.sub(" +", " ", made)


def test_the_page_installs_this_release():
    page = (DEPLOY / "README.md").read_text()
    assert page.count(f"dist/kingtask-{__version__}-py3-none-any.whl") == 1
    assert page.count(f"ln -sfn /opt/kingtask/{__version__} /opt/kingtask/venv") == 1
