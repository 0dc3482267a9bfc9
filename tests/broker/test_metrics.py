"""The metrics of a broker, and those of queues that it reads from Redis."""

from __future__ import annotations

from typing import Any

import pytest

from kingtask.broker import metrics as module
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.submit import SubmitBatcher
from kingtask.broker.waiters import Waiters
from kingtask.config import BrokerConfig
from kingtask.errors import REFUSALS, StoreError
from kingtask.metrics.collector import text_parts
from kingtask.store.functions import FunctionCall
from kingtask.store.stats import QueueFigures, QueuesPage
from tests.broker.fakes import FakeRouter, FakeStore, FakeTicker, FakeWakeups
from tests.metrics.scrape import Figures

CONFIG = BrokerConfig(max_pending=11, max_waits=12, max_tasks=13, max_queues=14, metrics_addr="127.0.0.1:9597")


def exposed(families: Any) -> Figures:
    return Figures(b"".join(text_parts(families)).decode())


def page(*names: str, cursor: str = "0", counts: dict[str, int] | None = None) -> QueuesPage:
    queues = [QueueFigures(name, False, 2, 1.5, counts or {}) for name in names]
    return QueuesPage(1, cursor, queues, 7, 8, 9, 3, 2)


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
    counts = {"scheduled": 4, "running": 5, "submitted": 6, "started": 7, "retried": 8, "lost": 9, "failed": 10}
    found = exposed(module.of_queues([page("mail", counts=counts)]))
    assert [found(f"kingtask_{name}") for name in ("queues", "tasks", "output_bytes", "workers", "brokers")] == [
        *(7, 8, 9, 3, 2)
    ]
    shown = {"ready": 2, "scheduled": 4, "running": 5, "oldest_ready_seconds": 1.5, "paused": 0}
    shown |= {"submitted_total": 6, "started_total": 7, "retried_total": 8, "lost_total": 9}
    assert {name: found(f"kingtask_queue_{name}", queue="mail") for name in shown} == shown
    assert found("kingtask_queue_finished_total", queue="mail", outcome="failed") == 10
    assert found("kingtask_queue_finished_total", queue="mail", outcome="succeeded") == 0


def test_without_pages_the_only_metric_says_so() -> None:
    (family,) = module.of_queues([])
    assert exposed([family])("kingtask_queues_told") == 0


class _Pages(FakeStore):
    """Answers each call of `queues` with the next page, and raises at the end."""

    def __init__(self, *pages: QueuesPage) -> None:
        super().__init__()
        self.cursors: list[str] = []
        self._pages = iter(pages)

    async def ask(self, call: FunctionCall) -> QueuesPage:
        self.cursors.append(call.arguments["cursor"])
        try:
            return next(self._pages)
        except StopIteration:
            raise StoreError("lost", "no answer") from None


async def test_queues_are_read_page_by_page() -> None:
    store = _Pages(page("a", cursor="17"), page("b"))
    assert [queue.name for read in await module.ask_queues(store) for queue in read.queues] == ["a", "b"]
    assert store.cursors == ["0", "17"]


async def test_no_more_queues_are_read_than_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUES", 2)
    store = _Pages(page("a", "b", cursor="17"), page("c"))
    pages = await module.ask_queues(store)
    assert (len(pages), store.cursors) == (1, ["0"])


async def test_a_failed_page_leaves_none() -> None:
    assert await module.ask_queues(_Pages(page("a", cursor="17"))) == []
