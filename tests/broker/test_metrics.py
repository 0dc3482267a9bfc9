"""The metrics of a broker, and those of queues that it reads from Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kingtask.broker import metrics as module
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.stats_gatherer import StatsGatherer
from kingtask.broker.submit import SubmitBatcher
from kingtask.broker.waiters import Waiters
from kingtask.config import BrokerConfig
from kingtask.errors import REFUSALS
from kingtask.metrics.collector import text_parts
from kingtask.store.stats import Peer, QueueStats, StoreStats
from tests.broker.fakes import LOST, FakeRouter, FakeStore, FakeTicker, FakeWakeups
from tests.metrics.scrape import Figures

CONFIG = BrokerConfig(max_pending=11, max_waits=12, max_tasks=13, max_queues=14, metrics_addr="127.0.0.1:9597")


def exposed(families: Any) -> Figures:
    return Figures(b"".join(text_parts(families)).decode())


def stats(**totals: int) -> StoreStats:
    queue = QueueStats(
        name="mail", paused=False, scheduled=4, ready=2, running=5, oldest_waiting_s=1.5, totals=totals, rates={}
    )
    peers = [Peer(name=f"p{seen_s}", seen_s=seen_s, facts={}) for seen_s in (1.0, 19.9, 20.0)]
    return StoreStats([queue], peers, peers[:2], 8, 9)


class CountedWakeups(FakeWakeups):
    hints_sent = 21
    idle = 22


class _Ticker(FakeTicker):
    ticks, failed, lost, instants = 31, 32, 33, 34


def test_each_metric_of_a_broker_has_its_value() -> None:
    store, counters = FakeStore(), Counters()
    batcher = SubmitBatcher(store, CONFIG.policy, FakeWakeups(), FakeTicker())
    dispatcher = Dispatcher("broker.1", CONFIG, store, FakeRouter(counters), batcher, Waiters(store))
    dispatcher.pending, dispatcher.pending_bytes, dispatcher.draining = 41, 42, True
    counters.count("busy", "too many")
    found = exposed(module.of_broker(CONFIG, "fsync", dispatcher, CountedWakeups(), _Ticker(), counters))
    expected = {
        "in_flight": 41,
        "in_flight_bytes": 42,
        "in_flight_limit": 11,
        "waits": 0,
        "waits_limit": 12,
        "wakeups_total": 21,
        "idle_workers": 22,
        "draining": 1,
        "ticks_total": 31,
        "ticks_failed_total": 32,
        "lost_total": 33,
        "instants": 34,
    }
    assert {name: found(f"kingtask_broker_{name}") for name in expected} == expected
    assert (found("kingtask_tasks_limit"), found("kingtask_queues_limit")) == (13, 14)
    assert found("kingtask_output_bytes_limit") == CONFIG.max_result_bytes
    assert found("kingtask_broker_ack_info", level="fsync") == 1
    assert found("kingtask_broker_request_seconds_count", op="submit") == 0
    for code in REFUSALS:
        assert found("kingtask_broker_refusals_total", code=code) == (code == "busy"), code


def test_without_a_server_the_level_of_ack_is_unknown() -> None:
    store, counters = FakeStore(), Counters()
    batcher = SubmitBatcher(store, CONFIG.policy, FakeWakeups(), FakeTicker())
    dispatcher = Dispatcher("broker.1", CONFIG, store, FakeRouter(counters), batcher, Waiters(store))
    found = exposed(module.of_broker(CONFIG, None, dispatcher, CountedWakeups(), _Ticker(), counters))
    assert found("kingtask_broker_ack_info", level="unknown") == 1


def test_each_metric_of_a_queue_has_its_value() -> None:
    found = exposed(module.of_queues(stats(submitted=6, started=7, retried=8, lost=9, failed=10)))
    assert [found(f"kingtask_{name}") for name in ("queues", "tasks", "output_bytes", "workers", "brokers")] == [
        *(1, 8, 9, 2, 2)
    ]
    shown = {"ready": 2, "scheduled": 4, "running": 5, "oldest_ready_seconds": 1.5, "paused": 0}
    shown |= {"submitted_total": 6, "started_total": 7, "retried_total": 8, "lost_total": 9}
    assert {name: found(f"kingtask_queue_{name}", queue="mail") for name in shown} == shown
    assert found("kingtask_queue_finished_total", queue="mail", outcome="failed") == 10
    assert found("kingtask_queue_finished_total", queue="mail", outcome="succeeded") == 0


def test_without_stats_the_only_metric_says_so() -> None:
    (family,) = module.of_queues(None)
    assert exposed([family])("kingtask_queues_told") == 0


async def test_a_scrape_joins_a_gathering_of_stats() -> None:
    store = FakeStore()
    gatherer = StatsGatherer(store)
    asked = asyncio.ensure_future(module.ask_queues(gatherer))
    await asyncio.sleep(0)
    found = stats()
    store.answer("stats", ([], found))
    assert await asked is found


async def test_without_redis_a_scrape_has_no_queues() -> None:
    store = FakeStore()
    asked = asyncio.ensure_future(module.ask_queues(StatsGatherer(store)))
    await asyncio.sleep(0)
    store.answer("stats", LOST)
    assert await asked is None


async def test_a_scrape_does_not_wait_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUES_TIMEOUT_S", 0.0)
    store = FakeStore()
    assert await module.ask_queues(StatsGatherer(store)) is None
    store.answer("stats", ([], stats()))  # comes too late, and harms nothing
