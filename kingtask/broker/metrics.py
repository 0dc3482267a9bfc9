"""The metrics of a broker, and those of the queues, which it reads from Redis.

Every broker of a namespace exposes the same metrics of queues: aggregate them by `max by (queue)`, not by `sum`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily as Counter
from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import HistogramMetricFamily, InfoMetricFamily, Metric

from kingtask.broker import counters as kinds
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.relay import Relay
from kingtask.broker.stats_gatherer import StatsGatherer
from kingtask.broker.ticker import Ticker
from kingtask.broker.wakeups import Wakeups
from kingtask.config import BrokerConfig
from kingtask.errors import REFUSALS, StoreError
from kingtask.event import Event
from kingtask.metrics.collector import by_label, in_parts
from kingtask.states import TERMINAL
from kingtask.store.redis.connection import answer_of
from kingtask.store.stats import StoreStats

log = logging.getLogger("kingtask.broker")

MAX_QUEUES = 1_000
"""In one scrape, with some 12 lines each. Of more queues only some are shown, and their number."""
QUEUES_TIMEOUT_S = 3.0
"""For Redis; after it a scrape has the other metrics."""

KINDS = (*REFUSALS, kinds.DROPPED_REPLY, kinds.EMPTY_MESSAGE, kinds.UNKNOWN_TOPIC, kinds.CUT_OFF, kinds.CONNECTION)


async def ask_queues(gatherer: StatsGatherer) -> StoreStats | None:
    """Read the numbers of the queues from Redis. Return None if that fails or takes too long."""
    try:
        async with asyncio.timeout(QUEUES_TIMEOUT_S):
            found: StoreStats = await answer_of(gatherer.ask)
    except (StoreError, TimeoutError) as error:
        log.debug(Event("queues=unknown", error=str(error)))
        return None
    return found


def of_broker(
    config: BrokerConfig,
    ack_level: str | None,
    dispatcher: Dispatcher,
    wakeups: Wakeups,
    ticker: Ticker,
    refused: Counters,
) -> Iterator[Metric]:
    yield Gauge("kingtask_broker_in_flight", "Requests that wait for Redis.", dispatcher.pending)
    yield Gauge("kingtask_broker_in_flight_bytes", "The bytes of these requests.", dispatcher.pending_bytes)
    yield Gauge("kingtask_broker_in_flight_limit", "max_pending: above it the reply is busy.", config.max_pending)
    yield Gauge("kingtask_broker_waits", "Clients that wait for the end of a task.", dispatcher.waiting)
    yield Gauge("kingtask_broker_waits_limit", "max_waits: above it the reply is busy.", config.max_waits)
    text = "Error replies by code, and dropped messages, replies and connections."
    counts = {**dict.fromkeys(KINDS, 0), **refused.counts}
    yield from by_label(Counter, "kingtask_broker_refusals_total", text, "code", counts)
    yield Counter("kingtask_broker_wakeups_total", "Hints sent to idle workers.", wakeups.hints_sent)
    yield Gauge("kingtask_broker_idle_workers", "Connections of workers that wait for a hint.", wakeups.idle)
    yield Counter("kingtask_broker_ticks_total", "Calls of tick, which makes due tasks ready.", ticker.ticks)
    yield Counter("kingtask_broker_ticks_failed_total", "Ticks that Redis refused or did not answer.", ticker.failed)
    yield Counter("kingtask_broker_lost_total", "Lost attempts found by the ticks of this broker.", ticker.lost)
    yield Gauge("kingtask_broker_instants", "Instants of the next minute that the timer knows.", ticker.instants)
    yield Gauge("kingtask_broker_draining", "1 while the broker stops.", dispatcher.draining)
    level = {"level": ack_level or "unknown"}  # of kingtask_broker_ack_info
    yield InfoMetricFamily("kingtask_broker_ack", "The durability of an acknowledgement.", level)
    yield Gauge("kingtask_tasks_limit", "max_tasks: above it the reply is busy.", config.max_tasks)
    yield Gauge("kingtask_queues_limit", "max_queues: above it the reply is busy.", config.max_queues)
    yield Gauge("kingtask_output_bytes_limit", "max_result_bytes: above it the oldest go.", config.max_result_bytes)
    text = "From a request to its reply."
    yield from by_label(HistogramMetricFamily, "kingtask_broker_request_seconds", text, "op", dispatcher.times)


def of_relay(relay: Relay) -> Iterator[Metric]:
    yield Gauge("kingtask_broker_connections", "Connections of clients and workers.", len(relay.connections))
    yield Gauge("kingtask_broker_connections_limit", "Above it new ones are closed.", relay.most)
    yield Gauge("kingtask_broker_reply_bytes", "Bytes of replies that clients have not read.", relay.unread)
    yield Gauge(
        "kingtask_broker_reply_bytes_limit", "max_reply_bytes: above it replies are busy.", relay.max_reply_bytes
    )
    yield Gauge("kingtask_broker_held_bytes", "Bytes of messages that are not complete.", relay.held)


def of_queues(found: StoreStats | None) -> Iterator[Metric]:
    """Without `found` the only metric is that Redis did not answer."""
    yield Gauge("kingtask_queues_told", "1 if Redis returned the queues in time for this scrape.", found is not None)
    if found is None:
        return
    queues = found.queues[:MAX_QUEUES]

    def gauge(name: str, text: str, field: str) -> Iterator[Metric]:
        return in_parts(Gauge, name, text, ("queue",), (((queue.name,), getattr(queue, field)) for queue in queues))

    def count(name: str, text: str, total: str) -> Iterator[Metric]:
        samples = (((queue.name,), queue.totals.get(total, 0)) for queue in queues)
        return in_parts(Counter, name, text, ("queue",), samples)

    yield Gauge("kingtask_queues", "Names of queues; at most 1,000 of them have metrics.", len(found.queues))
    yield Gauge("kingtask_tasks", "Tasks that have not ended.", found.live)
    yield Gauge("kingtask_output_bytes", "Bytes of outputs, and of what ended tasks were given.", found.kept_bytes)
    yield Gauge("kingtask_workers", "Workers with a heartbeat within 20 s.", sum(peer.alive for peer in found.workers))
    yield Gauge("kingtask_brokers", "Brokers with a heartbeat within 20 s.", sum(peer.alive for peer in found.brokers))
    yield from gauge("kingtask_queue_ready", "Tasks that a worker could claim now.", "ready")
    yield from gauge("kingtask_queue_scheduled", "Tasks that wait for their instant, with retries.", "scheduled")
    yield from gauge("kingtask_queue_running", "Attempts in progress.", "running")
    text = "How long the oldest ready task has waited; 0 if there is none."
    yield from gauge("kingtask_queue_oldest_ready_seconds", text, "oldest_waiting_s")
    yield from gauge("kingtask_queue_paused", "1 if workers get no task of this queue.", "paused")
    yield from count("kingtask_queue_submitted_total", "Tasks accepted, also by requeue.", "submitted")
    yield from count("kingtask_queue_started_total", "Attempts claimed by a worker.", "started")
    yield from count("kingtask_queue_retried_total", "Failed attempts with a retry to follow.", "retried")
    yield from count("kingtask_queue_lost_total", "Attempts whose lease expired.", "lost")
    samples = (((queue.name, state), queue.totals.get(state, 0)) for queue in queues for state in sorted(TERMINAL))
    text = "Tasks that have ended, by outcome."
    yield from in_parts(Counter, "kingtask_queue_finished_total", text, ("queue", "outcome"), samples)
