"""What a daemon cannot start with: one line that names file, line and key and what to do, status 3, nothing begun."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kingtask import Client
from kingtask.config import BrokerConfig, WorkerConfig
from kingtask.config.settings import MAX_OUTPUT_BYTES
from tests.cli.tree import until
from tests.processes import PATIENCE_S
from tests.servers import RedisServer, die_with_parent, free_port

Done = subprocess.CompletedProcess[str]


class Place:
    """A directory with configurations that would do, on a real server."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.directory = directory
        (directory / "bin").mkdir(mode=0o755)
        redis = {"redis": server.url, "namespace": f"start-{os.urandom(4).hex()}"}
        port = free_port()
        self.settings: dict[str, dict[str, Any]] = {
            "broker": {**redis, "addr": f"127.0.0.1:{port}"},
            "worker": {**redis, "broker": f"127.0.0.1:{port}", "bin_path": str(directory / "bin")},
        }

    def write(self, daemon: str, changes: dict[str, Any]) -> Path:
        path = self.directory / f"{daemon}.yaml"
        path.write_text(yaml.safe_dump({**self.settings[daemon], **changes}))
        return path

    def line(self, daemon: str, key: str) -> int:
        lines = (self.directory / f"{daemon}.yaml").read_text().splitlines()
        return next(number for number, line in enumerate(lines, 1) if line.startswith(f"{key}:"))


@pytest.fixture
def place(tmp_path: Path, server: RedisServer) -> Place:
    return Place(tmp_path, server)


def command(daemon: str, path: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "kingtask.cli.daemons", daemon, "-c", str(path), *options]


