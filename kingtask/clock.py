"""Clocks: the wall clock and the monotonic clock of this host, and an estimate of Redis's clock.

Redis TIME decides when anything is due (invariant 4 in ARCHITECTURE.md). Brokers and workers arm timers on their own
monotonic clock; `ServerClock` maps between the two from the `now` that every reply carries.
"""

from __future__ import annotations

import time
from math import ceil

US_PER_S = 1_000_000


def wall_s() -> float:
    """Return epoch seconds of this host; only for people, and for checks of absolute times."""
    return time.time()


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def monotonic_s() -> float:
    """The clock of `asyncio` loops and of every deadline."""
    return time.monotonic()


def start_ms(at_s: float) -> int:
    """Milliseconds of an instant in epoch seconds, rounded up so that nothing starts before it.

    A float near 1.8e9 resolves about 0.2 µs, so what lies beyond the third decimal of a millisecond is noise.
    """
    return ceil(round(at_s * 1000, 3))


def duration_ms(seconds: float) -> int:
    """Milliseconds of a duration, rounded up: waiting is never shorter than asked."""
    return ceil(round(seconds * 1000, 3))


class Backoff:
    """Pauses in seconds that double each time, from `first` up to `longest`."""

    __slots__ = ("_first", "_longest", "_times")

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._times = 0

    @property
    def is_fresh(self) -> bool:
        """True if `next` was not called since the last `reset`."""
        return self._times == 0

    def after(self, times: int) -> float:
        """The pause that follows so many others."""
        return min(self._longest, self._first * 2.0 ** min(times, 64))

    def next(self) -> float:
        self._times += 1
        return self.after(self._times - 1)

    def reset(self) -> None:
        self._times = 0


class ServerClock:
    """An estimate of Redis's clock that is never ahead of it.

    A reply that carries `now` was made between the call and its arrival, so the offset (server − monotonic) lies in
    [now − received, now − sent]. The offset kept is the largest that no sample contradicts: it is at most one reply's
    travel behind, and a timer armed by it does not fire early. A sample that excludes the offset (drift, or the
    server's clock was set) moves it to the nearest end at once.
    """

    def __init__(self) -> None:
        self._offset_us: int | None = None

    @property
    def known(self) -> bool:
        return self._offset_us is not None

    def observe(self, now_us: int, sent_us: int, received_us: int) -> int:
        """Take one sample (µs; `sent_us` and `received_us` monotonic); return how far the estimate moved, in µs."""
        lowest, highest = now_us - received_us, now_us - sent_us
        before = self._offset_us
        if before is None:
            self._offset_us = lowest
            return 0
        self._offset_us = min(max(before, lowest), highest)
        return self._offset_us - before

    def now_us(self, monotonic: int) -> int:
        """Redis's time at a monotonic instant (both µs). Raises ValueError before the first sample."""
        if self._offset_us is None:
            raise ValueError("no reply from Redis has been seen yet")
        return monotonic + self._offset_us

    def monotonic_s(self, server_ms: int) -> float:
        """The monotonic second at which Redis's clock reaches `server_ms`."""
        if self._offset_us is None:
            raise ValueError("no reply from Redis has been seen yet")
        return (server_ms * 1000 - self._offset_us) / US_PER_S
