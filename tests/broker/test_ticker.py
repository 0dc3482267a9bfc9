"""The chore of time goes on after an error in what it functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kingtask.broker import ticker
from kingtask.broker.ticker import Ticker
from kingtask.clock import ServerClock, monotonic_us
from kingtask.policy import Policy
from kingtask.store.functions import FunctionCall, Ticked
from kingtask.store.store import Store
from tests.broker.conftest import PATIENCE_MS


class _Answers(Store):
    """Every tick finds work in a queue, and tells of an instant that comes soon."""

    up = True

    def __init__(self) -> None:
        self.clock = ServerClock()
        self.on_up = []

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        now_us = monotonic_us()
        self.clock.observe(now_us, now_us, now_us)
        if call.function == "tick":
            callback(Ticked(now_us, [("default", 1)], [now_us // 1000 + 50], True, False, []))


class _Failing:
    """Each of the three calls of a ticker; one of them fails."""

    def __init__(self, failing: str) -> None:
        self._failing = failing
        self.fails = 0
        self.again = asyncio.Event()
        """Set after the second failure: the ticker has gone on after the first one."""

    def heartbeat(self) -> bytes:
        return self._called("heartbeat")

    def on_ready(self, queue: str, tasks: int) -> None:
        self._called("on_ready")

    def on_soon(self) -> None:
        self._called("on_soon")

    def _called(self, name: str) -> bytes:
        if name != self._failing:
            return b""
        self.fails += 1
        if self.fails == 2:
            self.again.set()
        raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("failing", ["heartbeat", "on_ready", "on_soon"])
async def test_it_ticks_on_after_an_error(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "IDLE_S", 0.2)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    calls = _Failing(failing)
    made = Ticker(
        _Answers(),
        Policy(),
        "broker",
        heartbeat=calls.heartbeat,
        on_ready=calls.on_ready,
        on_soon=calls.on_soon,
    )
    made.start()
    await asyncio.wait_for(calls.again.wait(), PATIENCE_MS / 1000)
    made.stop()
