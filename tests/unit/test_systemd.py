"""Messages to systemd's notification socket, received by a socket in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kingtask.clock import monotonic_us
from kingtask.systemd import Notifier

WATCHDOG_S = 0.02


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As NOTIFY_SOCKET has it."""
    return str(tmp_path / "notify") if request.param == "path" else f"@kingtask-test-{uuid.uuid4()}"


@pytest.fixture
def supervisor(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(30)
        listening.bind(address.replace("@", "\0", 1))
        yield listening


def lines(supervisor: socket.socket) -> list[str]:
    return supervisor.recv(65_536).decode().splitlines()


async def until(supervisor: socket.socket, line: str) -> None:
    """Wait, without holding the loop up, for a message with this line."""
    while line not in await asyncio.to_thread(lines, supervisor):
        pass


async def test_a_daemon_is_ready_with_a_status_and_then_stops(supervisor, address):
    notifier = Notifier.of({"NOTIFY_SOCKET": address}, os.getpid())
    notifier.start(status=lambda: "two\nlines", alive=lambda: True)
    assert lines(supervisor) == ["READY=1"]
    assert lines(supervisor) == ["STATUS=two lines"]
    notifier.stopping()
    notifier.stopping()
    stopping = lines(supervisor)
    assert stopping[0] == "STOPPING=1"
    assert stopping[1].startswith("EXTEND_TIMEOUT_USEC=")
    notifier.close()
    notifier.close()
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(1)


async def test_a_reload_names_its_instant_and_the_status_after_it(supervisor, address):
    statuses = iter(["before", "after", "later"])
    notifier = Notifier(address)
    notifier.start(status=lambda: next(statuses), alive=lambda: True)
    assert [lines(supervisor), lines(supervisor)] == [["READY=1"], ["STATUS=before"]]
    began_us = monotonic_us()
    notifier.reloading()
    first, second = lines(supervisor)
    assert first == "RELOADING=1"
    assert began_us <= int(second.removeprefix("MONOTONIC_USEC=")) <= monotonic_us()
    notifier.reloaded()
    assert lines(supervisor) == ["READY=1", "STATUS=after"]
    notifier.close()


async def test_the_loop_feeds_the_watchdog_and_a_stuck_one_does_not(supervisor, address):
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(round(WATCHDOG_S * 1e6)), "OTHER": "stays"}
    notifier = Notifier.of(environment, os.getpid())
    assert environment == {"OTHER": "stays"}
    notifier.start(status=str, alive=lambda: True)
    for _ in range(3):
        await until(supervisor, "WATCHDOG=1")

    stuck, over = threading.Event(), threading.Event()

    def stick() -> None:
        stuck.set()
        over.wait()

    def read_while_stuck() -> list[str]:
        """In a thread, which goes on while the loop does not. Return what came after the loop was stuck."""
        stuck.wait()
        try:
            supervisor.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:  # sent before
                    supervisor.recv(65_536)
            supervisor.settimeout(10 * WATCHDOG_S)
            with contextlib.suppress(TimeoutError):
                return lines(supervisor)
            return []
        finally:
            supervisor.settimeout(30)
            over.set()

    reading = asyncio.create_task(asyncio.to_thread(read_while_stuck))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(stick)
    assert await reading == []
    await until(supervisor, "WATCHDOG=1")
    notifier.close()


async def test_a_loop_without_its_chores_does_not_feed_it(supervisor, address, caplog):
    alive = False
    notifier = Notifier(address, WATCHDOG_S)
    notifier.start(status=str, alive=lambda: alive)
    while "watchdog=withheld" not in caplog.text:  # noqa: ASYNC110 - the log has no event
        await asyncio.sleep(0)
    alive = True
    assert lines(supervisor) == ["READY=1"]
    await until(supervisor, "WATCHDOG=1")
    notifier.close()


async def test_more_time_is_asked_for_as_long_as_it_stops(supervisor, address):
    notifier = Notifier(address, WATCHDOG_S)
    notifier.start(status=str, alive=lambda: True)
    notifier.stopping()
    for _ in range(3):
        await until(supervisor, "EXTEND_TIMEOUT_USEC=40000")  # four ticks of half a period
    notifier.close()


async def test_what_finds_no_room_is_told_later(supervisor, address):
    notifier = Notifier(address, WATCHDOG_S)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other, suppress(BlockingIOError):
        while True:
            other.sendto(b"of another service", address.replace("@", "\0", 1))
    notifier.start(status=lambda: "busy", alive=lambda: True)
    await until(supervisor, "READY=1")
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "feeds"),
    [
        ({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({}, False),
    ],
)
async def test_whose_watchdog_it_is(supervisor, address, environment, feeds):
    notifier = Notifier.of({"NOTIFY_SOCKET": address, **environment}, os.getpid())
    notifier.start(status=lambda: "up", alive=lambda: True)
    assert lines(supervisor) == ["READY=1"]
    assert lines(supervisor) == ["STATUS=up", *(["WATCHDOG=1"] if feeds else [])]
    notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/no/such/socket"])
async def test_nobody_to_be_told_is_no_error(address):
    notifier = Notifier(address, WATCHDOG_S)
    notifier.start(status=lambda: "up", alive=lambda: True)
    notifier.reloading()
    notifier.reloaded()
    notifier.stopping()
    notifier.close()
