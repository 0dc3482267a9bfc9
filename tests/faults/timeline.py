"""When faults were active, and what Redis's clock showed at a monotonic instant."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate

from tests.faults.history import ClockSample, Fault

NEVER = 2**63


class Windows:
    """The spans of time in which a fault was active. One that was never taken back lasts for ever."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        open_: dict[tuple[str, int], int] = {}
        self._spans: list[tuple[int, int, str]] = []
        for fault in sorted(faults, key=lambda fault: fault.mono_ns):
            key = fault.fault, fault.n
            if fault.event == "start":
                open_.setdefault(key, fault.mono_ns)
            elif key in open_:
                self._spans.append((open_.pop(key), fault.mono_ns, fault.fault))
        self._spans += [(start, NEVER, name) for (name, _), start in open_.items()]
        self._spans.sort()
        self._starts = [start for start, _, _ in self._spans]
        self._latest = list(accumulate((stop for _, stop, _ in self._spans), max))

    def __len__(self) -> int:
        """How many were applied."""
        return len(self._spans)

    def any(self, from_ns: int, to_ns: int) -> bool:
        """True if some fault was active at some time of the span."""
        begun = bisect_right(self._starts, to_ns)
        return begun > 0 and self._latest[begun - 1] >= from_ns

    def names(self, from_ns: int, to_ns: int) -> list[str]:
        return sorted({name for start, stop, name in self._spans if start <= to_ns and stop >= from_ns})


class RedisClock:
    """Bounds for Redis's time, from samples; between two of them it lies within what both allow, steps included."""

    def __init__(self, samples: Iterable[ClockSample]) -> None:
        ordered = sorted(samples, key=lambda sample: sample.mono_ns)
        self._ns = [sample.mono_ns for sample in ordered]
        self._us = [sample.redis_us for sample in ordered]
        self._offsets = [sample.redis_us - sample.mono_ns / 1000 for sample in ordered]
        low = [offset - sample.width_ns / 2000 for offset, sample in zip(self._offsets, ordered, strict=True)]
        high = [offset + sample.width_ns / 2000 for offset, sample in zip(self._offsets, ordered, strict=True)]
        # Before the first sample, between each two, after the last.
        self._low = [min(low[max(0, i - 1) : i + 1]) for i in range(len(low) + 1)] if low else []
        self._high = [max(high[max(0, i - 1) : i + 1]) for i in range(len(high) + 1)] if high else []

    def __bool__(self) -> bool:
        return bool(self._ns)

    def earliest_us(self, mono_ns: int) -> float:
        return mono_ns / 1000 + self._low[bisect_left(self._ns, mono_ns)]

    def latest_us(self, mono_ns: int) -> float:
        return mono_ns / 1000 + self._high[bisect_left(self._ns, mono_ns)]

    def about_ns(self, redis_ms: int) -> int:
        """The monotonic instant of a time told by Redis, as well as it can be told after a step of that clock."""
        us = redis_ms * 1000
        i = min(bisect_left(self._us, us), len(self._us) - 1)
        return round((us - self._offsets[i]) * 1000)
