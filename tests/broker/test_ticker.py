"""The ticker: when it calls `tick`, what it does with the reply, and that it survives errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kingtask.broker import ticker as module
from kingtask.broker.due_heap import WINDOW_MS
from kingtask.broker.ticker import Ticker
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import ServerClock, monotonic_us
from kingtask.errors import StoreError
from kingtask.policy import Policy
from kingtask.store.functions import FunctionCall, Lost, Ticked
from kingtask.store.store import Store
from tests.broker.conftest import PATIENCE_MS
from tests.broker.fakes import FakeWakeups

Reply = Callable[[int], Ticked | StoreError]
"""What Redis answers to a tick at this time (µs of its clock)."""


def idle_tick(now_us: int) -> Ticked:
    return Ticked(now_us, [], [], True, False, [])


class ScriptedStore(Store):
    """Answers each tick with the next of `replies`, then idly. Its clock is this host's."""

    def __init__(self, *replies: Reply) -> None:
        self.clock = ServerClock()
        self.clock.observe(0, 0, 0)
        self.on_up = []
        self.connected = True
        self.asked = asyncio.Event()
        """Set when the ticker has checked the connection."""
        self.calls: list[FunctionCall] = []
        self.called = asyncio.Event()
        self._replies = iter(replies)

    @property
    def up(self) -> bool:
        self.asked.set()
        return self.connected

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        self.calls.append(call)
        self.called.set()
        if call.function == "tick":
            callback(next(self._replies, idle_tick)(monotonic_us()))

    @property
    def ticks(self) -> list[FunctionCall]:
        return [call for call in self.calls if call.function == "tick"]

    async def until_ticks(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while len(self.ticks) < number:
                self.called.clear()
                await self.called.wait()


def made(store: Store, wakeups: Wakeups | None = None, heartbeat: Callable[[], bytes] = lambda: b"facts") -> Ticker:
    return Ticker(store, Policy(), "broker", wakeups or FakeWakeups(), heartbeat=heartbeat)


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick without an instant or an announcement comes only after an hour."""
    monkeypatch.setattr(module, "IDLE_S", 3600.0)


async def test_the_first_tick_comes_at_once_with_the_heartbeat() -> None:
    redis = ScriptedStore()
    ticker = made(redis)
    ticker.start()
    await redis.until_ticks(1)
    ticker.stop()
    arguments = redis.ticks[0].arguments
    assert (arguments["broker"], arguments["heartbeat"], arguments["housekeep"]) == ("broker", b"facts", 1)


async def test_without_instants_a_tick_comes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    redis = ScriptedStore()
    ticker = made(redis)
    ticker.start()
    await redis.until_ticks(4)
    ticker.stop()
    assert ticker.ticks == 4
    assert all(call.arguments["housekeep"] for call in redis.ticks)


async def test_gained_queues_are_passed_to_the_wakeups_and_lost_attempts_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = Lost("an-id", 2, "mail", "w7")
    redis, wakeups = (
        ScriptedStore(lambda now_us: Ticked(now_us, [("mail", 3), ("x", 1)], [], True, False, [lost])),
        FakeWakeups(),
    )
    ticker = made(redis, wakeups)
    ticker.start()
    await redis.until_ticks(1)
    ticker.stop()
    assert wakeups.gained == [("mail", 3), ("x", 1)]
    assert ticker.lost == 1
    assert "lease=expired task=an-id attempt=2 queue=mail worker=w7" in caplog.messages


@pytest.mark.usefixtures("seldom")
async def test_a_tick_comes_at_an_instant_that_a_tick_or_a_submit_reported() -> None:
    redis = ScriptedStore(lambda now_us: Ticked(now_us, [], [now_us // 1000 + 30], True, False, []))
    ticker = made(redis)
    ticker.start()
    await redis.until_ticks(1)
    known = [ticker.instants]
    await redis.until_ticks(2)
    known.append(ticker.instants)  # the second tick reached the instant
    due_ms = monotonic_us() // 1000 + 30
    ticker.learn((due_ms, due_ms + WINDOW_MS + 1_000))
    known.append(ticker.instants)
    assert known == [1, 0, 1], "an instant beyond the window is left to later ticks"
    await redis.until_ticks(3)
    ticker.stop()
    assert monotonic_us() // 1000 >= due_ms


@pytest.mark.usefixtures("seldom")
async def test_before_an_instant_a_worker_and_redis_are_warmed_up() -> None:
    redis, wakeups = ScriptedStore(), FakeWakeups()
    ticker = made(redis, wakeups)
    ticker.start()
    await redis.until_ticks(1)
    before, pings = wakeups.warmed_up, len(redis.calls) - 1
    ticker.learn((monotonic_us() // 1000 + 30,))
    await redis.until_ticks(2)
    ticker.stop()
    assert (before, wakeups.warmed_up) == (0, 1)
    assert len([call for call in redis.calls if call.function == "clock"]) == pings + 1


@pytest.mark.usefixtures("seldom")
async def test_a_tick_that_left_work_is_followed_at_once() -> None:
    redis = ScriptedStore(lambda now_us: Ticked(now_us, [], [], True, True, []))
    ticker = made(redis)
    ticker.start()
    await redis.until_ticks(2)
    ticker.stop()
    assert [call.arguments["housekeep"] for call in redis.ticks] == [1, 0]
    assert redis.ticks[1].arguments["heartbeat"] == b""


async def test_a_failed_tick_is_counted_and_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    caplog.set_level(logging.WARNING)
    redis = ScriptedStore(lambda _now_us: StoreError("lost", "no answer", stored="unknown"))
    ticker = made(redis)
    ticker.start()
    await redis.until_ticks(2)
    ticker.stop()
    assert (ticker.ticks, ticker.failed) == (2, 1)
    assert "tick=failed error='no answer'" in caplog.messages


@pytest.mark.usefixtures("seldom")
async def test_without_redis_there_is_no_tick_until_it_is_up() -> None:
    redis = ScriptedStore()
    redis.connected = False
    ticker = made(redis)
    ticker.start()
    async with asyncio.timeout(PATIENCE_MS / 1000):
        await redis.asked.wait()
    assert (ticker.ticks, ticker.alive) == (0, True)
    redis.connected = True
    for listener in redis.on_up:
        listener()
    await redis.until_ticks(1)
    ticker.stop()


@pytest.mark.usefixtures("seldom")
async def test_the_bounds_of_owners_go_with_the_heartbeat_and_after_a_tick_that_left_work() -> None:
    redis = ScriptedStore(*[lambda now_us: Ticked(now_us, [], [], True, True, [])] * 2)
    ticker = made(redis)
    ticker.reconfigure(Policy(kept_bounds={"alice": 5}))
    ticker.start()
    await redis.until_ticks(3)
    ticker.now()
    await redis.until_ticks(4)
    ticker.stop()
    assert [call.arguments["housekeep"] for call in redis.ticks] == [1, 0, 0, 0]
    assert [call.arguments["bounds"] for call in redis.ticks] == [{"alice": 5}] * 3 + [{}]


@pytest.mark.usefixtures("seldom")
async def test_a_reload_applies_to_later_ticks() -> None:
    redis = ScriptedStore()
    ticker = made(redis)
    ticker.reconfigure(Policy(lease_ms=4_321))
    ticker.start()
    await redis.until_ticks(1)
    ticker.stop()
    assert redis.ticks[0].arguments["lease"] == 4_321


class _Failing(FakeWakeups):
    """One of the three calls of a ticker raises."""

    def __init__(self, failing: str) -> None:
        super().__init__()
        self._failing = failing
        self.fails = 0
        self.again = asyncio.Event()
        """Set after the second error: the ticker went on after the first one."""

    def heartbeat(self) -> bytes:
        self._called("heartbeat")
        return b""

    def ready(self, queue: str, tasks: int) -> None:
        self._called("ready")

    def warm_up(self) -> None:
        self._called("warm_up")

    def _called(self, name: str) -> None:
        if name == self._failing:
            self.fails += 1
            if self.fails == 2:
                self.again.set()
            raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("failing", ["heartbeat", "ready", "warm_up"])
async def test_the_ticker_goes_on_after_an_error(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.2)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    wakeups = _Failing(failing)
    busy: Reply = lambda now_us: Ticked(now_us, [("default", 1)], [now_us // 1000 + 50], True, False, [])  # noqa: E731
    ticker = made(ScriptedStore(*[busy] * 100), wakeups, wakeups.heartbeat)
    ticker.start()
    await asyncio.wait_for(wakeups.again.wait(), PATIENCE_MS / 1000)
    ticker.stop()
