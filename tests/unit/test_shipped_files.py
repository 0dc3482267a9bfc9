"""What is shipped to be copied: the commented configurations and redis.conf."""

from __future__ import annotations

import re
import subprocess
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import redis
import yaml

from kingtask.config import BrokerConfig, WorkerConfig, load_broker, load_worker
from tests.servers import binary, die_with_parent
from tests.unit.page import describe

TOP = Path(__file__).parents[2]
KINDS: dict[str, type[BrokerConfig | WorkerConfig]] = {"broker": BrokerConfig, "worker": WorkerConfig}
KEYS = [(daemon, field) for daemon, kind in KINDS.items() for field in msgspec.structs.fields(kind)]


def paragraphs(daemon: str) -> dict[str, tuple[str, str]]:
    """Each key of a shipped file: the comment above it, and its value as text."""
    found: dict[str, tuple[str, str]] = {}
    comment: list[str] = []
    for line in (TOP / "etc" / f"{daemon}.yaml").read_text().splitlines():
        match = re.fullmatch(r"#?([a-z_]+): (.+)", line)
        if match:
            assert match[1] not in found, f"{match[1]} stands in {daemon}.yaml twice"
            found[match[1]] = " ".join(comment), match[2]
            comment = []
        elif line.startswith("# "):
            comment.append(line.removeprefix("# "))
        else:
            comment = []
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir(mode=0o755)
    return tmp_path


def with_its_paths(daemon: str, place: Path) -> str:
    text = (TOP / "etc" / f"{daemon}.yaml").read_text()
    return text.replace("bin_path: /usr/local/lib/kingtask", f"bin_path: {place}/bin")


def test_the_brokers_file_says_what_holds_without_it():
    assert load_broker(TOP / "etc" / "broker.yaml") == BrokerConfig()


def test_the_workers_file_says_what_holds_without_it(place: Path):
    path = place / "worker.yaml"
    path.write_text(with_its_paths("worker", place))
    assert load_worker(path) == WorkerConfig(bin_path=(f"{place}/bin",))


@pytest.mark.parametrize("daemon", KINDS)
def test_what_is_shown_as_default_loads_as_such(daemon: str, place: Path):
    """Every key that has a default, with the # before it removed."""
    shown = {field.name for _, field in KEYS if field.default not in (msgspec.NODEFAULT, None)}
    text = re.sub(
        r"^#([a-z_]+)(?=: )",
        lambda m: m[1] if m[1] in shown else m[0],
        with_its_paths(daemon, place),
        flags=re.MULTILINE,
    )
    path = place / f"{daemon}.yaml"
    path.write_text(text)
    if daemon == "broker":
        assert load_broker(path) == BrokerConfig()
    else:
        assert load_worker(path) == WorkerConfig(bin_path=(f"{place}/bin",))


@pytest.mark.parametrize(("daemon", "field"), KEYS, ids=lambda value: getattr(value, "name", value))
def test_every_key_is_explained_with_its_default_and_its_range(daemon: str, field: msgspec.structs.FieldInfo):
    comment, text = paragraphs(daemon)[field.name]
    default = field.default
    if default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        assert "Required." in comment
    else:
        assert "Default: " in comment
    if default not in (msgspec.NODEFAULT, None):
        value = yaml.safe_load(text)
        assert default in ((tuple(value),) if isinstance(value, list) else (value, (value,)))
    _, _, allowed = describe(field.type).partition(" from ")
    assert allowed in comment


@pytest.mark.parametrize("daemon", KINDS)
def test_no_key_is_explained_that_does_not_exist(daemon: str):
    assert set(paragraphs(daemon)) == set(KINDS[daemon].__struct_fields__)


@pytest.mark.parametrize("daemon", KINDS)
def test_what_needs_a_restart_is_listed(daemon: str):
    head, _, _ = (TOP / "etc" / f"{daemon}.yaml").read_text().partition("\n\n")
    _, _, listed = head.replace("\n# ", " ").partition("These take effect with a restart: ")
    assert KINDS[daemon].live < set(KINDS[daemon].__struct_fields__)
    assert listed.rstrip(".").split(", ") == sorted(set(KINDS[daemon].__struct_fields__) - KINDS[daemon].live)


def test_redis_starts_with_our_settings_and_means_them(tmp_path: Path):
    socket, users = tmp_path / "redis.sock", tmp_path / "kingtask.acl"
    shipped = (TOP / "deploy" / "redis" / "kingtask.acl").read_text()
    users.write_text(re.sub(r"#SHA256_OF_THE_[A-Z]+_PASSWORD", f"#{sha256(b's3cret').hexdigest()}", shipped))
    command = [binary(), str(TOP / "deploy" / "redis" / "redis.conf"), "--dir", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--unixsocket", str(socket), "--aclfile", str(users)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it calls
    ) as server:
        assert server.stdout is not None
        started = any("eady to accept connections" in line for line in server.stdout)
        try:
            assert started
            with redis.Redis(
                unix_socket_path=str(socket), username="kingtask-admin", password="s3cret", decode_responses=True
            ) as client:
                settings = client.config_get()
        finally:
            server.kill()
            server.stdout.read()
    expected = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction",
        "hash-max-listpack-value": "1024",
        "save": "",
        "port": "0",
        "unixsocketperm": "770",
        "protected-mode": "yes",
    }
    assert {name: settings[name] for name in expected} == expected
    assert settings["bind"] == "127.0.0.1 -::1"
