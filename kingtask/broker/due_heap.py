"""The due heap: the next instants at which tasks or leases in Redis become due. Pure.

Rules. The heap is a cache of instants that `tick` and this broker's own submits reported, never the record. Insertion
only adds; an instant leaves only after a tick whose `now` reached it has returned. Over the capacity the latest
instants are dropped: a later tick reports them again. So the size does not depend on the number of scheduled tasks, and
a lost heap costs one tick.
"""

from __future__ import annotations

from heapq import heappop, heappush, nsmallest

WINDOW_MS = 60_000
"""Instants further ahead are not kept; `tick` reports those of the next minute at least once a second."""

CAPACITY = 4096
"""Distinct milliseconds that are left when the heap sheds; it grows to twice as many, 850 KB."""


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
            self._heap = nsmallest(self._capacity, self._heap)  # sorted, so it is a heap
            self._members = set(self._heap)
        heappush(self._heap, instant_ms)
        self._members.add(instant_ms)
        return self._heap[0] == instant_ms

    def reached(self, now_ms: int) -> None:
        """Remove the instants that a tick with this `now` has handled."""
        while self._heap and self._heap[0] <= now_ms:
            self._members.discard(heappop(self._heap))
