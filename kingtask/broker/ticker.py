"""Calls `tick` when the next instant is reached, at least once a second, one call at a time.

Every broker may tick at any time, and a second tick is harmless. So nothing here is elected or locked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import inf

from kingtask.broker.due_heap import WINDOW_MS, DueHeap
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_s
from kingtask.errors import StoreError
from kingtask.event import Event
from kingtask.policy import Policy
from kingtask.store import functions
from kingtask.store.store import Store

log = logging.getLogger("kingtask.broker")

IDLE_S = 1.0
"""The longest pause. Leases, expiry and instants of other brokers depend on it."""
APART_S = 0.001
"""The shortest pause."""
STALLED_S = 15.0
"""Without a tick for this long the broker is broken, since a call to Redis fails after 5 s."""
UPCOMING = 1_000
"""Instants requested once a second."""
NEXT = 32
"""Instants requested by the ticks between. That is enough: a new earliest instant is announced by its submit."""
WARM_UP_S = 0.0015
"""This long before an instant, if no tick was for RESTED_S, the broker pings Redis and makes one worker poll. A process
that slept for 20 ms takes 5 to 20 times as long for the same work as a busy one; so tasks start 0.8 ms earlier
(measured: 2.95 instead of 3.75 ms after their instant)."""
RESTED_S = 0.01


class Ticker:
    """`heartbeat` returns the facts that this broker records in Redis once a second."""

    def __init__(
        self, store: Store, policy: Policy, broker: str, wakeups: Wakeups, *, heartbeat: Callable[[], bytes]
    ) -> None:
        self._store = store
        self._policy = policy
        self._broker = broker
        self._wakeups = wakeups
        self._heartbeat = heartbeat
        self._due = DueHeap()
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight = False
        self._more = False
        """The last tick left work."""
        self._last_s = 0.0
        self._housekept_s = -inf
        self._stopped = True
        self.ticks = 0
        self.failed = 0
        """Ticks that Redis refused or did not answer."""
        self.lost = 0
        """Attempts whose lease had expired."""

    @property
    def instants(self) -> int:
        """The size of the due heap."""
        return len(self._due)

    @property
    def alive(self) -> bool:
        """True if the last tick, or attempt to tick, is recent."""
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

    def reconfigure(self, policy: Policy) -> None:
        """Use this policy for later ticks."""
        self._policy = policy

    def now(self) -> None:
        """Tick as soon as possible."""
        self._arm(at_s=0.0)

    def learn(self, due_ms: Sequence[int]) -> None:
        """Add instants that were just scheduled in Redis."""
        clock = self._store.clock
        if not clock.known:
            return
        horizon_ms = clock.now_us(int(monotonic_s() * 1e6)) // 1000 + WINDOW_MS
        earliest = [self._due.add(instant_ms) for instant_ms in due_ms if instant_ms <= horizon_ms]
        if any(earliest):
            self._arm()

    def _arm(self, at_s: float | None = None) -> None:
        """Set the timer to `at_s`, or to the next instant."""
        if self._stopped or self._in_flight:
            return
        act = self._tick
        if at_s is None:
            at_s = self._housekept_s + IDLE_S
            next_ms = self._due.next_ms
            if next_ms is not None and self._store.clock.known:
                due_s = self._store.clock.monotonic_s(next_ms)
                warm_up_s = due_s - WARM_UP_S
                if due_s < at_s and warm_up_s > max(self._last_s + RESTED_S, monotonic_s()):
                    act = self._warm_up
                at_s = min(at_s, warm_up_s if act == self._warm_up else due_s)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(max(at_s, self._last_s + APART_S), act)

    def _warm_up(self) -> None:
        try:
            self._wakeups.warm_up()
            self._ping()
        finally:
            self._arm()

    def _ping(self) -> None:
        """Sample Redis's clock: the store observes it in every reply."""
        self._store.send(functions.clock(), lambda _reply: None)

    def _tick(self) -> None:
        if self._in_flight:
            return
        self._last_s = monotonic_s()
        housekeep = self._last_s - self._housekept_s >= IDLE_S
        if housekeep:
            self._housekept_s = self._last_s
        self._arm(at_s=self._last_s + IDLE_S)  # also in case the rest raises
        if housekeep:
            self._wakeups.check()
        if not self._store.up:
            return
        self.ticks += 1
        call = functions.tick(
            self._policy,
            self._broker,
            self._heartbeat() if housekeep else b"",
            upcoming=UPCOMING if housekeep else NEXT,
            window_ms=WINDOW_MS,
            housekeep=housekeep,
            bound=housekeep or self._more,
        )
        self._in_flight = True
        self._store.send(call, self._ticked)

    def _ticked(self, reply: functions.Ticked | StoreError) -> None:
        self._in_flight = False
        if isinstance(reply, StoreError):
            self.failed += 1
            log.warning(Event("tick=failed", error=str(reply)))
            self._arm(at_s=self._last_s + IDLE_S)
            return
        self._due.reached(reply.now_us // 1000)
        for instant_ms in reply.upcoming_ms:
            self._due.add(instant_ms)
        self._more = reply.more
        self._arm(at_s=0.0 if reply.more else None)
        for queue, tasks in reply.ready:
            self._wakeups.ready(queue, tasks)
        for lost in reply.lost:
            self.lost += 1
            log.warning(Event("lease=expired", task=lost.id, attempt=lost.number, queue=lost.queue, worker=lost.worker))
        if self._housekept_s == self._last_s:
            # The timer is as good as the sample of Redis's clock. The reply to a write waits for the disk, and delays
            # the replies behind it: without this ping ticks were 0.7 ms later.
            self._ping()
