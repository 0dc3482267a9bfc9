"""A connection that is lost answers every command."""

from __future__ import annotations

import asyncio
from typing import Any

from kingtask.errors import StoreError
from kingtask.store.redis.connection import Connection


class _Transport(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass


async def test_an_error_in_one_callback_keeps_no_other_from_its_answer() -> None:
    def fails(reply: object) -> None:
        raise RuntimeError("a fault of ours")

    connection = Connection(5.0, lambda connection, why: None)
    connection.connection_made(_Transport())
    answers: list[object] = []
    connection.send(("PING",), fails)
    connection.send(("PING",), answers.append)
    connection.abort("lost")
    (answer,) = answers
    assert isinstance(answer, StoreError)
    assert answer.stored == "unknown"
