"""Clients that wait, at the end of a broker."""

from __future__ import annotations

from typing import Any

from kingtask.broker.waiters import Waiters
from kingtask.errors import StoreError
from kingtask.store.store import Store


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
