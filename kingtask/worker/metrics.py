"""A worker's metrics: outcomes, lateness and duration of its attempts, and its own state."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily as Counter
from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import HistogramMetricFamily, Metric

from kingtask.metrics.call_times import LATE_S, RUN_S, Histogram
from kingtask.metrics.collector import by_label, in_parts
from kingtask.store.functions import Claimed
from kingtask.worker.worker_state import WorkerState


class AttemptFigures:
    """By queue; `started_ms` is on Redis's clock."""

    def __init__(self) -> None:
        self._late: dict[str, Histogram] = {}
        self._waited: dict[str, Histogram] = {}
        self._ran: dict[str, Histogram] = {}
        self._ended: dict[tuple[str, str, str], int] = {}

    def started(self, claimed: Claimed, started_ms: int) -> None:
        queue = claimed.queue
        if queue not in self._late:
            self._late[queue], self._waited[queue], self._ran[queue] = (Histogram(b) for b in (LATE_S, LATE_S, RUN_S))
        self._late[queue].observe((started_ms - claimed.due_ms) / 1000)
        self._waited[queue].observe((claimed.claimed_ms - claimed.due_ms) / 1000)

    def ended(self, queue: str, outcome: str, reason: str) -> None:
        """`reason` as in a result: empty for a success."""
        key = (queue, outcome, reason)
        self._ended[key] = self._ended.get(key, 0) + 1

    def ran(self, queue: str, seconds: float) -> None:
        self._ran[queue].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        text = "Attempts that have ended here: succeeded, failed (retried or not), or released."
        labels = ("queue", "outcome", "reason")
        yield from in_parts(Counter, "kingtask_worker_attempts_total", text, labels, sorted(self._ended.items()))
        for name, text, times in (
            ("kingtask_worker_lateness_seconds", "From the due time to the start of the process.", self._late),
            ("kingtask_worker_queue_wait_seconds", "From the due time to the claim by this worker.", self._waited),
            ("kingtask_worker_run_seconds", "From the start of a process to its exit.", self._ran),
        ):
            yield from by_label(HistogramMetricFamily, name, text, "queue", times)


def of_worker(
    state: WorkerState, *, slots: int, hints: int, claims: int, claimed: int, brokers: dict[str, bool]
) -> Iterator[Metric]:
    """`brokers`: whether the worker is connected, by endpoint."""
    yield Gauge("kingtask_worker_slots", "concurrency: attempts that may run at once.", slots)
    yield Gauge("kingtask_worker_slots_used", "Slots taken by claimed tasks and running attempts.", state.busy)
    yield Gauge("kingtask_worker_ends_unconfirmed", "Ends that Redis has not confirmed yet.", state.unconfirmed)
    yield Gauge("kingtask_worker_draining", "1 if the worker is stopping and claims no tasks.", state.draining)
    yield Gauge("kingtask_worker_unfit", "1 if this host cannot start processes now.", bool(state.degraded))
    yield Counter("kingtask_worker_wakeups_total", "Hints of brokers that a task is ready.", hints)
    yield Counter("kingtask_worker_claims_total", "Claims sent to Redis.", claims)
    yield Counter("kingtask_worker_claimed_total", "Tasks claimed.", claimed)
    text = "1 if the worker is connected to this broker."
    yield from by_label(Gauge, "kingtask_worker_broker_up", text, "endpoint", brokers)
