"""The broker's heap: the next instants at which something in Redis becomes due.

Rules. It is a cache of what `tick` and this broker's own submits reported, never the record. Insertion only adds; an
instant leaves only when a tick whose `now` reached it has returned. Past the cap the latest instants go: a later tick
reports them again. So its size does not depend on how many tasks are scheduled, and losing it costs one tick.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, nsmallest

WINDOW_MS = 60_000
"""How far ahead instants are kept; tick reports the earliest of the next minute at least once a second."""

CAPACITY = 4096
"""Distinct milliseconds kept when it sheds; it holds up to twice as many, 850 KB."""


class DueHeap:
    """A bounded min-heap of distinct instants in milliseconds of Redis's clock."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._heap: list[int] = []
        self._members: set[int] = set()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_ms(self) -> int | None:
        """The earliest instant, or None."""
        return self._heap[0] if self._heap else None

    def add(self, instant_ms: int) -> bool:
        """Add one instant; return True if it is the new earliest (the timer must be armed again)."""
        if instant_ms in self._members:
            return False
        if len(self._heap) >= 2 * self._capacity:
            self._shed()
        heappush(self._heap, instant_ms)
        self._members.add(instant_ms)
        return self._heap[0] == instant_ms

    def reached(self, now_ms: int) -> None:
        """Forget what a tick that has returned with this `now` has covered."""
        while self._heap and self._heap[0] <= now_ms:
            self._members.discard(heappop(self._heap))

    def _shed(self) -> None:
        self._heap = nsmallest(self._capacity, self._heap)
        heapify(self._heap)
        self._members = set(self._heap)
