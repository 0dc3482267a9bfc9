"""A worker's metrics: outcomes, lateness and duration of its attempts, and its own state."""

from __future__ import annotations

from kingtask.metrics.family import Family, counter, gauge, gauges, histograms
from kingtask.metrics.histogram import LATE_S, RUN_S, Histogram
from kingtask.worker.worker_state import WorkerState


class AttemptFigures:
    """By queue; `*_ms` are on Redis's clock."""

    def __init__(self) -> None:
        self._late: dict[str, Histogram] = {}
        self._waited: dict[str, Histogram] = {}
        self._ran: dict[str, Histogram] = {}
        self._ended: dict[tuple[str, str, str], int] = {}

    def started(self, queue: str, *, due_ms: int, claimed_ms: int, started_ms: int) -> None:
        if queue not in self._late:
            self._late[queue], self._waited[queue], self._ran[queue] = (Histogram(b) for b in (LATE_S, LATE_S, RUN_S))
        self._late[queue].observe((started_ms - due_ms) / 1000)
        self._waited[queue].observe((claimed_ms - due_ms) / 1000)

    def ended(self, queue: str, outcome: str, reason: str) -> None:
        """`reason` as in a result: empty for a success."""
        key = (queue, outcome, reason)
        self._ended[key] = self._ended.get(key, 0) + 1

    def ran(self, queue: str, seconds: float) -> None:
        self._ran[queue].observe(seconds)

    def families(self) -> list[Family]:
        return [
            Family(
                kind="counter",
                name="kingtask_worker_attempts_total",
                text="Attempts that have ended here: succeeded, failed (retried or not), or released.",
                labels=("queue", "outcome", "reason"),
                samples=tuple(sorted(self._ended.items())),
            ),
            histograms(
                "kingtask_worker_lateness_seconds",
                "From the due time to the start of the process.",
                "queue",
                self._late,
            ),
            histograms(
                "kingtask_worker_queue_wait_seconds",
                "From the due time to the claim by this worker.",
                "queue",
                self._waited,
            ),
            histograms("kingtask_worker_run_seconds", "From the start of a process to its exit.", "queue", self._ran),
        ]


def of_worker(
    state: WorkerState, *, slots: int, hints: int, claims: int, claimed: int, brokers: dict[str, bool]
) -> list[Family]:
    """`brokers`: whether the worker is connected, by endpoint."""
    return [
        gauge("kingtask_worker_slots", "concurrency: attempts that may run at once.", slots),
        gauge("kingtask_worker_slots_used", "Slots taken by claimed tasks and running attempts.", state.busy),
        gauge("kingtask_worker_ends_unconfirmed", "Ends that Redis has not confirmed yet.", state.unconfirmed),
        gauge("kingtask_worker_draining", "1 if the worker is stopping and claims no tasks.", state.draining),
        gauge("kingtask_worker_unfit", "1 if this host cannot start processes now.", bool(state.degraded)),
        counter("kingtask_worker_wakeups_total", "Hints of brokers that a task is ready.", hints),
        counter("kingtask_worker_claims_total", "Claims sent to Redis.", claims),
        counter("kingtask_worker_claimed_total", "Tasks claimed.", claimed),
        gauges("kingtask_worker_broker_up", "1 if the worker is connected to this broker.", "endpoint", brokers),
    ]
