"""The chore of time: call `tick` when the next instant is reached, at least once a second, one at a time.

Any broker may tick at any time and ticking twice is harmless, so nothing here is elected or locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from kingtask import policy
from kingtask.broker.due_heap import WINDOW_MS, DueHeap
from kingtask.clock import monotonic_s
from kingtask.errors import StoreError
from kingtask.store import functions
from kingtask.store.store import Store

log = logging.getLogger("kingtask.broker")

IDLE_S = 1.0
"""Leases, expiry and what other brokers scheduled are looked at this often at least."""
APART_S = 0.001
STALLED_S = 15.0
"""Without a tick: something of ours is broken, since a call to Redis fails after 5 s."""
UPCOMING = 1_000
"""Instants asked for once a second."""
REHEARSAL_S = 0.0015
"""Before an instant, if no tick was for RESTED_S: Redis is asked for its time, and a worker looks for nothing. A
process that has slept for 20 ms takes 5 to 20 times as long for the same work as one that has just worked; so tasks
start 0.8 ms earlier (measured: 2.95 instead of 3.75 ms after their instant)."""
RESTED_S = 0.01
NEXT = 32
"""Asked for by the ticks between; enough, since whoever puts in a new earliest instant announces it."""


class Ticker:
    """`on_ready(queue, tasks)` is called for each queue that gained work, `on_soon()` shortly before some may."""

    def __init__(
        self,
        store: Store,
        policy: policy.Policy,
        broker: str,
        *,
        heartbeat: Callable[[], bytes],
        on_ready: Callable[[str, int], None],
        on_soon: Callable[[], None],
    ) -> None:
        self._store = store
        self.policy = policy
        """Of calls to come; it may be exchanged."""
        self._broker = broker
        self._heartbeat = heartbeat
        self._on_ready = on_ready
        self._on_soon = on_soon
        self._schedule = DueHeap()
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight = False
        self._last_s = 0.0
        self._housekept_s = 0.0
        self._stopped = True
        self.ticks = 0
        """Calls that were sent; of these `failed` came to nothing, and `lost` attempts were found to be."""
        self.failed = 0
        self.lost = 0

    @property
    def instants(self) -> int:
        """How many the timer knows."""
        return len(self._schedule)

    @property
    def alive(self) -> bool:
        """True if it ticked lately, or tried to."""
        return monotonic_s() - self._last_s < STALLED_S

    def start(self) -> None:
        self._stopped = False
        self._last_s = monotonic_s()
        self._store.on_up.append(self.now)
        self.now()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def now(self) -> None:
        """Tick as soon as may be: on start, and whenever Redis is back."""
        self._arm(at_s=0.0)

    def learn(self, due_ms: Sequence[int]) -> None:
        """Take in instants that were just put into Redis's schedule."""
        clock = self._store.clock
        if not clock.known:
            return
        horizon_ms = clock.now_us(int(monotonic_s() * 1e6)) // 1000 + WINDOW_MS
        earlier = False
        for instant_ms in due_ms:
            if instant_ms <= horizon_ms:
                earlier |= self._schedule.add(instant_ms)
        if earlier:
            self._arm()

    def _arm(self, at_s: float | None = None) -> None:
        if self._stopped or self._in_flight:
            return
        act = self._tick
        if at_s is None:
            at_s = self._housekept_s + IDLE_S
            next_ms = self._schedule.next_ms
            if next_ms is not None and self._store.clock.known:
                due_s = self._store.clock.monotonic_s(next_ms)
                rehearsal_s = due_s - REHEARSAL_S
                if due_s < at_s and rehearsal_s > max(self._last_s + RESTED_S, monotonic_s()):
                    act = self._rehearse
                at_s = min(at_s, rehearsal_s if act == self._rehearse else due_s)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(max(at_s, self._last_s + APART_S), act)

    def _rehearse(self) -> None:
        try:
            self._on_soon()
            self._store.send(functions.clock(), lambda told: None)
        finally:
            self._arm()

    def _tick(self) -> None:
        if self._in_flight:
            return
        self._last_s = monotonic_s()
        housekeep = self._last_s - self._housekept_s >= IDLE_S
        if housekeep:
            self._housekept_s = self._last_s
        self._arm(at_s=self._last_s + IDLE_S)  # also for the case that what follows raises
        if not self._store.up:
            return
        self.ticks += 1
        call = functions.tick(
            self.policy,
            self._broker,
            self._heartbeat() if housekeep else b"",
            upcoming=UPCOMING if housekeep else NEXT,
            window_ms=WINDOW_MS,
            housekeep=housekeep,
        )
        self._in_flight = True
        self._store.send(call, self._ticked)

    def _ticked(self, reply: functions.Ticked | StoreError) -> None:
        self._in_flight = False
        if isinstance(reply, StoreError):
            self.failed += 1
            log.warning("tick=failed error=%r", str(reply))
            self._arm(at_s=self._last_s + IDLE_S)
            return
        self._schedule.reached(reply.now_us // 1000)
        for instant_ms in reply.upcoming_ms:
            self._schedule.add(instant_ms)
        self._arm(at_s=0.0 if reply.more else None)
        for queue, tasks in reply.ready:
            self._on_ready(queue, tasks)
        for lost in reply.lost:
            self.lost += 1
            log.warning("lease=expired task=%s attempt=%d queue=%s worker=%s", *lost)
        if self._housekept_s == self._last_s:
            # Timers are as good as what is known of Redis's clock, and the reply to a write waits for the disk (as does
            # what is sent with it): without this ticks were 0.7 ms later.
            self._store.send(functions.clock(), lambda told: None)
