"""Which database it is: who has worked on one writes to no other, and nobody begins one where something was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from kingtask import policy
from kingtask.errors import ConfigurationError, StoreError
from kingtask.policy import Ack
from kingtask.store import functions
from kingtask.store.keys import Keys
from kingtask.store.library import SCHEMA
from kingtask.store.redis.connection import connect
from kingtask.store.redis.handshake import DatabaseIdentity
from kingtask.store.store import BrokerStore, Store
from tests.processes import PATIENCE_S
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import SyncStore

STORED = Ack(level="stored")


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


def broker(server: RedisServer, namespace: str, cluster: str | None = None) -> BrokerStore:
    return BrokerStore(server.address, namespace, ack=STORED, cluster=cluster)


def worker(server: RedisServer, namespace: str, cluster: str | None = None) -> Store:
    return Store(server.address, namespace, ack=STORED, cluster=cluster)


BOTH = pytest.mark.parametrize("make", [broker, worker])
Make = Callable[..., Store]


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def everything(server: RedisServer, namespace: str) -> keyspace.Dump:
    return keyspace.dump(server.client(), Keys(namespace))


def cluster_of(server: RedisServer, namespace: str) -> str:
    value: Any = server.client().hget(Keys(namespace).meta, "cluster")
    return str(value.decode())


async def test_a_worker_waits_for_the_broker_that_begins_it(server: RedisServer, namespace: str) -> None:
    async with opened(worker(server, namespace)) as waiting:
        assert not waiting.up
        assert "a broker must create it" in waiting.problem
        assert everything(server, namespace) == {}
        async with opened(broker(server, namespace)):
            await until(lambda: waiting.up)
            assert (await waiting.ask(next(functions.gather_stats())))[1].brokers == []


async def test_two_brokers_share_what_one_began(server: RedisServer, namespace: str) -> None:
    async with opened(broker(server, namespace)):
        before = cluster_of(server, namespace)
        async with opened(broker(server, namespace)) as second:
            assert second.up
            assert cluster_of(server, namespace) == before


async def test_another_broker_may_begin_it_at_the_same_moment(server: RedisServer, namespace: str) -> None:
    connection = await connect(server.address, timeout_s=PATIENCE_S, on_lost=lambda connection, why: None)
    ask = connection.ask

    async def interrupted(*command: Any) -> Any:
        reply = await ask(*command)
        SyncStore(server.client(), namespace).ask(functions.open_namespace(SCHEMA, "other"))
        return reply

    connection.ask = interrupted  # type: ignore[method-assign]
    identity = DatabaseIdentity(None, creates=True)
    assert not await identity.check(connection, Keys(namespace)), "it is begun already"
    assert identity.cluster == "other"
    connection.abort("done")


@BOTH
async def test_what_was_emptied_under_it_is_left_alone_until_it_is_back(
    own: RedisServer, namespace: str, make: Make
) -> None:
    async with opened(broker(own, namespace)), opened(make(own, namespace)) as store:
        identity: Any = own.client().hgetall(Keys(namespace).meta)
        own.client().flushall()
        claim = functions.claim(policy.Policy(), "w1", functions.ClaimRequest(["default"], 1, bytes(16), 1))
        for call in (functions.pause(policy.Policy(), "default", True), claim, next(functions.gather_stats())):
            with pytest.raises(StoreError) as caught:
                await store.ask(call)
            assert caught.value.kind in ("foreign", "away")
            assert caught.value.stored == "no"
        await until(lambda: "has lost its identity" in store.problem)
        assert everything(own, namespace) == {}
        own.client().hset(Keys(namespace).meta, mapping=identity)
        await until(lambda: store.up)


@BOTH
async def test_keys_without_an_identity_refuse_the_start(own: RedisServer, namespace: str, make: Make) -> None:
    own.client().hset(f"{Keys(namespace).prefix}queues", "default", 0)
    before = everything(own, namespace)
    store = make(own, namespace)
    with pytest.raises(ConfigurationError, match="has keys and no identity"):
        await store.open()
    await store.close()
    assert everything(own, namespace) == before
    assert not own.client().function_list(), "not even functions were loaded"


@BOTH
async def test_a_database_that_is_named_is_the_only_one(own: RedisServer, namespace: str, make: Make) -> None:
    async with opened(make(own, namespace, cluster=32 * "0")) as elsewhere:
        assert "found none" in elsewhere.problem
        assert everything(own, namespace) == {}
    async with opened(broker(own, namespace)):
        pass
    async with opened(make(own, namespace, cluster=32 * "0")) as elsewhere:
        assert f"found {cluster_of(own, namespace)}" in elsewhere.problem
        assert not elsewhere.up
    async with opened(make(own, namespace, cluster=cluster_of(own, namespace))) as there:
        assert there.up


@pytest.mark.parametrize("schema", ["2", "x"])
async def test_a_newer_schema_refuses_the_start(own: RedisServer, namespace: str, schema: str) -> None:
    own.client().hset(Keys(namespace).meta, mapping={"schema": schema, "cluster": 32 * "0"})
    store = broker(own, namespace)
    with pytest.raises(ConfigurationError, match=rf"newer kingtask \(schema {schema}"):
        await store.open()
    await store.close()
    assert not own.client().function_list()


# ── a full server ────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_who_starts_on_a_full_server_can_drain_it(own: RedisServer, namespace: str, make: Make) -> None:
    async with opened(broker(own, namespace)):
        own.client().config_set("maxmemory", 1)
        async with opened(make(own, namespace)) as late:
            assert late.up
            assert await late.ask(functions.pause(policy.Policy(), "default", True)) == "ok"


async def test_functions_that_a_full_server_has_no_room_for_are_loaded_later(own: RedisServer, namespace: str) -> None:
    own.client().config_set("maxmemory", 1)
    async with opened(broker(own, namespace)) as store:
        assert not store.up
        assert "raise maxmemory" in store.problem
        own.client().config_set("maxmemory", 0)
        await until(lambda: store.up)
