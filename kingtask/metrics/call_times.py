"""Histograms and counts in plain numbers; an observation takes half a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from kingtask.clock import US_PER_S

CALL_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds for calls of Redis and for requests."""
LATE_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Bounds for tasks that wait for a worker."""
RUN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Bounds for the execution of programs."""


class Histogram:
    """`bounds` are inclusive and ascending; a last bucket counts all greater values."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """Sum of the observed values."""

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, int]]:
        """Return each bound as text with the number of values up to it; the last is +Inf."""
        bounds = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class CallTimes:
    """The observer of a store: durations of calls by function, failures by kind."""

    def __init__(self) -> None:
        self.times: defaultdict[str, Histogram] = defaultdict(partial(Histogram, CALL_S))
        self.failures: Counter[str] = Counter()

    def answered(self, function: str, us: int) -> None:
        self.times[function].observe(us / US_PER_S)

    def failed(self, kind: str) -> None:
        self.failures[kind] += 1
