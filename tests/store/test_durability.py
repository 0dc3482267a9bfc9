"""`ack: replicas` on real replicas: what is confirmed is there after a failover, what cannot be is not confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis

from kingtask import policy
from kingtask.errors import ConfigurationError
from kingtask.policy import Ack
from kingtask.store import functions
from kingtask.store.store import BrokerStore, Store
from kingtask.task import TaskSpec
from tests.processes import PATIENCE_S, until
from tests.servers import FAST_REPLICATION, RedisServer
from tests.store.syncstore import SyncStore

POLICY = policy.Policy()
SOON_S = 0.3
"""The `ack_timeout` of what is not going to be confirmed."""


@pytest.fixture
def primary() -> Iterator[RedisServer]:
    with RedisServer(tcp=True, **FAST_REPLICATION) as running:
        yield running


@pytest.fixture
def replica(primary: RedisServer) -> Iterator[RedisServer]:
    with primary.replica() as running:
        until(lambda: in_step(primary.client()), "the replica is in step")
        yield running


def in_step(client: redis.Redis) -> bool:
    """True if a replica confirms what is written now."""
    client.set("written", 1)
    return client.execute_command("WAIT", 1, 1000) >= 1


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[None]:
    await store.open()
    try:
        yield
    finally:
        await store.close()


def broker_store(server: RedisServer, timeout_s: float = PATIENCE_S) -> BrokerStore:
    return BrokerStore(server.address, "acked", ack=Ack(level="replicas", timeout_s=timeout_s))


def some_task() -> tuple[str, functions.FunctionCall]:
    task_id = str(uuid4())
    return task_id, functions.submit(POLICY, [functions.prepare(task_id, TaskSpec(name="example"))])


async def submitted(store: BrokerStore, call: functions.FunctionCall) -> bool:
    """Submit; whether it was confirmed."""
    reached: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    store.submit(call, lambda value: None, reached.set_result)
    return await reached


async def until_submitted(store: BrokerStore, call: functions.FunctionCall) -> None:
    """Submit again and again, as a client does."""
    while not await submitted(store, call):
        pass


async def confirmed(store: Store) -> bool:
    reached: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    store.confirm(reached.set_result)
    return await reached


async def test_what_is_confirmed_is_on_the_replica(primary: RedisServer, replica: RedisServer) -> None:
    """Written by one connection, confirmed through another: every confirmed task is there after a failover."""
    store = broker_store(primary)
    tasks = [some_task() for _ in range(300)]
    async with opened(store):
        assert all(await asyncio.gather(*(submitted(store, call) for _, call in tasks)))
        primary.kill()
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    promoted = SyncStore(replica.client(), "acked")
    states = promoted.ask(functions.states([task_id for task_id, _ in tasks]))
    assert states == ["ready"] * 300


async def test_a_silent_replica_confirms_nothing_until_it_is_back(primary: RedisServer, replica: RedisServer) -> None:
    store = broker_store(primary, SOON_S)
    async with opened(store):
        await until_submitted(store, some_task()[1])
        replica.pause()
        _, call = some_task()
        assert not await submitted(store, call)
        assert not await submitted(store, call), "that it exists proves nothing of the replica"
        assert not await confirmed(store)
        replica.resume()
        await until_submitted(store, call)


async def test_submits_go_on_while_one_waits_for_its_replica(primary: RedisServer, replica: RedisServer) -> None:
    store = broker_store(primary)
    async with opened(store):
        replica.pause()
        stored: list[functions.Submitted] = []
        reached: asyncio.Queue[bool] = asyncio.Queue()
        for _ in range(20):
            store.submit(some_task()[1], stored.append, reached.put_nowait)
        while len(stored) < 20:
            await store.ask(next(functions.gather_stats()))
        assert reached.empty()
        replica.resume()
        assert all([await reached.get() for _ in range(20)])


async def test_a_full_server_still_confirms(primary: RedisServer, replica: RedisServer) -> None:
    """What drains it has to be confirmed as well."""
    store = broker_store(primary)
    async with opened(store):
        primary.client().config_set("maxmemory", 1)
        assert await confirmed(store)


async def test_a_server_that_was_demoted_in_between_confirms_nothing_older(
    primary: RedisServer, replica: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections outlive that, and it has replicas again; what it had and its primary had not is gone."""
    store = broker_store(primary)
    with RedisServer(tcp=True, **FAST_REPLICATION) as other:
        async with opened(store):
            assert await submitted(store, some_task()[1])
            client = primary.client()
            identity: Any = client.hgetall(meta := "{acked}:meta")
            other.client().hset(meta, mapping=identity)  # the same database, at an earlier time
            client.execute_command("REPLICAOF", "127.0.0.1", other.port)
            until(lambda: client.info("replication")["master_link_status"] == "up", "it copies the other")
            client.execute_command("REPLICAOF", "NO", "ONE")
            until(lambda: in_step(client), "its replica is back")
            SyncStore(client, "acked")  # has the functions again
            assert store.up
            assert not await confirmed(store)
            assert "history of the server has changed" in caplog.text


async def test_without_enough_replicas_it_is_refused_at_the_start(primary: RedisServer, replica: RedisServer) -> None:
    store = BrokerStore(primary.address, "acked", ack=Ack(level="replicas", replicas=2, timeout_s=SOON_S))
    with pytest.raises(ConfigurationError, match=r"needs 2 .* 1 are attached"):
        await store.open()
    await store.close()


async def test_a_lost_barrier_means_not_confirmed(primary: RedisServer, replica: RedisServer) -> None:
    store = broker_store(primary)
    async with opened(store):
        replica.pause()
        waiting = asyncio.create_task(submitted(store, some_task()[1]))
        await store.ask(next(functions.gather_stats()))
        primary.client().client_kill_filter(_type="normal", skipme=True)
        assert not await waiting
        replica.resume()


@pytest.mark.parametrize("kind", [Store, BrokerStore])
async def test_other_levels_are_proved_by_the_answer_itself(server: RedisServer, kind: type[Store]) -> None:
    store = (
        BrokerStore(server.address, uuid4().hex, ack=Ack(level="stored"))
        if kind is BrokerStore
        else Store(server.address, uuid4().hex, ack=Ack(level="stored"))
    )
    async with opened(store):
        reached: list[bool] = []
        store.confirm(reached.append)
        assert reached == [True]
