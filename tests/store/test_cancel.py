"""cancel, pause, wait, and what the functions publish."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import functions
from tests.store.listener import ANSWER_S, ChannelListener
from tests.store.syncstore import START_MS, TimedStore


@pytest.fixture
def listener(store: TimedStore) -> Iterator[ChannelListener]:
    listener = ChannelListener(store)
    yield listener
    listener.close()


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_before_it_runs_is_the_end(store: TimedStore) -> None:
    scheduled, ready = store.put(delay_s=5.0), store.put()
    assert (store.cancel(scheduled), store.cancel(ready)) == ("scheduled", "ready")
    for task in (scheduled, ready):
        result = store.get(task)
        assert (result.state, result.reason, result.attempts) == (State.CANCELLED, "cancelled", ())
        assert result.due_at == START_MS / 1000 + (5 if task == scheduled else 0)
    store.pass_ms(5000)
    assert store.tick().ready == []
    assert store.claim(5) == []
    assert (store.cancel(scheduled), store.cancel(ready)) == ("cancelled", "cancelled")


def test_cancel_of_a_running_task_flags_it_and_tells_its_worker(store: TimedStore, listener: ChannelListener) -> None:
    task = store.put()
    fence = store.take(worker="w7")
    assert store.cancel(task) == "running"
    assert listener.heard() == [("cancel", f"w7 {task}")]
    result = store.get(task)
    assert (result.state, result.cancelling) == (State.RUNNING, True)
    assert store.cancel(task) == "running"
    assert listener.heard() == [("cancel", f"w7 {task}")], "said again: the first may have been lost"
    assert store.end(fence, "failed", worker="w7") == "cancelled"


def test_cancel_of_what_has_ended_or_never_was(store: TimedStore) -> None:
    done, failed = store.put(), store.put()
    store.end(store.take())
    store.end(store.take(), "failed")
    assert (store.cancel(done), store.cancel(failed)) == ("succeeded", "failed")
    assert store.cancel(store.new_id()) == "missing"


# ── pause ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pause_and_resume(store: TimedStore, listener: ChannelListener) -> None:
    store.put()
    store.put()
    assert store.pause() == "ok"
    assert store.pause() == "ok"
    (queue,) = store.stats().queues
    assert (queue.paused, queue.ready) == (True, 2)
    store.put()
    assert listener.heard() == []
    assert store.pause(paused=False) == "ok"
    assert listener.heard() == [("ready", "default 3")], "workers are woken for what has waited"


def test_resuming_an_empty_queue_wakes_nobody(store: TimedStore, listener: ChannelListener) -> None:
    assert store.pause("empty", paused=False) == "ok"
    assert listener.heard() == []


def test_a_queue_may_be_paused_before_its_first_task(store: TimedStore) -> None:
    store.pause("later")
    task = store.put(queue="later")
    assert store.claim(queues=["later"]) == []
    assert store.state(task) == "ready"


def test_pausing_makes_no_more_names_than_allowed(store: TimedStore) -> None:
    store.policy = Policy(max_queues=1)
    store.put()
    assert store.pause("another") == "too_many_queues"
    assert store.pause("default") == "ok"


# ── wait ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_a_watched_task_is_published_once(store: TimedStore, listener: ChannelListener) -> None:
    watched, other = store.put(retry=(1.0,)), store.put()
    assert store.ask(functions.wait(watched)) == "ready"
    assert store.ask(functions.wait(watched)) == "ready"
    fence, others = store.take(), store.take()
    store.end(others)
    assert listener.heard() == []
    assert store.end(fence, "failed") == "scheduled"
    assert listener.heard() == [("due", str(START_MS + 1000))], "a retry is not the end"
    store.pass_ms(1000)
    store.tick()
    fence = store.take()
    store.end(fence)
    assert listener.heard() == [("ended", watched)]
    store.end(fence)
    assert listener.heard() == []
    assert store.ask(functions.wait(watched)) == "succeeded"
    assert store.field(watched, "watched") is None
    assert store.ask(functions.wait(store.new_id())) == "missing"
    assert store.state(other) == "succeeded"


@pytest.mark.parametrize("end", ["cancelled", "expired", "lost", "released"])
def test_every_kind_of_end_is_published(store: TimedStore, listener: ChannelListener, end: str) -> None:
    store.tick()
    task = store.put(expires_at=START_MS / 1000 + 5 if end == "expired" else None, on_lost="fail")
    store.ask(functions.wait(task))
    if end == "cancelled":
        store.cancel(task)
    elif end == "released":
        fence = store.take()
        store.cancel(task)
        store.release(fence)
    elif end == "lost":
        store.take()
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert ("ended", task) in listener.heard()


# ── wakeups: a new earliest instant, and work that neither submit nor tick reports ──────────────────────────────────


def test_a_new_earliest_instant_is_published(store: TimedStore, listener: ChannelListener) -> None:
    store.put(delay_s=10.0)
    assert listener.heard() == [("due", str(START_MS + 10_000))]
    store.put(delay_s=10.0)
    store.put(delay_s=11.0)
    assert listener.heard() == []
    store.submit(store.spec(delay_s=9.0), store.spec(delay_s=8.0), store.spec(delay_s=12.0))
    assert listener.heard() == [("due", str(START_MS + 8_000))]


def test_a_retry_that_is_the_earliest_is_published(store: TimedStore, listener: ChannelListener) -> None:
    store.put(delay_s=10.0)
    store.submit(store.spec(retry=(5.0,)), store.spec(retry=(3.0,)), store.spec(retry=(20.0,)))
    fences = [store.take() for _ in range(3)]
    listener.heard()
    store.finish(store.ended(fences[2], "failed"))
    assert listener.heard() == []
    store.finish(*(store.ended(fence, "failed") for fence in fences[:2]))
    assert listener.heard() == [("due", str(START_MS + 3_000))]


def test_work_given_back_is_published(store: TimedStore, listener: ChannelListener) -> None:
    store.submit(*(store.spec(queue=queue) for queue in ("a", "a", "b")))
    queues = ["a", "b"]
    fences = [store.take(queues=queues) for _ in range(3)]
    assert listener.heard() == [], "submit answers the one that asked"
    store.release(*fences)
    assert sorted(listener.heard()) == [("ready", "a 2"), ("ready", "b 1")]
    store.take(queues=queues)
    store.extend()
    assert listener.heard() == [("ready", "a 1")]


def test_requeued_work_is_published(store: TimedStore, listener: ChannelListener) -> None:
    task = store.put(queue="q")
    store.cancel(task)
    store.requeue(task)
    assert listener.heard() == [("ready", "q 1")]


def test_channels_carry_namespace_and_database(store: TimedStore) -> None:
    """Pub/sub ignores database numbers."""
    pubsub = store.client.pubsub()
    pubsub.subscribe(f"{{{store.keys.namespace}}}:3:due")
    pubsub.get_message(timeout=ANSWER_S)
    spec = store.spec(delay_s=1.0)
    call = functions.submit(store.policy, [functions.prepare(spec.id or "", spec)])
    store.client.fcall(store.library.function("submit"), 1, store.keys.meta, call.payload(3))
    message = pubsub.get_message(timeout=ANSWER_S)
    pubsub.close()
    assert message is not None
    assert message["data"] == str(START_MS + 1000).encode()
