"""Time, the processes that live in it, and the seed that decides everything.

Nothing here waits: the next event is popped and the clock is set to its instant. Each process has a loop of its own
(what asyncio's would give the product: call_soon, call_later, call_at, futures), so it can be killed (its events are
gone) or stopped (they wait, in their order, until it goes on).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from random import Random
from typing import Any

START_MS = 1_800_000_000_000
"""Epoch milliseconds at second 0 of the world (January 2027)."""


class SimulatedWorld:
    """`trace` says what happened: (second, who, what, …)."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 100.0
        self.trace: list[tuple[Any, ...]] = []
        self._events: list[tuple[float, int, Timer]] = []
        self._order = 0

    def note(self, who: str, *what: Any) -> None:
        self.trace.append((self.now, who, *what))

    def at(self, when: float, act: Callable[..., Any], *args: Any) -> None:
        self.push(when, Timer(None, act, args))

    def after(self, delay: float, act: Callable[..., Any], *args: Any) -> None:
        self.push(self.now + delay, Timer(None, act, args))

    def push(self, when: float, timer: Timer) -> None:
        self._order += 1
        heappush(self._events, (max(when, self.now), self._order, timer))

    def run(self, until: float) -> None:
        """Let time pass until then."""
        events = self._events
        set_loop: Any = asyncio._set_running_loop
        while events and events[0][0] <= until:
            when, _, timer = heappop(events)
            if timer.act is None:
                continue
            self.now = when
            loop = timer.loop
            if loop is None:
                timer.act(*timer.args)
            elif loop.stopped:
                loop.backlog.append(timer)
            elif not loop.dead:
                set_loop(loop)
                try:
                    timer.act(*timer.args)
                finally:
                    set_loop(None)
        self.now = max(self.now, until)

    # ── what the product asks of the module `time` ──────────────────────────────────────────────────────────────────

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e6) * 1000

    def time(self) -> float:
        return START_MS / 1000 + self.now


class Timer:
    __slots__ = ("act", "args", "loop")

    def __init__(self, loop: Loop | None, act: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.loop = loop
        self.act: Callable[..., Any] | None = act
        self.args = args

    def cancel(self) -> None:
        self.act = None


class Loop:
    """One process; `name` is for the trace."""

    def __init__(self, world: SimulatedWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.stopped = False
        self.backlog: list[Timer] = []
        self.signals: dict[int, Callable[[], Any]] = {}
        self.subscriber: Any = None
        """What hears the wakeups, if this is a worker."""
        self._coroutines: list[Coroutine[Any, Any, Any]] = []

    def __repr__(self) -> str:
        return self.name

    # ── what happens to processes ───────────────────────────────────────────────────────────────────────────────────

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self._coroutines.append(coroutine)
        itself: Any = self
        return asyncio.Task(coroutine, loop=itself)

    def kill(self) -> None:
        self.dead = True
        self.stopped = False
        self.backlog.clear()
        for coroutine in self._coroutines:
            coroutine.close()

    def stop_process(self) -> None:
        self.stopped = not self.dead

    def resume(self) -> None:
        self.stopped = False
        backlog, self.backlog = self.backlog, []
        for timer in backlog:
            self.world.push(self.world.now, timer)

    # ── what the product and asyncio's futures ask for ──────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self.world.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.world.now, callback, *args)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.world.now + delay, callback, *args)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        timer = Timer(self, callback, args)
        self.world.push(when, timer)
        return timer

    def create_task(self, coro: Coroutine[Any, Any, Any], **_more: Any) -> asyncio.Task[Any]:
        return self.start(coro)

    def create_future(self) -> asyncio.Future[Any]:
        itself: Any = self
        return asyncio.Future(loop=itself)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        self.signals[sig] = callback

    def set_exception_handler(self, handler: Any) -> None:
        """What a callback raises ends the simulation."""

    def call_exception_handler(self, context: Any) -> None:
        """Only asyncio calls it: for tasks of a process that was killed."""

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.dead


def here() -> Loop:
    """The process whose turn it is."""
    loop: Any = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop
