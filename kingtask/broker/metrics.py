"""A broker's figures: what it counts itself, and what Redis knows of the queues.

The latter are the same from every broker: take `max by (queue)` of them, not `sum`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kingtask import protocol
from kingtask.broker import counters as kinds
from kingtask.errors import REFUSALS, StoreError
from kingtask.metrics.family import Family, Kind, counter, counters, facts, gauge, histograms
from kingtask.metrics.histogram import CALL_S, Histogram
from kingtask.states import TERMINAL
from kingtask.store import functions
from kingtask.store.stats import QueueFigures, QueuesPage
from kingtask.store.store import Store

log = logging.getLogger("kingtask.broker")

MAX_QUEUES = 1_000
"""Of one scrape; each has some 12 lines. Of more queues only some are told, and how many there are."""
PATIENCE_S = 3.0
"""For Redis to tell of them; without an answer a scrape has the rest."""

REQUEST_S = (*CALL_S, 10.0, 30.0, 60.0)
"""Bounds for requests; a `wait` takes as long as its client likes."""
KINDS = (*REFUSALS, kinds.DROPPED_REPLY, kinds.EMPTY_MESSAGE, kinds.UNKNOWN_TOPIC, kinds.CUT_OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFigures:
    """How a broker stands; `*_limit` as configured."""

    in_flight: int
    in_flight_bytes: int
    in_flight_limit: int
    waits: int
    waits_limit: int
    tasks_limit: int
    queues_limit: int
    output_bytes_limit: int
    draining: bool
    ack_level: str
    refused: Mapping[str, int]
    wakeups: int
    idle_workers: int
    ticks: int
    ticks_failed: int
    lost: int
    instants: int


class RequestTimes:
    """By the request's type: from its decoding to its reply."""

    def __init__(self) -> None:
        self._by_type: dict[type[protocol.Request], Histogram] = {
            kind: Histogram(REQUEST_S) for kind in protocol.REQUESTS.values() if kind is not protocol.Ping
        }

    def of(self, request: protocol.Request) -> Histogram:
        return self._by_type[type(request)]

    def family(self) -> Family:
        by_op = {op: self._by_type[kind] for op, kind in protocol.REQUESTS.items() if kind in self._by_type}
        return histograms("kingtask_broker_request_seconds", "From a request to its reply.", "op", by_op)


async def ask_queues(store: Store) -> list[QueuesPage]:
    """What Redis knows of the queues, some hundred a call; empty if it does not say within PATIENCE_S."""
    pages: list[QueuesPage] = []
    told = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not pages or (pages[-1].cursor != "0" and told < MAX_QUEUES):
                pages.append(await store.ask(functions.queues(pages[-1].cursor if pages else "0")))
                told += len(pages[-1].queues)
    except (StoreError, TimeoutError) as error:
        log.debug("queues=unknown error=%r", str(error))
        return []
    return pages


def of_broker(now: BrokerFigures) -> list[Family]:
    return [
        gauge("kingtask_broker_in_flight", "Requests that wait for Redis.", now.in_flight),
        gauge("kingtask_broker_in_flight_bytes", "Their bytes.", now.in_flight_bytes),
        gauge("kingtask_broker_in_flight_limit", "max_pending: past it the answer is busy.", now.in_flight_limit),
        gauge("kingtask_broker_waits", "Clients that wait for the end of a task.", now.waits),
        gauge("kingtask_broker_waits_limit", "max_waits: past it the answer is busy.", now.waits_limit),
        counters(
            "kingtask_broker_refusals_total",
            "Error replies by code, and messages, replies and connections that were dropped.",
            "code",
            {**dict.fromkeys(KINDS, 0), **now.refused},
        ),
        counter("kingtask_broker_wakeups_total", "Hints that idle workers were given.", now.wakeups),
        gauge("kingtask_broker_idle_workers", "Connections of workers that wait to be told.", now.idle_workers),
        counter("kingtask_broker_ticks_total", "Calls of tick, which makes tasks ready that are due.", now.ticks),
        counter("kingtask_broker_ticks_failed_total", "Those that Redis refused or did not answer.", now.ticks_failed),
        counter("kingtask_broker_lost_total", "Attempts that its ticks found to be lost.", now.lost),
        gauge("kingtask_broker_instants", "Instants that its timer knows; of the next minute.", now.instants),
        gauge("kingtask_broker_draining", "1 if it is stopping.", now.draining),
        facts("kingtask_broker_ack_info", "What an OK means.", {"level": now.ack_level}),
        gauge("kingtask_tasks_limit", "max_tasks: past it the answer is busy.", now.tasks_limit),
        gauge("kingtask_queues_limit", "max_queues: past it the answer is busy.", now.queues_limit),
        gauge("kingtask_output_bytes_limit", "max_result_bytes: past it outputs go.", now.output_bytes_limit),
    ]


def of_queues(pages: list[QueuesPage]) -> Iterator[Family]:
    """The same from every broker of a namespace; without `pages` only that there are none."""
    yield gauge("kingtask_queues_told", "1 if Redis told of the queues in time for this scrape.", bool(pages))
    if not pages:
        return
    last = pages[-1]
    queues = sorted({queue.name: queue for page in pages for queue in page.queues}.values())[:MAX_QUEUES]

    def of_each(kind: Kind, name: str, text: str, figure: Callable[[QueueFigures], float]) -> Family:
        samples = (((queue.name,), figure(queue)) for queue in queues)
        return Family(kind=kind, name=name, text=text, labels=("queue",), samples=samples)

    def count(name: str, text: str, field: str) -> Family:
        return of_each("counter", name, text, lambda queue: queue.counts.get(field, 0))

    yield gauge("kingtask_queues", "Names of queues; of at most 1,000 of them the figures are told.", last.names)
    yield gauge("kingtask_tasks", "Tasks that have not ended.", last.live)
    yield gauge("kingtask_output_bytes", "Bytes of stdout and stderr that are kept.", last.kept_bytes)
    yield gauge("kingtask_workers", "Workers heard from within 20 s.", last.workers)
    yield gauge("kingtask_brokers", "Brokers heard from within 20 s.", last.brokers)
    yield of_each("gauge", "kingtask_queue_ready", "Tasks that could be started now.", lambda queue: queue.ready)
    yield of_each(
        "gauge",
        "kingtask_queue_scheduled",
        "Tasks that wait for their instant, retries too.",
        lambda queue: queue.counts.get("scheduled", 0),
    )
    yield of_each(
        "gauge", "kingtask_queue_running", "Attempts in progress.", lambda queue: queue.counts.get("running", 0)
    )
    yield of_each(
        "gauge",
        "kingtask_queue_oldest_ready_seconds",
        "How long the longest ready task has been so; 0 if there is none.",
        lambda queue: queue.oldest_ready_s,
    )
    yield of_each(
        "gauge", "kingtask_queue_paused", "1 if nothing of it is given to workers.", lambda queue: queue.paused
    )
    yield count("kingtask_queue_submitted_total", "Tasks accepted, by requeue too.", "submitted")
    yield count("kingtask_queue_started_total", "Attempts given to a worker.", "started")
    yield count("kingtask_queue_retried_total", "Failed attempts that another will follow.", "retried")
    yield count("kingtask_queue_lost_total", "Attempts whose worker stopped renewing them.", "lost")
    yield Family(
        kind="counter",
        name="kingtask_queue_finished_total",
        text="Tasks that have ended, by how.",
        labels=("queue", "outcome"),
        samples=(((queue.name, state), queue.counts.get(state, 0)) for queue in queues for state in sorted(TERMINAL)),
    )
