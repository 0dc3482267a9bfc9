"""requeue: a new task, due now, of one that has ended."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from tests.store.syncstore import START_MS, TimedStore, with_id


def test_the_new_task_is_the_old_one_again(store: TimedStore) -> None:
    old = store.put(
        args=("a", "ü"),
        stdin=b"\x00\xff",
        queue="q",
        priority=7,
        retry=(1.0, 86_400.0),
        delay_s=1.0,
        expires_at=START_MS / 1000 + 60,
        keep_result_s=60.0,
        on_lost="fail",
        tags=("t",),
    )
    store.pass_ms(1000)
    store.tick()
    store.end(store.take(queues=["q"]), "final")
    store.pass_ms(120_000)  # past its expiry
    new = store.new_id()
    assert store.requeue(old, new) == ("ready", "q")
    result, before = store.get(new), store.get(old)
    assert (result.state, result.origin) == (State.READY, old)
    assert (result.name, result.args, result.tags) == (before.name, before.args, before.tags)
    assert (result.queue, result.priority) == ("q", 7)
    assert result.created_at == result.due_at == store.now_ms / 1000
    store.tick()
    (claimed,) = store.claim(queues=["q"], token=b"t" * 16)
    assert (claimed.id, claimed.number, claimed.fail_if_lost) == (new, 1, True)
    assert store.state(old) == "failed", "the old task is left as it is"


def test_who_submits_it_as_it_lies_there_submits_it_again(store: TimedStore) -> None:
    """Its plan has the one form that a plan has: what is default at its end is left out."""
    for more in ({}, {"queue": "q"}, {"retry": (1.0,)}, {"priority": 7}, {"keep_result_s": 9.0}):
        spec = store.spec(start_at=START_MS / 1000 - 5, expires_at=START_MS / 1000 + 60, **more)
        assert spec.id
        store.submit(spec)
        store.cancel(spec.id)
        new = store.new_id()
        store.requeue(spec.id, new)
        assert store.submit(with_id(spec, id=new, start_at=0.0, expires_at=None)).outcomes == ["exists"], more
        assert store.submit(with_id(spec, id=new)).outcomes == ["conflict"], more


def test_its_retries_begin_anew(store: TimedStore) -> None:
    old = store.put(retry=(3.0,))
    assert store.end(store.take(), "failed") == "scheduled"
    store.cancel(old)
    store.requeue(old)
    assert store.end(store.take(), "failed") == "scheduled"
    store.pass_ms(3000)
    store.tick()
    assert store.end(store.take(), "failed") == "failed"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
def test_from_each_end(store: TimedStore, state: str) -> None:
    old = store.put(expires_at=START_MS / 1000 + 1)
    if state in ("succeeded", "failed"):
        store.end(store.take(), state)
    elif state == "cancelled":
        store.cancel(old)
    store.pass_ms(1000)
    store.tick()
    assert store.state(old) == state
    assert store.requeue(old) == ("ready", "default")


def test_a_living_task_is_not_requeued(store: TimedStore) -> None:
    for state in ("scheduled", "ready", "running"):
        task = store.put(queue=state, delay_s=5.0 if state == "scheduled" else 0.0)
        if state == "running":
            store.take(queues=[state])
        new = store.new_id()
        assert store.requeue(task, new) == (state, "")
        assert store.find(new) is None
    assert store.requeue(store.new_id()) == ("missing", "")


def test_sent_again_it_makes_no_second_task(store: TimedStore) -> None:
    old, new = store.put(), store.new_id()
    store.cancel(old)
    store.requeue(old, new)
    assert store.requeue(old, new) == ("exists", "")
    store.end(store.take())
    assert store.requeue(old, new) == ("exists", "")
    store.client.delete(store.keys.task(old))  # its time is over
    assert store.requeue(old, new) == ("exists", ""), "the new one is there, whatever became of the old"
    assert store.claim() == []


def test_an_id_that_is_taken_is_a_conflict(store: TimedStore) -> None:
    old, other = store.put(), store.put(queue="q")
    store.cancel(old)
    assert store.requeue(old, other) == ("conflict", "")
    assert store.requeue(old, old) == ("conflict", "")
    new = store.new_id()
    store.requeue(old, new)
    store.cancel(new)
    another = store.new_id()
    assert store.requeue(new, another) == ("ready", "default"), "a requeued task can be requeued"
    assert store.requeue(old, another) == ("conflict", ""), "it is of another origin"


def test_limits_hold_for_it_too(store: TimedStore) -> None:
    old = store.put()
    store.cancel(old)
    store.policy = Policy(max_queue_length=1)
    store.put()
    assert store.requeue(old) == ("queue_full", "")
    store.policy = Policy(max_queues=0)
    store.client.hdel(f"{store.keys.prefix}queues", "default")
    assert store.requeue(old) == ("too_many_queues", "")
    store.client.hset(f"{store.keys.prefix}queues", "default", "0")
