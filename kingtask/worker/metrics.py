"""A worker's figures: what became of its attempts, how late they began, how long they took."""

from __future__ import annotations

from dataclasses import dataclass

from kingtask.metrics.family import Family, counter, gauge, gauges, histograms
from kingtask.metrics.histogram import LATE_S, RUN_S, Histogram


class AttemptFigures:
    """Of each queue that this worker has served; `*_ms` are of Redis's clock."""

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
        """`reason` as in a result: it is empty for a success."""
        key = (queue, outcome, reason)
        self._ended[key] = self._ended.get(key, 0) + 1

    def ran(self, queue: str, seconds: float) -> None:
        self._ran[queue].observe(seconds)

    def families(self) -> list[Family]:
        return [
            Family(
                kind="counter",
                name="kingtask_worker_attempts_total",
                text="Attempts that have ended here: succeeded, failed (retried or not), or handed back.",
                labels=("queue", "outcome", "reason"),
                samples=tuple(sorted(self._ended.items())),
            ),
            histograms(
                "kingtask_worker_lateness_seconds",
                "From when a task was due to the start of its process.",
                "queue",
                self._late,
            ),
            histograms(
                "kingtask_worker_queue_wait_seconds",
                "From when a task was due to when this worker claimed it.",
                "queue",
                self._waited,
            ),
            histograms(
                "kingtask_worker_run_seconds",
                "From the start of a process to its exit.",
                "queue",
                self._ran,
            ),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """How a worker stands."""

    slots: int
    busy: int
    unconfirmed: int
    draining: bool
    unfit: bool
    wakeups: int
    claims: int
    claimed: int
    brokers: dict[str, bool]
    """By endpoint: whether there is a connection."""


def of_worker(now: WorkerFigures) -> list[Family]:
    return [
        gauge("kingtask_worker_slots", "concurrency: attempts that may run at once.", now.slots),
        gauge("kingtask_worker_slots_used", "Slots taken by claimed tasks and running attempts.", now.busy),
        gauge("kingtask_worker_ends_unconfirmed", "Ends that Redis has not confirmed yet.", now.unconfirmed),
        gauge("kingtask_worker_draining", "1 if it is stopping and claims nothing more.", now.draining),
        gauge("kingtask_worker_unfit", "1 if this host cannot start processes just now.", now.unfit),
        counter("kingtask_worker_wakeups_total", "Hints of brokers that something is ready.", now.wakeups),
        counter("kingtask_worker_claims_total", "Times that it asked Redis for tasks.", now.claims),
        counter("kingtask_worker_claimed_total", "Tasks that it was given.", now.claimed),
        gauges("kingtask_worker_broker_up", "1 if this broker's hints can be heard.", "endpoint", now.brokers),
    ]
