"""The selector of the broker's loop: exact timeouts, and no other difference that asyncio would notice."""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Iterator
from statistics import median

import pytest

from kingtask.broker.timerfd import TimerfdSelector


@pytest.fixture
def punctual() -> Iterator[TimerfdSelector]:
    with TimerfdSelector() as selector:
        yield selector


def test_it_waits_no_whole_milliseconds(punctual: TimerfdSelector) -> None:
    """Epoll does, and would end each of these nearly one after its time; what the machine adds is added to both."""
    wait_s = 0.01005
    late: dict[str, list[float]] = {"plain": [], "punctual": []}
    with selectors.EpollSelector() as plain:
        for _ in range(40):
            for name, selector in (("plain", plain), ("punctual", punctual)):
                until_s = time.monotonic() + wait_s
                assert selector.select(wait_s) == []
                late[name].append(time.monotonic() - until_s)
    assert min(late["punctual"]) >= 0, "never before its time"
    assert median(late["punctual"]) < median(late["plain"])


def test_what_happens_meanwhile_ends_a_wait(punctual: TimerfdSelector) -> None:
    read, write = os.pipe()
    try:
        punctual.register(read, selectors.EVENT_READ, "data")
        os.write(write, b"x")
        ((key, events),) = punctual.select(60.0)
        assert (key.fd, key.data, events) == (read, "data", selectors.EVENT_READ)
    finally:
        os.close(read)
        os.close(write)


def test_a_wait_that_was_cut_short_does_not_end_the_next_one(punctual: TimerfdSelector) -> None:
    read, write = os.pipe()
    try:
        punctual.register(read, selectors.EVENT_READ)
        os.write(write, b"x")
        assert punctual.select(0.001)
        os.read(read, 1)
        before_s = time.monotonic()
        assert punctual.select(0.05) == []
        assert time.monotonic() - before_s >= 0.05
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("wait_s", [0, -1, 1e-12])
def test_no_wait_is_none(punctual: TimerfdSelector, wait_s: float) -> None:
    assert punctual.select(wait_s) == []


def test_it_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - a count, not paths
    for _ in range(20):
        TimerfdSelector().close()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


def test_a_loop_runs_on_it() -> None:
    async def story() -> list[int]:
        loop = asyncio.get_running_loop()
        heard: list[int] = []
        for number in (3, 1, 2):
            loop.call_later(number / 1000, heard.append, number)
        await asyncio.sleep(0.004)
        await asyncio.to_thread(heard.append, 4)  # wakes the loop from outside
        return heard

    with asyncio.Runner(loop_factory=TimerfdSelector.loop) as runner:
        assert runner.run(story()) == [1, 2, 3, 4]
