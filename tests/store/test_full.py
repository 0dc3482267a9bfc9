"""A server at maxmemory: what would grow it is refused, what drains it works, and then it takes tasks again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from kingtask.states import State
from kingtask.store import functions
from kingtask.store.library import SCHEMA
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import TimedStore

FULL = redis.exceptions.OutOfMemoryError


@pytest.fixture(scope="module")
def small_server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_policy="noeviction") as running:
        yield running


@pytest.fixture
def filling(small_server: RedisServer) -> Iterator[TimedStore]:
    """A store whose server can be made full."""
    store = TimedStore(small_server.client(), "full")
    yield store
    set_full(store, full=False)
    keyspace.check(keyspace.dump(store.client, store.keys))
    keyspace.remove(store.client, store.keys)


def set_full(store: TimedStore, *, full: bool) -> None:
    store.client.config_set("maxmemory", 1 if full else 0)


def pass_while_full(store: TimedStore, ms: int) -> None:
    """The test's clock is a key: it can only be moved while there is room."""
    set_full(store, full=False)
    store.pass_ms(ms)
    set_full(store, full=True)


def test_what_grows_it_is_refused_and_leaves_no_trace(filling: TimedStore) -> None:
    store = filling
    store.put()
    ended = store.put(queue="q")
    store.cancel(ended)
    fence = store.take()
    before = keyspace.dump(store.client, store.keys)
    set_full(store, full=True)
    for grow in (
        store.put,
        lambda: store.put(delay_s=1.0),
        lambda: store.requeue(ended),
        lambda: store.finish(store.ended(fence, stdout=bytes(5000))),
    ):
        with pytest.raises(FULL):
            grow()
    set_full(store, full=False)
    after = keyspace.dump(store.client, store.keys)
    assert {key: entry.value for key, entry in after.items()} == {key: entry.value for key, entry in before.items()}


def test_it_drains_and_takes_tasks_again(filling: TimedStore) -> None:
    store = filling
    scheduled = [store.put(delay_s=1.0, retry=(1.0,)) for _ in range(20)]
    ready = [store.put() for _ in range(20)]
    store.pause()
    set_full(store, full=True)

    assert store.ask(functions.open_namespace(SCHEMA, "anything"))[1] == SCHEMA, "a worker that connects now can work"
    assert store.pause(paused=False) == "ok"
    assert store.tick(housekeep=True).ready == []
    fences = [store.take() for _ in ready]
    assert store.extend(*fences, heartbeat=b"{}") == ["ok"] * 20
    assert store.finish(*(store.ended(fence) for fence in fences[:18]), cut=True) == ["succeeded"] * 18
    assert store.release(fences[18]) == ["ready"]
    assert store.cancel(ready[18]) == "ready"
    assert store.cancel(ready[19]) == "running"
    assert store.ask(functions.wait(ready[19])) == "running"
    assert store.end(fences[19], "failed", cut=True) == "cancelled"

    pass_while_full(store, 1000)
    assert store.tick().ready == [("default", 20)]
    fences = [store.take() for _ in scheduled]
    assert store.finish(*(store.ended(fence, "failed") for fence in fences), cut=True) == ["scheduled"] * 20
    pass_while_full(store, 1000)
    store.tick()
    assert [store.end(store.take(), cut=True) for _ in scheduled] == ["succeeded"] * 20
    assert store.claim(20) == []

    set_full(store, full=False)
    assert store.state(store.put()) == "ready"


def test_reading_works_throughout(filling: TimedStore) -> None:
    store = filling
    task = store.put()
    set_full(store, full=True)
    assert store.get(task).state is State.READY
    assert store.state(task) == "ready"
    assert store.ask(functions.clock()).now_us == store.now_ms * 1000
    call = functions.list_tasks(State.READY, "default", first="-inf", last="+inf", rest=0, limit=5)
    assert [row.id for row in store.ask(call).tasks] == [task]
    assert store.stats().queues[0].ready == 1
