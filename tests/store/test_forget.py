"""forget: removes the record of an ended task, and everything that counts or lists it."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import functions
from tests.store import keyspace
from tests.store.syncstore import TimedStore


def named(store: TimedStore, task: str) -> list[str]:
    """The keys that name the task."""
    view = keyspace.dump(store.client, store.keys)
    members = {key: [member.decode() for member in entry.value] for key, entry in view.items()}
    return [key for key, found in members.items() if task in key or any(task in member for member in found)]


def kept(store: TimedStore) -> int:
    return int(store.client.hget(store.keys.meta, "kept") or 0)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
def test_nothing_of_an_ended_task_is_left(store: TimedStore, state: str) -> None:
    store.tick()
    task, other = (store.put(expires_at=store.now_ms / 1000 + 1) for _ in range(2))
    if state in ("succeeded", "failed"):
        for fence in (store.take(), store.take()):
            store.finish(store.ended(fence, "final" if state == "failed" else state, stdout=b"12345", stderr=b"6"))
        assert kept(store) == 12
    elif state == "cancelled":
        store.cancel(task)
        store.cancel(other)
    store.pass_ms(1000)
    store.tick()
    assert store.state(task) == state
    assert f"finished:{state}" in named(store, task)
    assert store.forget(task) == "forgotten"
    assert named(store, task) == []
    assert kept(store) == (6 if state in ("succeeded", "failed") else 0)
    assert store.state(other) == state
    assert store.forget(task) == "missing", "so it may be repeated"
    listed = functions.list_tasks(State(state), "", first="+inf", last="-inf", rest=0, limit=9)
    assert [found.id for found in store.ask(listed).tasks] == [other]


def test_a_living_task_stays(store: TimedStore) -> None:
    for state in ("scheduled", "ready", "running"):
        task = store.put(queue=state, delay_s=5.0 if state == "scheduled" else 0.0)
        if state == "running":
            store.take(queues=[state])
        assert store.forget(task) == state
        assert store.state(task) == state


def test_outputs_that_were_dropped_count_once(store: TimedStore) -> None:
    store.policy = Policy(max_result_bytes=5)
    store.tick()
    old = store.put()
    store.finish(store.ended(store.take(), stdout=b"12345"))
    store.pass_ms(1)
    new = store.put()
    store.finish(store.ended(store.take(), stdout=b"123"))
    assert (store.get(old).dropped, kept(store)) == (True, 3)
    assert store.forget(old) == "forgotten"
    assert kept(store) == 3
    assert store.forget(new) == "forgotten"
    assert kept(store) == 0


def test_the_id_is_free_again(store: TimedStore) -> None:
    spec = store.spec()
    task = spec.id or ""
    store.submit(spec)
    store.end(store.take())
    store.forget(task)
    assert store.submit(spec).outcomes == ["ready"]
    store.end(store.take(), "final")
    assert store.state(task) == "failed"
    again = store.new_id()
    assert store.requeue(task, again) == ("ready", "default")
    store.forget(task)
    assert store.requeue(task, again) == ("exists", ""), "a requeue may be repeated"
