"""What real daemons write down: every line an event, nothing secret, and a lost file costs lines only."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from kingtask import Client, KingtaskError, RequestRefused, TaskFailed, protocol, wire
from kingtask.broker.counters import Counters
from kingtask.broker.submit import prepare
from tests.integration.rig import Daemon, StackHarness
from tests.metrics.scrape import ask
from tests.processes import PATIENCE_S, until
from tests.servers import free_port

URL_SECRET = "urlpassword-6b1f"
FILE_SECRET = "filepassword-6b1f"
ENV_SECRET = "environment-6b1f"
STDIN_SECRET = "standardinput-6b1f"
ARG_SECRET = "argument-6b1f"
STDERR_SECRET = "standarderror-6b1f"
PLANTED = "6b1f"


def lines(daemon: Daemon) -> list[dict[str, object]]:
    return [json.loads(line) for line in daemon.text().splitlines()]


def send_raw(endpoint: str, *requests: object) -> None:
    """Requests as no client of ours makes them; returns when each was answered."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        socket.connect(endpoint)
        for request in requests:
            socket.send(request if isinstance(request, bytes) else msgpack.packb(request))
        for _ in requests:
            socket.recv()


def wrong_requests() -> list[object]:
    """With a secret in each place where one belongs, or close to it."""
    task: dict[str, Any] = {"name": "leaky"}
    submit: dict[str, Any] = {"v": 1, "rid": 1, "op": "submit"}
    wrong: list[dict[str, Any]] = [
        {"env": {"TASK_KEY": [ENV_SECRET]}},
        {"env": {"TASK_KEY": f"a\0{ENV_SECRET}"}},
        {"env": {"TASK_KEY": ENV_SECRET.encode()}},
        {"env": ENV_SECRET},
        {"env": [ENV_SECRET]},
        {"env": {"PATH": ENV_SECRET}},
        {"env": {"1": ENV_SECRET}},
        {"stdin": STDIN_SECRET},
        {"stdin": [STDIN_SECRET]},
        {"stdin": STDIN_SECRET.encode(), "queue": "-"},
        {"args": ARG_SECRET},
        {"args": [[ARG_SECRET]]},
        {"args": [f"a\0{ARG_SECRET}"]},
    ]
    cut = msgpack.packb({**submit, "task": {**task, "env": {"TASK_KEY": ENV_SECRET}}})[:-1]
    torn = msgpack.packb({**submit, "task": {**task, "stdin": STDIN_SECRET.encode()}}).replace(b"leaky", b"\xff\xfeaky")
    return [*({**submit, "task": {**task, **fields}} for fields in wrong), cut, torn]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_nothing_secret_is_written_down(tmp_path: Path, log_format: str) -> None:
    """At debug, with Redis's password in a URL and in a file, wrong at first, and lost and found again meanwhile."""
    password_file = tmp_path / "password"
    password_file.write_text(FILE_SECRET)
    password_file.chmod(0o600)
    with StackHarness() as rig:
        server = rig.redis.client()
        server.acl_setuser(
            "one", enabled=True, passwords=[f"+{URL_SECRET}"], keys="*", channels="*", commands=["+@all"]
        )
        server.acl_setuser(
            "two", enabled=True, passwords=[f"+{FILE_SECRET}"], keys="*", channels="*", commands=["+@all"]
        )
        path = rig.redis.socket
        chosen: dict[str, Any] = {"log_level": "debug", "log_format": log_format}
        metrics = f"127.0.0.1:{free_port()}"
        broker = rig.start_broker(redis=f"unix://one:{URL_SECRET}@{path}", metrics_addr=metrics, **chosen)
        worker = rig.start_worker(redis=f"unix://two@{path}", redis_password_file=str(password_file), **chosen)
        refused = [
            rig.start_broker(ready=False, redis=f"unix://one:not-{URL_SECRET}@{path}", **chosen),
            rig.start_worker(ready=False, redis=f"unix://two:not-{FILE_SECRET}@{path}", **chosen),
            rig.start_broker(ready=False, redis=f"redis://one:{URL_SECRET}@/x/{path}", **chosen),
            rig.start_broker(ready=False, redis=f"redis+sentinel://one:{URL_SECRET}@127.0.0.1:1/x/0", **chosen),
        ]
        rig.executable(
            "leaky", f'#!/bin/sh\nread line\necho "$line $TASK_KEY $1"\necho "$TASK_KEY {STDERR_SECRET}" >&2\n'
        )
        with Client(broker.endpoint) as one:
            secrets: dict[str, Any] = {"env": {"TASK_KEY": ENV_SECRET}, "stdin": f"{STDIN_SECRET}\n".encode()}
            with pytest.raises(TaskFailed) as failed:
                one.submit("leaky", [ARG_SECRET], retry=[0.01], **secrets).result(PATIENCE_S)
            assert ENV_SECRET.encode() in failed.value.result.stderr, "whoever may read the result finds it there"
            one.submit("leaky", [ARG_SECRET], stderr="keep", **secrets).result(PATIENCE_S)
            one.submit("missing", [ARG_SECRET], **secrets).wait(PATIENCE_S)
            send_raw(broker.endpoint, *wrong_requests())
            server.client_kill_filter(user="one")
            server.client_kill_filter(user="two")
            told = ask(metrics, "/readyz")[1] + ask(metrics, "/metrics")[1]
            assert "kingtask_build_info" in told
            assert PLANTED not in told
            broker.until_logged("redis=lost" if log_format == "text" else '"event":"redis=lost"')
            until(lambda: _works(one, secrets), "it works again")
        for daemon in refused[:3]:
            assert daemon.process is not None
            assert daemon.process.wait(PATIENCE_S) == 3
        refused[3].until_logged("no sentinel")
        for daemon in (broker, worker, *refused):
            assert daemon.text()
            found = [line for line in daemon.text().splitlines() if PLANTED in line]
            assert not found, daemon.kind
        if log_format == "json":
            assert {"attempt=started", "attempt=succeeded", "attempt=failed"} <= {
                line["event"] for line in lines(worker)
            }
            for line in lines(worker):
                if "task" in line:
                    assert {"attempt", "queue", "worker"} <= line.keys(), line
            stored = [line for line in lines(broker) if line["event"] == "submit=ready"]
            assert {line["name"] for line in stored} == {"leaky", "missing"}


