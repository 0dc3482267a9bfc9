"""Clients that wait for the end of a task: publications, polls, timeouts, and the end of the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kingtask.broker import waiters as module
from kingtask.broker.waiters import Waiters
from kingtask.errors import StoreError
from kingtask.store.functions import FunctionCall
from kingtask.store.store import Store
from tests.broker.conftest import PATIENCE_MS
from tests.broker.fakes import LOST, FakeStore

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
OTHER = "0d0c7a42-95a8-4f5c-8a6c-0f2f0e6f8d55"


class WaitersHarness:
    """Waits of one broker; `answers` are those of all."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.waiters = Waiters(self.store)
        self.answers: list[str | StoreError | None] = []

    def wait(self, task_id: str = ID, timeout_s: float = 60.0, state: str | StoreError = "running") -> None:
        """A wait for a task that Redis has in this state."""
        self.waiters.add(task_id, timeout_s, self.answers.append)
        self.store.answer("wait", state)


async def test_a_wait_ends_with_the_publication_of_its_task() -> None:
    setting = WaitersHarness()
    setting.wait()
    setting.waiters.ended(OTHER)
    assert not setting.store.sent
    setting.waiters.ended(ID)
    assert (setting.answers, len(setting.waiters)) == ([None], 0)


async def test_all_waits_for_one_task_end_together() -> None:
    setting = WaitersHarness()
    setting.wait()
    setting.wait()
    assert len(setting.waiters) == 2
    setting.waiters.ended(ID)
    assert (setting.answers, setting.store.sent) == ([None, None], [])


async def test_a_wait_for_an_ended_task_is_answered_at_once() -> None:
    setting = WaitersHarness()
    setting.wait(state="succeeded")
    assert setting.answers == [None]


@pytest.mark.parametrize("state", ["missing", "foreign", LOST])
async def test_a_wait_that_cannot_begin_is_answered_at_once(state: str | StoreError) -> None:
    setting = WaitersHarness()
    setting.wait(state=state)
    assert (setting.answers, len(setting.waiters)) == ([state], 0)


async def test_a_wait_is_answered_once() -> None:
    setting = WaitersHarness()
    setting.waiters.add(ID, 60.0, setting.answers.append, "alice")
    setting.waiters.ended(ID)
    assert setting.store.answer("wait", "foreign").arguments["of"] == "alice"
    assert setting.answers == [None]


async def test_a_wait_that_times_out_is_answered() -> None:
    setting = WaitersHarness()
    setting.wait(timeout_s=0.0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(setting.waiters) == 0
    setting.waiters.ended(ID)
    assert (setting.answers, setting.store.sent) == ([None], [])


async def test_a_poll_finds_ends_whose_publication_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    setting = WaitersHarness()
    ids = [f"{n}{ID[1:]}" for n in range(3)]
    for task_id in ids:
        setting.wait(task_id)
    setting.waiters.poll()
    first = setting.store.answer("states", ["running", ""])
    second = setting.store.answer("states", LOST)
    assert [first.arguments["ids"], second.arguments["ids"]] == [ids[:2], ids[2:]]
    assert (setting.answers, len(setting.waiters)) == ([None], 2)
    setting.waiters.ended(ids[1])
    assert len(setting.waiters) == 2, "the second has ended"


async def test_no_poll_is_sent_while_redis_is_unreachable_or_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.0)
    setting = WaitersHarness()
    setting.store.connected = False
    setting.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not setting.store.sent
    setting.waiters.ended(ID)
    setting.store.connected = True
    for _ in range(5):
        await asyncio.sleep(0)
    assert not setting.store.sent


async def test_a_broker_that_stops_ends_its_waits_and_refuses_new_ones() -> None:
    setting = WaitersHarness()
    setting.wait()
    setting.waiters.stop()
    setting.waiters.add(OTHER, 60.0, setting.answers.append)
    setting.waiters.stop()
    assert [answer.kind for answer in setting.answers if isinstance(answer, StoreError)] == ["stopping", "stopping"]
    assert (len(setting.waiters), setting.store.sent) == (0, [])


class _FailsOnce(Store):
    """Publishes no end, and raises at the first poll."""

    up = True

    def __init__(self) -> None:
        self.polls = 0

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        if call.function == "states":
            self.polls += 1
            if self.polls == 1:
                raise RuntimeError("a fault of ours")
        callback({"wait": "running", "states": ["failed"]}[call.function])


async def test_waited_tasks_are_polled_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)
    answered = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    Waiters(_FailsOnce()).add(ID, 60.0, lambda answer: answered.set())
    await asyncio.wait_for(answered.wait(), PATIENCE_MS / 1000)
