"""How long Redis takes, and what it refuses: the store's observer."""

from __future__ import annotations

from kingtask.clock import US_PER_S, monotonic_us, wall_s
from kingtask.metrics.family import Family, counters, gauge, gauges, histograms
from kingtask.metrics.histogram import CALL_S, Histogram
from kingtask.store.store import Store


class CallTimes:
    """`times` by function, `failures` by the kind of error."""

    def __init__(self) -> None:
        self.times: dict[str, Histogram] = {}
        self.failures: dict[str, int] = {}

    def answered(self, function: str, us: int) -> None:
        times = self.times.get(function)
        if times is None:
            times = self.times[function] = Histogram(CALL_S)
        times.observe(us / US_PER_S)

    def failed(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1


def families(calls: CallTimes, store: Store) -> list[Family]:
    """What is known of Redis here."""
    links = store.links
    found = [
        gauges(
            "kingtask_redis_up",
            "1 if this connection to Redis stands and was checked.",
            "purpose",
            {link.purpose: float(link.up) for link in links},
        ),
        counters(
            "kingtask_redis_connects_total",
            "How often it was made; more than once: it was lost.",
            "purpose",
            {link.purpose: link.connects for link in links},
        ),
        histograms(
            "kingtask_redis_call_seconds",
            "From sending a call to its answer, the disk's part included.",
            "function",
            calls.times,
        ),
        counters("kingtask_redis_failures_total", "Calls without an answer, or refused.", "kind", calls.failures),
    ]
    if store.clock.known:
        offset_s = store.clock.now_us(monotonic_us()) / US_PER_S - wall_s()
        text = "Redis's clock, which decides, minus this host's."
        found.append(gauge("kingtask_redis_clock_offset_seconds", text, offset_s))
    return found