def refused(words: list[str], daemon: str, status: int = 3) -> str:
    """What it says last, on its way out."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"kingtask-{daemon}: ")
    return last.removeprefix(f"kingtask-{daemon}: ")


def describe_error(place: Place, daemon: str, key: str, value: Any, **more: Any) -> str:
    """The complaint about a key, behind its place in the file."""
    path = place.write(daemon, {key: value, **more})
    text = refused(command(daemon, path), daemon)
    where = f"{path}:{place.line(daemon, key)}: "
    assert text.startswith(where)
    return text.removeprefix(where)


# ── the file (B2.61 to B2.64, B2.69) ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_a_file_that_is_none(place: Place, daemon: str):
    for path, part in (
        (place.directory / "none.yaml", "cannot be read: No such file"),
        (place.directory, "is a directory; name the YAML file"),
        (Path("/dev/zero"), "is not a regular file"),
    ):
        assert refused(command(daemon, path), daemon).startswith(f"{path}: {part}")
    large = place.directory / "large.yaml"
    with large.open("wb") as file:
        file.truncate(2**30)
    assert "is longer than 1,048,576 bytes" in refused(command(daemon, large), daemon)
    large.unlink()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become nobody")
def test_a_file_that_this_user_may_not_read(place: Place):
    """Root may read everything, unless it gives that right away."""
    path = place.write("broker", {})
    path.chmod(0)
    os.chown(path, 1, 1)
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]
    assert "cannot be read: Permission denied" in refused([*words, *command("broker", path)], "broker")


def test_nothing_in_a_file_is_executed(place: Place):
    mark = place.directory / "made"
    path = place.directory / "broker.yaml"
    path.write_text(f"addr: !!python/object/apply:os.system ['touch {mark}']\n")
    assert f"{path}:1: could not determine a constructor" in refused(command("broker", path), "broker")
    assert not mark.exists()


NUMBERS = [
    (daemon, field.name)
    for daemon, kind in (("broker", BrokerConfig), ("worker", WorkerConfig))
    for field in msgspec.structs.fields(kind)
    if isinstance(msgspec.inspect.type_info(field.type), msgspec.inspect.IntType | msgspec.inspect.FloatType)
]


@pytest.mark.parametrize(("daemon", "key"), NUMBERS, ids=" ".join)
def test_every_number_has_a_range_and_tells_it(place: Place, daemon: str, key: str):
    from kingtask.config import load_broker, load_worker
    from kingtask.errors import ConfigurationError

    load = load_broker if daemon == "broker" else load_worker
    for value in (-1, -0.5, 2**63, 10**400, 1e308, float("nan"), float("inf"), True, "5 s", "", [5], {"s": 5}):
        path = place.write(daemon, {key: value})
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        start = f"{path}:{place.line(daemon, key)}: {key}: expected "
        assert str(caught.value).startswith(start)
        assert re.search(r" (from|of at least) [-\d.,]+( to [\d.,]+)?, got ", str(caught.value))


def test_numbers_are_among_the_keys():
    keys = {key for _, key in NUMBERS}
    assert {"lease", "max_pending", "period", "concurrency", "max_output_bytes", "ack_timeout"} <= keys
    assert MAX_OUTPUT_BYTES == 1_048_576


# ── addresses (B2.65) ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_address_of_another_host(place: Place):
    text = describe_error(place, "broker", "addr", "192.0.2.1:9595", insecure=True)  # RFC 5737: nobody has it
    assert text == "addr: cannot listen on tcp://192.0.2.1:9595: this host has no such address"


def test_a_port_that_is_taken_and_so_for_wakeups(place: Place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "it is in use; is another broker running?" in describe_error(
            place, "broker", "addr", f"127.0.0.1:{port}"
        )
        assert "it is in use; is another broker running?" in describe_error(
            place, "broker", "wakeup", f"127.0.0.1:{port}"
        )


def test_a_file_where_the_socket_should_be_is_left_alone(place: Place):
    precious = place.directory / "precious"
    precious.write_text("data")
    assert "the file exists and is no socket; choose another path" in describe_error(
        place, "broker", "addr", f"ipc://{precious}"
    )
    assert "the file exists and is no socket; choose another path" in describe_error(
        place, "broker", "wakeup", f"ipc://{precious}"
    )
    assert precious.read_text() == "data"
    assert "the file exists and is no socket" in describe_error(place, "broker", "addr", f"ipc://{place.directory}/bin")
    assert "directory does not exist; make it" in describe_error(
        place, "broker", "addr", f"ipc://{place.directory}/no/socket"
    )


@pytest.fixture
def running(place: Place) -> Iterator[tuple[Place, subprocess.Popen[bytes]]]:
    """A broker on a unix socket."""
    path = place.write("broker", {"addr": f"ipc://{place.directory}/sock"})
    with subprocess.Popen(
        command("broker", path),
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it does
    ) as process:
        try:
            assert ready(place)
            yield place, process
        finally:
            process.kill()


def ready(place: Place) -> bool:
    with Client(f"ipc://{place.directory}/sock", timeout=PATIENCE_S) as client:
        until(lambda: client.ping()["ready"], "the broker is ready")
        return True


def test_the_socket_of_a_broker_that_runs_is_not_taken_over(running: tuple[Place, subprocess.Popen[bytes]]):
    place, process = running
    text = refused(command("broker", place.directory / "broker.yaml"), "broker")
    assert "it is in use; is another broker running?" in text
    assert ready(place)
    process.kill()
    process.wait()
    assert (place.directory / "sock").exists(), "left behind"
    with subprocess.Popen(
        command("broker", place.directory / "broker.yaml"),
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it does
    ) as again:
        assert ready(place)
        again.terminate()
        assert again.wait(PATIENCE_S) == 0


# ── Redis (B2.66) ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_a_database_that_the_server_has_not(place: Place, server: RedisServer, daemon: str):
    text = describe_error(place, daemon, "redis", f"{server.url}?db=99")
    assert text.startswith("redis: the server has no database 99 (ERR DB index is out of range); name another")


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:x", "redis://h:0", "redis://u:hush@h/x"])
def test_an_address_of_redis_that_cannot_be_read(place: Place, url: str):
    text = describe_error(place, "worker", "redis", url)
    assert "expected one of: host:port, host:port/db, redis://" in text
    assert "hush" not in text


def test_what_listens_there_is_no_redis(place: Place):
    """It may become one: the daemon stays, and says what it finds."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        path = place.write("broker", {"redis": f"127.0.0.1:{other.getsockname()[1]}"})
        with subprocess.Popen(
            command("broker", path),
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it does
        ) as process:
            assert process.stderr is not None
            connection, _ = other.accept()
            other.close()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                line = next(line for line in process.stderr if "redis=unreachable" in line)
            process.terminate()
            process.stderr.read()
        assert "is a Redis server at this address?" in line


# ── directories (B2.67, B2.68) ────────────────────────────────────────────────────────────────────────────────────────


def test_executables_where_nothing_can_be_executed(place: Place):
    directory = place.directory / "bin"
    path = place.write("worker", {})
    words = namespaced(
        f"mount -t tmpfs -o noexec,mode=755 none {directory}; exec {shlex.join(command('worker', path))}"
    )
    line = place.line("worker", "bin_path")
    text = refused(words, "worker")
    assert text.startswith(f"{path}:{line}: bin_path: {directory} is mounted noexec, so nothing in it can be executed")


