"""A connection that is lost answers every command; a broker reads records and lists over one of its own."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from kingtask.errors import StoreError
from kingtask.policy import Policy
from kingtask.store import functions
from kingtask.store.keys import Keys
from kingtask.store.redis import connection as module
from kingtask.store.redis.connection import Connection
from kingtask.store.redis.supervisor import SupervisedConnection
from kingtask.store.store import Store
from tests.servers import FAST_REPLICATION, RedisServer
from tests.store.syncstore import SyncStore
from tests.store.test_identity import broker, opened, until


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


async def test_a_reply_is_waited_for_as_long_as_parts_of_it_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    now_us = 1
    monkeypatch.setattr(module, "monotonic_us", lambda: now_us)
    connection = Connection(5.0, lambda connection, why: None)
    connection.connection_made(_Transport())
    answers: list[object] = []
    connection.send(("GET", "x"), answers.append)
    connection.data_received(b"$3\r\n")
    for _ in range(3):
        now_us += 4_000_000
        connection.data_received(b"a")
        connection._check_overdue()
    connection.data_received(b"\r\n")
    assert answers == [b"aaa"]
    connection.send(("GET", "x"), answers.append)
    now_us += 5_000_000
    connection._check_overdue()
    assert isinstance(answers[1], StoreError)


def link_of(store: Store, purpose: str) -> SupervisedConnection:
    (found,) = (link for link in store.links if link.purpose == purpose)
    return found


async def test_no_other_call_waits_behind_the_replies_of_reads(server: RedisServer) -> None:
    task_id = str(uuid4())
    found: list[functions.StoredTask | StoreError] = []
    async with opened(broker(server, uuid4().hex)) as store:
        connection = link_of(store, "read")._connection
        assert connection is not None
        assert connection._transport is not None
        connection._transport.pause_reading()
        for _ in range(100):
            store.send(functions.get(task_id), found.append)
        tick = functions.tick(Policy(), "broker.1", b"", upcoming=1, window_ms=1_000, housekeep=True)
        assert await store.ask(tick)
        assert await store.ask(functions.wait(task_id)) == "missing"
        assert await store.ask(functions.cancel(Policy(), task_id)) == "missing"
        assert found == []
        connection._transport.resume_reading()
        await until(lambda: len(found) == 100)


async def test_reads_leave_a_server_that_was_demoted_for_a_while() -> None:
    """A replica answers reads, of an earlier time, and refuses the ticks of the main connection."""
    namespace = uuid4().hex
    with RedisServer(tcp=True, **FAST_REPLICATION) as server, RedisServer(tcp=True, **FAST_REPLICATION) as other:
        async with opened(broker(server, namespace)) as store:
            client, meta = server.client(), Keys(namespace).meta
            main, reads = link_of(store, "broker"), link_of(store, "read")
            identity: Any = client.hgetall(meta)
            other.client().hset(meta, mapping=identity)  # the same database, at an earlier time
            SyncStore(other.client(), namespace)  # with the functions
            client.execute_command("REPLICAOF", "127.0.0.1", other.port)
            await until(lambda: client.info("replication")["master_link_status"] == "up")
            assert (await store.ask(functions.get(str(uuid4())))).result is None
            with pytest.raises(StoreError, match="READONLY"):
                await store.ask(functions.pause(Policy(), "mail", True))
            client.execute_command("REPLICAOF", "NO", "ONE")
            await until(lambda: main.up and reads.up and main.history == reads.history)
            assert (main.connects, reads.connects) == (2, 2)
            assert (await store.ask(functions.get(str(uuid4())))).result is None
