"""Clients that wait, at the end of a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kingtask.broker import waiters as module
from kingtask.broker.waiters import Waiters
from kingtask.errors import StoreError
from kingtask.store.functions import FunctionCall, StoredTask
from kingtask.store.store import Store
from tests.broker.conftest import PATIENCE_MS


class _Silent(Store):
    def __init__(self) -> None:  # nothing is to be asked of it
        pass

    def send(self, *_: Any) -> None:
        raise AssertionError("a broker that has stopped asks Redis")


def test_who_comes_when_a_broker_has_stopped_is_sent_on_at_once() -> None:
    told: list[Any] = []
    waits = Waiters(_Silent())
    waits.stop()
    waits.add("6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11", 60.0, told.append)
    (answer,) = told
    assert isinstance(answer, StoreError)
    assert answer.kind == "stopping"
    assert len(waits) == 0


class _FailsOnce(Store):
    """Of the task's end nothing is published, and the first look at it fails."""

    up = True

    def __init__(self) -> None:
        self.looks = 0

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        if call.function == "states":
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("a fault of ours")
        callback({"wait": "running", "states": ["failed"], "get": StoredTask(0, None)}[call.function])


async def test_waited_tasks_are_looked_at_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    Waiters(_FailsOnce()).add("6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11", 60.0, lambda answer: answered.set())
    await asyncio.wait_for(answered.wait(), PATIENCE_MS / 1000)