@pytest.mark.parametrize("request_", wrong_requests())
def test_a_refusal_is_written_down_without_the_value(request_: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Each alone: a broker writes only the first of a kind in a minute."""
    with pytest.raises(RequestRefused) as refused:
        _take(request_ if isinstance(request_, bytes) else msgpack.packb(request_))
    Counters().refused(refused.value)
    assert f"refused={refused.value.code}" in caplog.text
    assert PLANTED not in caplog.text


def _take(message: bytes) -> None:
    submit = protocol.parse(wire.decode(message))
    assert isinstance(submit, protocol.Submit)
    prepare(submit.task, 0.0, "task", None)


def _works(client: Client, secrets: dict[str, Any]) -> bool:
    with suppress(KingtaskError):
        client.submit("leaky", stderr="keep", **secrets).result(1)
        return True
    return False


def test_a_log_that_vanishes_or_fills_up_does_not_stop_work(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    with StackHarness() as rig:
        broker = rig.start_broker(log_path=str(directory), log_level="debug")
        worker = rig.start_worker(log_path=str(directory), log_level="debug")
        client = rig.client()
        client.submit("ledger", env=rig.env).wait(PATIENCE_S)
        assert "broker=started" in (directory / "broker.log").read_text()
        shutil.rmtree(directory)
        assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
        for daemon in (broker, worker):
            daemon.until_logged("log=unwritable")
            assert daemon.text().count("log=unwritable") == 1
        directory.mkdir()
        assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
        for name, event in (("broker.log", "submit=ready"), ("worker.log", "attempt=succeeded")):
            until(lambda name=name, event=event: event in _read(directory / name), f"{name} is back")  # type: ignore[misc]
        (directory / "broker.log").unlink()
        (directory / "broker.log").symlink_to("/dev/full")  # what a full disk says to every write
        assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
        until(lambda: broker.text().count("log=unwritable") == 2, "the full one is told as well")
        assert broker.text().count("submit=ready") == 4, "stderr has every line"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_paths_that_others_may_change_are_warned_of_at_the_start_and_at_a_reload(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with StackHarness() as rig:
        broker = rig.start_broker(addr=f"ipc://{tmp_path}/open/s", wakeup=f"ipc://{tmp_path}/open/w")
        (tmp_path / "open" / "bin").symlink_to(rig.bin_path)
        worker = rig.start_worker(bin_path=str(tmp_path / "open" / "bin"))
        for daemon, key in ((broker, "addr[0]"), (worker, "bin_path[0]")):
            told = f"{key}: every user may write to {tmp_path}/open"
            daemon.until_logged("path=exposed")
            assert daemon.text().count(told) == 1
            daemon.signal(signal.SIGHUP)
            daemon.until_logged("reload=done")
            assert daemon.text().count(told) == 2
        assert rig.client().submit("ledger", env=rig.env).wait(PATIENCE_S).success
