"""One gathering of stats for all that asked before it, and at most one in APART_S."""

from __future__ import annotations

import asyncio

import pytest

from kingtask.broker import stats_gatherer as module
from kingtask.broker.stats_gatherer import StatsGatherer
from kingtask.errors import StoreError
from kingtask.store.stats import QueueStats, StoreStats
from tests.broker.conftest import PATIENCE_MS
from tests.broker.fakes import LOST, FakeStore


def numbers_of(*names: str) -> list[QueueStats]:
    return [
        QueueStats(name=name, paused=False, scheduled=0, ready=0, running=0, oldest_waiting_s=0, totals={}, rates={})
        for name in names
    ]


class GathererHarness:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.gatherer = StatsGatherer(self.store)
        self.answers: list[StoreStats | StoreError] = []

    def ask(self) -> None:
        self.gatherer.ask(self.answers.append)

    def answer(self, queues: int = 0) -> StoreStats:
        """Answer the calls of a gathering of so many queues."""
        found = StoreStats([], [], [])
        self.store.answer("stats", ([(f"q{i:03}", False) for i in range(queues)], found))
        while self.store.sent and "queues" in self.store.sent[0].call.arguments:
            assert len(self.store.sent) == 1, "one call at a time"
            self.store.answer("stats", numbers_of(*self.store.sent[0].call.arguments["queues"]))
        return found

    async def until_sent(self) -> None:
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while not self.store.sent:  # noqa: ASYNC110  (the gatherer's timer sends the call)
                await asyncio.sleep(0)


@pytest.fixture
def setting() -> GathererHarness:
    return GathererHarness()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APART_S", 0.01)


async def test_a_long_gathering_takes_a_quarter_of_the_time(
    setting: GathererHarness, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = asyncio.get_running_loop().time()
    monkeypatch.setattr(module, "monotonic_s", lambda: now_s)
    setting.ask()
    now_s += 2.0
    setting.answer()
    setting.ask()
    assert not setting.store.sent
    now_s += 5.9
    setting.gatherer._begin()
    assert not setting.store.sent
    now_s += 0.2
    setting.gatherer._begin()
    assert len(setting.store.sent) == 1


async def test_the_first_gathering_begins_at_once(setting: GathererHarness) -> None:
    setting.ask()
    assert len(setting.store.sent) == 1
    found = setting.answer(queues=250)
    assert setting.answers == [found]
    assert [queue.name for queue in found.queues] == [f"q{i:03}" for i in range(250)]


async def test_a_second_gathering_does_not_begin_within_the_second(setting: GathererHarness) -> None:
    setting.ask()
    setting.answer()
    setting.ask()
    setting.ask()
    await asyncio.sleep(0)
    assert setting.store.sent == []
    assert (len(setting.answers), setting.gatherer.waiting) == (1, 2)


@pytest.mark.usefixtures("soon")
async def test_a_request_joins_the_next_gathering_and_all_share_it(setting: GathererHarness) -> None:
    setting.ask()
    for _ in range(3):
        setting.ask()
    assert len(setting.store.sent) == 1, "a gathering in progress may be older than a request"
    first = setting.answer()
    assert setting.gatherer.waiting == 3
    await setting.until_sent()
    second = setting.answer()
    assert [answer is second for answer in setting.answers] == [False, True, True, True]
    assert setting.answers[0] is first
    assert setting.gatherer.waiting == 0


async def test_no_gathering_begins_without_a_request(setting: GathererHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APART_S", 0.0)
    monkeypatch.setattr(module, "REST", 0)
    setting.ask()
    setting.answer()
    assert setting.store.sent == []
    setting.ask()
    assert len(setting.store.sent) == 1


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("calls", [0, 1])
async def test_a_failed_call_fails_its_gathering_and_the_next_one_goes_on(setting: GathererHarness, calls: int) -> None:
    setting.ask()
    setting.ask()
    if calls:
        setting.store.answer("stats", ([("a", False)], StoreStats([], [], [])))
    setting.store.answer("stats", LOST)
    assert setting.answers == [LOST]
    await setting.until_sent()
    assert setting.answers == [LOST, setting.answer()]