@pytest.mark.parametrize("value", ["bin", "/nowhere", "/etc/hostname", "OPEN"])
def test_executables_in_no_directory_to_be_trusted(place: Place, value: str):
    (place.directory / "open").mkdir()
    (place.directory / "open").chmod(0o777)
    value = str(place.directory / "open") if value == "OPEN" else value
    assert re.match(
        "bin_path: (expected|cannot use|every user may)", describe_error(place, "worker", "bin_path", value)
    )


@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_a_log_that_cannot_be_written(place: Place, daemon: str):
    (place.directory / "log").mkdir()
    (place.directory / "log" / f"{daemon}.log").mkdir()
    assert "log_path: expected a directory" in describe_error(place, daemon, "log_path", "/nowhere")
    assert "Is a directory" in describe_error(place, daemon, "log_path", str(place.directory / "log"))


@pytest.mark.parametrize("sink", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_a_stderr_that_takes_nothing_stops_nobody(place: Place, daemon: str, sink: str):
    log = place.directory / "log"
    log.mkdir()
    path = place.write(daemon, {"log_path": str(log)})
    script = f"exec {shlex.join(command(daemon, path))} {sink}"
    with subprocess.Popen(["sh", "-c", script], preexec_fn=die_with_parent) as process:  # noqa: PLW1509
        file = log / f"{daemon}.log"
        until(lambda: file.exists() and f"{daemon}=started" in file.read_text(), "it has started")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert f"{daemon}=stopped" in file.read_text()


# ── the environment (B2.74) ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_too_few_open_files(place: Place, daemon: str):
    path = place.write(daemon, {})
    for limit in (10, 63):
        script = f"ulimit -n {limit}; exec {shlex.join(command(daemon, path))}"
        text = refused(["sh", "-c", script], daemon)
        assert f"only {limit} open files are allowed, and at least 64 are needed: raise ulimit -n" in text


def namespaced(script: str) -> list[str]:
    """A command in a mount namespace of its own; skips where there can be none."""
    words = ["unshare", "--mount", "--", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*words, "mount -t tmpfs none /mnt"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    return [*words, script]


def test_without_dev_null_a_worker_does_not_start(place: Place):
    path = place.write("worker", {})
    words = namespaced(f"mount -t tmpfs none /dev; exec {shlex.join(command('worker', path))}")
    assert "the worker cannot start a process here: [Errno 2]" in refused(words, "worker")


def test_without_proc_a_worker_says_what_it_cannot_do(place: Place):
    path = place.write("worker", {})
    words = namespaced(f"mount -t tmpfs none /proc; exec {shlex.join(command('worker', path))}")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent) as process:  # noqa: PLW1509
        assert process.stderr is not None
        assert any("procfs=unavailable" in line and "mount /proc" in line for line in process.stderr)
        process.kill()


# ── the command line of the daemons (B3.76, B3.77, B3.84) ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("daemon", ["broker", "worker"])
@pytest.mark.parametrize(
    ("options", "part"),
    [(["extra"], "unexpected extra argument (extra)"), (["--chek"], "--check"), (["--confg", "x"], "--config")],
)
def test_a_wrong_command_line_is_usage(place: Place, daemon: str, options: list[str], part: str):
    done = subprocess.run(
        command(daemon, place.write(daemon, {}), *options),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr


def test_completion_is_that_of_the_program(place: Place):
    words = command("broker", place.write("broker", {"addr": "nowhere"}), "--check")

    def run(variable: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, variable: "bash_source"}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    script = run("_KINGTASK_BROKER_COMPLETE")
    assert (script.returncode, "complete" in script.stdout) == (0, True)
    assert run("_KINGTASK_COMPLETE").returncode == 3  # another program's: the check of the configuration runs


@pytest.mark.parametrize("option", ["--check", "--help", "--version"])
def test_an_output_that_cannot_be_written(place: Place, option: str):
    words = shlex.join(command("broker", place.write("broker", {}), option))
    done = subprocess.run(["sh", "-c", f"{words} >/dev/full"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (74, False)
    assert "No space left" in done.stderr
    closed = subprocess.run(["sh", "-c", f"{words} >&- 2>&- <&-"], check=False)
    assert closed.returncode == 0
