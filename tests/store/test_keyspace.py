"""The keyspace walk bites: whatever would grow without end, or is not what the counters say, fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kingtask.policy import Policy
from kingtask.store.functions import Quota
from tests.store import keyspace
from tests.store.key_patterns import KEY_PATTERNS
from tests.store.syncstore import START_MS, TimedStore

LIMITS = Policy(max_queues=9, max_tasks=9, max_result_bytes=99)


@pytest.fixture
def used(store: TimedStore) -> Iterator[TimedStore]:
    """A namespace with every kind of key, and nothing wrong with it."""
    store.policy = LIMITS
    store.client.hset(store.keys.meta, mapping={"schema": 1, "cluster": "0" * 32})
    store.quota = Quota("alice", 2, True)
    store.put()
    store.finish(store.ended(store.take(), stdout=b"57"))
    store.quota = Quota("alice", 2, queues=1)
    store.put()
    store.pause("mail", paused=False)
    store.quota = None
    store.take()
    store.put(expires_at=START_MS / 1000 + 60)
    store.put(expires_at=START_MS / 1000 + 60, delay_s=9.0)
    store.extend(worker="w2", heartbeat=b"{}")
    store.tick(housekeep=True)
    yield store
    keyspace.remove(store.client, store.keys)


def walk(store: TimedStore) -> None:
    keyspace.check(keyspace.dump(store.client, store.keys), LIMITS)


def test_every_kind_of_key_has_its_bound_named(used: TimedStore) -> None:
    assert keyspace.BOUNDS.keys() == KEY_PATTERNS.keys()
    assert all(bound.by for bound in keyspace.BOUNDS.values())
    walk(used)
    found = keyspace.dump(used.client, used.keys)
    for kind, pattern in KEY_PATTERNS.items():
        assert any(map(pattern.fullmatch, found)), f"nothing here shows that {kind} is looked at"


def ended(store: TimedStore) -> str:
    return next(key for key in tasks(store) if store.client.hexists(key, "finished"))


def living(store: TimedStore) -> str:
    return next(key for key in tasks(store) if not store.client.hexists(key, "finished"))


def tasks(store: TimedStore) -> list[str]:
    found = keyspace.dump(store.client, store.keys)
    return [f"{store.keys.prefix}{key}" for key in found if key.startswith("task:")]


Spoil = Callable[[Any, str, TimedStore], Any]
"""Given the client, the prefix and the store."""

SPOILT: dict[str, Spoil] = {
    "a key of no kind": lambda r, p, s: r.set(f"{p}log", 1),
    "a key of no kind with a TTL": lambda r, p, s: r.set(f"{p}log", 1, ex=60),
    "an ended task kept for ever": lambda r, p, s: r.persist(ended(s)),
    "a living task that would vanish": lambda r, p, s: r.expire(living(s), 60),
    "a field that nobody knows": lambda r, p, s: r.hset(living(s), "log", 1),
    "attempts without end": lambda r, p, s: r.hset(ended(s), mapping={f"attempt:{n}": b"\x90" for n in range(73)}),
    "an ended task that has been forgotten": lambda r, p, s: r.zrem(f"{p}finished:succeeded", ended(s)[len(p) + 5 :]),
    "ended tasks without end": lambda r, p, s: r.zadd(
        f"{p}finished:failed", {str(n): n for n in range(keyspace.FINISHED_CAP + 1)}
    ),
    "a name of a queue that counts for another owner": lambda r, p, s: r.zadd(f"{p}named:bob", {"mail": 1}),
    "a name of a queue that is not counted": lambda r, p, s: r.delete(f"{p}named:alice"),
    "an entry of schedule without a task": lambda r, p, s: r.zadd(f"{p}schedule", {s.new_id(): 1}),
    "an entry of ready without a task": lambda r, p, s: r.zadd(f"{p}ready:default", {s.new_id(): 1}),
    "an entry of running without a task": lambda r, p, s: r.zadd(f"{p}running", {s.new_id(): 1}),
    "an entry of expiry without a task": lambda r, p, s: r.zadd(f"{p}expiry", {s.new_id(): 1}),
    "a ready queue that nobody uses": lambda r, p, s: r.zadd(f"{p}ready:other", {s.new_id(): 1}),
    "a task of a client that does not know it": lambda r, p, s: r.zadd(f"{p}owned:alice", {s.new_id(): 1}),
    "clients' tasks without end": lambda r, p, s: r.zadd(f"{p}owned:bob", {s.new_id(): 1}),
    "an index that would vanish": lambda r, p, s: r.expire(f"{p}schedule", 60),
    "what a worker held, for ever": lambda r, p, s: r.persist(f"{p}held:w1"),
    "too many queues": lambda r, p, s: r.hset(f"{p}queues", mapping={f"q{n}": 0 for n in range(10)}),
    "counters of no queue": lambda r, p, s: r.hset(f"{p}counts:other", "touched", 1),
    "counters without end": lambda r, p, s: r.hset(f"{p}counts:default", "log", 1),
    "a wrong counter of a queue": lambda r, p, s: r.hincrby(f"{p}counts:default", "running", 1),
    "workers without end": lambda r, p, s: r.hset(
        f"{p}workers", mapping={str(n): "0" * 13 for n in range(keyspace.PEERS_CAP + 1)}
    ),
    "an index of workers without end": lambda r, p, s: r.zadd(
        f"{p}workers:seen", {str(n): n for n in range(keyspace.PEERS_CAP + 1)}
    ),
    "a broker that cannot be forgotten": lambda r, p, s: r.hset(f"{p}brokers", "b", "{}"),
    "a broker that no index names": lambda r, p, s: r.zrem(f"{p}brokers:seen", "b1"),
    "a record of the namespace without end": lambda r, p, s: r.hset(s.keys.meta, "log", 1),
    "a wrong number of living tasks": lambda r, p, s: r.hincrby(s.keys.meta, "live", -1),
    "a wrong sum of outputs": lambda r, p, s: r.hincrby(s.keys.meta, "kept", 1),
    "an output that nothing counts": lambda r, p, s: r.hset(ended(s), "err", "uncounted"),
    "an output that is never taken off": lambda r, p, s: r.delete(f"{p}outputs:until"),
    "an output that an owner's index lacks": lambda r, p, s: r.delete(f"{p}kept:alice"),
    "a wrong sum of an owner": lambda r, p, s: r.zincrby(f"{p}kept", 1, "alice"),
    "a wrong size of what was given": lambda r, p, s: r.hset(ended(s), "g", 5000),
    "more outputs than may be": lambda r, p, s: (
        [r.zadd(f"{p}outputs:{index}", {f"{s.new_id()[:-1]}f1:100": 1}) for index in ("ended", "until")]
        + [r.hincrby(s.keys.meta, "kept", 100)]
    ),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_it_fails_on(used: TimedStore, spoil: Spoil) -> None:
    walk(used)
    assert spoil(used.client, used.keys.prefix, used) is not None
    with pytest.raises(AssertionError):
        walk(used)


def test_it_fails_on_more_living_tasks_than_may_be(used: TimedStore) -> None:
    found = keyspace.dump(used.client, used.keys)
    with pytest.raises(AssertionError):
        keyspace.check(found, Policy(max_tasks=2))
