"""`max_queues` of permissions.yaml: how many names of queues the clients of an owner may make."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.store import functions
from kingtask.store.functions import Quota
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import START_MS, TimedStore

DAY_MS = 86_400_000


def names(store: TimedStore) -> set[str]:
    return {queue.name for queue in store.stats().queues}


def put_in(store: TimedStore, *queues: str) -> list[str]:
    return store.submit(*(store.spec(queue=queue) for queue in queues)).outcomes


def test_an_owner_makes_no_more_names_than_it_may(store: TimedStore) -> None:
    store.quota = Quota("alice", queues=2)
    assert put_in(store, "a", "b", "c", "a", "d") == ["ready", "ready", "too_many_names", "ready", "too_many_names"]
    assert names(store) == {"a", "b"}, "a refusal leaves no name"
    store.quota = Quota("bob", queues=1)
    assert put_in(store, "a", "c", "d") == ["ready", "ready", "too_many_names"], "only one of these is new"
    store.quota = None
    assert put_in(store, "d", "e") == ["ready", "ready"], "a client without the bound is not counted"
    store.quota = Quota("alice", queues=3)
    assert put_in(store, "f", "g") == ["ready", "too_many_names"], "the bound itself may change"


def test_a_batch_may_have_tasks_of_several_owners(store: TimedStore) -> None:
    """A refusal for one client says nothing of the next one."""
    quotas = [Quota("alice", queues=0), Quota("bob", queues=1), Quota("alice", queues=0), None]
    queues = ["a", "a", "b", "b"]
    prepared = [
        functions.prepare(task, store.spec(id=task, queue=queue), quota)
        for task, queue, quota in zip([store.new_id() for _ in quotas], queues, quotas, strict=True)
    ]
    outcomes = store.ask(functions.submit(store.policy, prepared)).outcomes
    assert outcomes == ["too_many_names", "ready", "too_many_names", "ready"]


def test_a_pause_and_a_requeue_make_names_too(store: TimedStore) -> None:
    old = store.put(queue="gone")
    store.cancel(old)
    forget(store, "gone")
    store.quota = Quota("alice", queues=1)
    assert store.pause("a") == "ok"
    assert store.pause("b") == "too_many_names"
    assert store.pause("a", paused=False) == "ok"
    assert store.requeue(old) == ("too_many_names", "")
    store.quota = Quota("alice", queues=2)
    assert store.requeue(old) == ("ready", "gone")
    assert store.pause("b") == "too_many_names"


def forget(store: TimedStore, *queues: str) -> None:
    """Let so much time pass, and housekeeping examine so many queues, each at random, that these are forgotten."""
    store.pass_ms(DAY_MS + 1)
    for _ in range(300):
        store.tick(housekeep=True)
    assert not names(store) & set(queues)


def test_a_forgotten_name_frees_its_place(store: TimedStore) -> None:
    store.quota = Quota("alice", queues=2)
    tasks = [store.put(queue="a"), store.put(queue="b")]
    store.cancel(tasks[0])
    forget(store, "a")
    assert put_in(store, "c", "d") == ["ready", "too_many_names"]
    assert names(store) == {"b", "c"}
    for task in store.claim(2, queues=["b", "c"]):
        store.cancel(task.id)
    store.extend()  # hands both back, so that the cancel ends them
    forget(store, "b", "c")
    assert not store.client.exists(f"{store.keys.prefix}named:alice"), "no key is left of an owner without names"


def test_a_name_made_by_another_owner_does_not_count(store: TimedStore) -> None:
    store.quota = Quota("alice", queues=1)
    task = store.put(queue="a")
    store.cancel(task)
    forget(store, "a")
    store.quota = Quota("bob", queues=1)
    store.put(queue="a")
    store.quota = Quota("alice", queues=1)
    assert put_in(store, "b") == ["ready"]


def test_both_bounds_of_a_quota_hold(store: TimedStore) -> None:
    store.quota = Quota("alice", 2, queues=1)
    assert put_in(store, "a", "b", "a", "a") == ["ready", "too_many_names", "ready", "quota_exceeded"]
    assert put_in(store, "b") == ["quota_exceeded"]


def test_names_are_bounded_for_all_before_those_of_an_owner(store: TimedStore) -> None:
    store.policy = Policy(max_queues=1)
    store.quota = Quota("alice", queues=5)
    assert put_in(store, "a", "b") == ["ready", "too_many_queues"]


def test_entries_by_mistake_are_removed_when_they_are_in_the_way(store: TimedStore) -> None:
    """Names that were deleted from outside, here all, and an index with others than its own."""
    store.quota = Quota("alice", queues=300)
    index = f"{store.keys.prefix}named:alice"
    store.client.zadd(index, {f"gone{i}": START_MS for i in range(300)})
    assert put_in(store, "a", "b") == ["ready", "ready"]
    assert store.client.zcard(index) == 300 - 50 + 2
    keyspace.remove(store.client, store.keys)


def test_a_damaged_index_of_names_refuses_its_owner_alone(store: TimedStore, server: RedisServer) -> None:
    store.client.set(f"{store.keys.prefix}named:alice", "not an index")
    store.quota = Quota("alice", queues=5)
    assert put_in(store, "a") == ["too_many_names"]
    store.quota = Quota("bob", queues=5)
    assert put_in(store, "a") == ["ready"]
    keyspace.remove(store.client, store.keys)


def test_a_damaged_index_of_names_stops_no_housekeeping(store: TimedStore) -> None:
    store.quota = Quota("alice", queues=5)
    store.cancel(store.put(queue="a"))
    store.client.delete(f"{store.keys.prefix}named:alice")
    store.client.set(f"{store.keys.prefix}named:alice", "not an index")
    forget(store, "a")
    keyspace.remove(store.client, store.keys)


@pytest.mark.parametrize("quota", [None, Quota("alice", 5)])
def test_without_the_bound_nothing_is_stored(store: TimedStore, quota: Quota | None) -> None:
    store.quota = quota
    put_in(store, "a")
    assert not store.client.exists(f"{store.keys.prefix}named:alice")
    assert not store.client.hexists(f"{store.keys.prefix}counts:a", "owner")
