"""What brokers and workers tell systemd, by a socket in its place."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, children_of, until

WATCHDOG_S = 0.2


class Systemd:
    """The socket: what arrives there, with whom it came from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.settimeout(PATIENCE_S)
        self._socket.bind(str(path))

    def message(self, of: int) -> list[str]:
        """The next one of this process."""
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(65_536, 64)
            ((_, _, credentials),) = ancillary
            if int.from_bytes(credentials[:4], "little") == of:
                return data.decode().splitlines()

    def until(self, of: int, begin: str) -> list[str]:
        """Wait for a message with a line that begins so; returns that message."""
        while True:
            message = self.message(of)
            if any(line.startswith(begin) for line in message):
                return message

    def drop(self) -> None:
        """Forget what has come."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(65_536)
        except BlockingIOError:
            self._socket.settimeout(PATIENCE_S)

    def silent(self, seconds: float) -> bool:
        """True if nothing comes for a while."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(65_536)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(PATIENCE_S)
        return False

    def close(self) -> None:
        self._socket.close()


class Supervised(StackHarness):
    def dress(self, daemon: Daemon) -> None:
        daemon.environment = {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6)),
        }


@pytest.fixture
def rig() -> Iterator[Supervised]:
    with Supervised() as started:
        yield started


@pytest.fixture
def systemd(rig: Supervised) -> Iterator[Systemd]:
    listening = Systemd(rig.directory / "notify")
    yield listening
    listening.close()


def test_a_broker_tells_all_of_its_life(rig: StackHarness, systemd: Systemd):
    broker = rig.start_broker()
    pid = broker.pid
    assert systemd.message(pid) == ["READY=1"]
    status, *_ = systemd.message(pid)
    assert status.startswith("STATUS=0 requests in progress, 0 clients waiting; Redis is up, an OK means fsync")
    broker.signal(signal.SIGHUP)
    assert any(line.startswith("MONOTONIC_USEC=") for line in systemd.until(pid, "RELOADING=1"))
    systemd.until(pid, "READY=1")
    broker.path.write_text("nonsense: 1\n")
    broker.signal(signal.SIGHUP)
    systemd.until(pid, "RELOADING=1")
    status = systemd.until(pid, "READY=1")[-1]  # before it, what the socket had no room for
    assert "the last reload was refused: " in status
    assert "nonsense" in status
    assert broker.stop() == 0
    assert "EXTEND_TIMEOUT_USEC=" in systemd.until(pid, "STOPPING=1")[-1]


def test_a_broker_whose_redis_is_away_makes_progress_and_a_stopped_one_does_not(rig: StackHarness, systemd: Systemd):
    broker = rig.start_broker()
    rig.redis.kill()
    broker.until_logged("redis=lost")
    systemd.drop()
    for _ in range(30):  # six seconds of time-outs, refused connections and pauses
        systemd.until(broker.pid, "WATCHDOG=1")
    systemd.until(broker.pid, "STATUS=0 requests in progress, 0 clients waiting; Redis is unreachable (")
    broker.signal(signal.SIGSTOP)
    until(lambda: "T (stopped)" in Path(f"/proc/{broker.pid}/status").read_text(), "it to be stopped")
    systemd.drop()
    assert systemd.silent(5 * WATCHDOG_S)
    broker.signal(signal.SIGCONT)
    systemd.until(broker.pid, "WATCHDOG=1")


def test_a_broker_that_is_started_without_redis_is_ready(rig: StackHarness, systemd: Systemd):
    rig.redis.kill()
    broker = rig.start_broker(ready=False)
    systemd.until(broker.pid, "READY=1")
    systemd.until(broker.pid, "WATCHDOG=1")


def test_a_worker_tells_all_of_its_life_and_its_guard_tells_nothing(rig: StackHarness, systemd: Systemd):
    rig.start_broker()
    worker = rig.start_worker(drain_timeout=3600, concurrency=2)
    pid = worker.pid
    systemd.until(pid, "READY=1")
    systemd.until(pid, "STATUS=0 of 2 slots busy, 0 ends to be confirmed, queues default; Redis is up")
    gate = rig.directory / "gate"
    rig.executable("gate", f"#!/bin/sh\nenv > {gate}.env\nuntil [ -e {gate} ]; do sleep 0.01; done\n")
    task = rig.client().submit("gate")
    until(Path(f"{gate}.env").exists, "the program to run")
    systemd.until(pid, "STATUS=1 of 2 slots busy")
    worker.path.write_text(yaml.safe_dump({**worker.config, "concurrency": 1}))
    worker.signal(signal.SIGHUP)
    systemd.until(pid, "RELOADING=1")
    assert systemd.until(pid, "READY=1")[-1].startswith("STATUS=1 of 1 slots busy")
    worker.signal(signal.SIGTERM)
    systemd.until(pid, "STOPPING=1")
    for _ in range(3):  # for as long as the program runs
        systemd.until(pid, "EXTEND_TIMEOUT_USEC=")
    for child in children_of(pid):
        environment = Path(f"/proc/{child}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environment
        assert b"WATCHDOG" not in environment
    gate.touch()
    assert task.wait(timeout=30).success
    assert worker.process is not None
    assert worker.process.wait(PATIENCE_S) == 0


def test_a_stopped_worker_is_silent_though_its_guard_lives(rig: StackHarness, systemd: Systemd):
    broker = rig.start_broker()
    worker = rig.start_worker()
    broker.stop()
    systemd.until(worker.pid, "WATCHDOG=1")
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: "T (stopped)" in Path(f"/proc/{worker.pid}/status").read_text(), "it to be stopped")
    systemd.drop()
    assert systemd.silent(5 * WATCHDOG_S)
    worker.signal(signal.SIGCONT)
    systemd.until(worker.pid, "WATCHDOG=1")
