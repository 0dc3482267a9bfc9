"""Reads: few at a time, one for equal requests, the peers in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from kingtask.broker.reads import FEWEST, MOST, MOST_BYTES, Reads
from kingtask.states import State
from kingtask.store import functions
from kingtask.store.functions import FunctionCall
from tests.broker.fakes import LOST, FakeStore


class ReadsHarness:
    """`answers` are the values that came, by the task asked for."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.reads = Reads(self.store)
        self.answers: list[tuple[str, Any]] = []

    def get(self, task_id: str, *, peer: bytes = b"peer", of: str | None = None) -> None:
        self.reads.send(peer, functions.get(task_id).of(of), lambda value: self.answers.append((task_id, value)))

    def sent(self) -> list[str]:
        """The tasks of the calls under way."""
        return [call.arguments.get("id", "") for call, _ in self.store.sent]

    async def answer_all(self) -> list[str]:
        """Answer the calls under way; return the tasks of those that were sent then."""
        for _ in range(len(self.store.sent)):
            self.store.answer("get", "value")
        await asyncio.sleep(0)
        return self.sent()


async def test_few_calls_are_under_way_and_the_others_wait_in_order() -> None:
    setting = ReadsHarness()
    names = [str(number) for number in range(2 * MOST + 1)]
    for name in names:
        setting.get(name)
    assert setting.sent() == names[:MOST]
    for number in range(1, MOST // 2 + 1):
        assert setting.sent() == names[number - 1 : MOST], "no more than half have been answered"
        setting.store.answer("get", LOST)
        await asyncio.sleep(0)
    assert setting.sent() == names[MOST // 2 : MOST // 2 + MOST], "also after failures"
    assert await setting.answer_all() == names[MOST // 2 + MOST :]
    assert await setting.answer_all() == []
    assert [name for name, _ in setting.answers] == names


async def test_equal_requests_share_a_call_that_waits_and_no_other() -> None:
    """One that is under way may have read the record before a change whose reply the client has already seen."""
    setting = ReadsHarness()
    for _ in range(MOST):
        setting.get("busy")
    assert setting.sent() == ["busy"] * MOST
    for of in (None, "alice", None, "bob", "alice"):
        setting.get("busy", of=of)
    assert setting.sent() == ["busy"] * MOST
    assert await setting.answer_all() == ["busy"] * 3
    assert [call.arguments.get("of") for call, _ in setting.store.sent] == [None, "alice", "bob"]
    assert len(setting.answers) == MOST
    assert await setting.answer_all() == []
    assert len(setting.answers) == MOST + 5


async def test_pages_of_different_lists_are_different_calls() -> None:
    setting = ReadsHarness()
    pages: list[Any] = []
    for _ in range(MOST):
        setting.get("busy")
    for first in ("5", "6", "5"):
        call = functions.list_tasks(State.FAILED, "", first=first, last="-inf", rest=0, limit=50)
        setting.reads.send(b"peer", call, pages.append)
    await setting.answer_all()
    assert [setting.store.answer("list", number).arguments["from"] for number in (1, 2)] == ["5", "6"]
    assert pages == [1, 1, 2]


async def test_fewer_calls_are_under_way_after_large_results() -> None:
    """Sixteen results of 1 MB that came together stopped Redis and the broker for 60 ms."""
    setting = ReadsHarness()
    for number in range(500):
        setting.get(str(number))

    async def answer(size: int, times: int) -> int:
        for _ in range(times):
            setting.store.answer("get", functions.StoredTask(0, None, msgspec.Raw(bytes(size))))
            await asyncio.sleep(0)
        return len(setting.sent())

    assert await answer(MOST_BYTES // 3, MOST) in {2, 3}
    assert await answer(MOST_BYTES, 10) == FEWEST
    assert await answer(100, 100) > MOST // 2, "the effect of a large result wears off"


async def test_peers_take_turns() -> None:
    setting = ReadsHarness()
    for number in range(MOST + 3):
        setting.get(f"many-{number}", peer=b"many")
    setting.get("few-0", peer=b"few")
    setting.get("few-1", peer=b"few")
    later = await setting.answer_all()
    assert later == [f"many-{MOST}", "few-0", f"many-{MOST + 1}", "few-1", f"many-{MOST + 2}"]


class AwayStore(FakeStore):
    """Holds the first calls; once it is `away`, it answers at once."""

    away = False

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        if self.away:
            callback(LOST)
        else:
            super().send(call, callback)


async def test_any_number_of_reads_fails_together() -> None:
    setting = ReadsHarness()
    setting.store = store = AwayStore()
    setting.reads = Reads(store)
    for number in range(5_000):
        setting.get(str(number))
    store.away = True
    for _ in range(MOST):
        setting.store.answer("get", LOST)
    await asyncio.sleep(0)
    assert len(setting.answers) == 5_000
