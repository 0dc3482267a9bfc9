"""extend: renews what the worker holds, and takes back what it never learnt of."""

from __future__ import annotations

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store.functions import Fence
from tests.store.syncstore import START_MS, TimedStore

LEASE_MS = Policy().lease_ms


def test_renewing_keeps_the_attempt(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    for _ in range(40):
        store.pass_ms(1000)
        store.tick()
        assert store.extend(fence) == ["ok"]
    for _ in range(LEASE_MS // 1000 - 1):
        store.pass_ms(1000)
        assert store.tick().lost == []
    store.pass_ms(1000)
    assert len(store.tick().lost) == 1


def test_an_overdue_lease_is_renewed_as_long_as_nobody_reaped_it(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    store.pass_ms(LEASE_MS + 5000)
    assert store.extend(fence) == ["ok"]
    assert store.tick().lost == []


def test_it_is_told_of_cancel_each_time(store: TimedStore) -> None:
    wanted, other = store.put(), store.put()
    fences = [store.take(), store.take()]
    store.cancel(wanted)
    assert store.extend(*fences) == ["cancel", "ok"]
    assert store.extend(*fences) == ["cancel", "ok"]
    assert [store.get(task).cancelling for task in (wanted, other)] == [True, False]


def test_a_stale_fence_is_refused_and_renews_nothing(store: TimedStore) -> None:
    task = store.put()
    fence = store.take()
    store.pass_ms(5000)
    before = store.client.zscore(f"{store.keys.prefix}running", task)
    assert (
        store.extend(
            fence._replace(token=store.new_token()),
            fence._replace(number=2),
            fence._replace(number=0),
            fence._replace(id=store.new_id()),
            worker="w2",
        )
        == ["fenced"] * 4
    )
    assert store.client.zscore(f"{store.keys.prefix}running", task) == before
    assert store.extend(fence) == ["ok"]


def test_an_attempt_that_has_ended_is_fenced(store: TimedStore) -> None:
    for verdict in ("succeeded", "final", "failed"):
        store.put(retry=(5.0,))
        fence = store.take()
        store.end(fence, verdict)
        assert store.extend(fence) == ["fenced"]


def test_unknown_claims_are_handed_back_uncounted(store: TimedStore) -> None:
    known, unknown, waiting = store.put(), store.put(on_lost="fail"), store.put()
    fence = store.take()
    store.take()
    store.pass_ms(3000)
    assert store.extend(fence) == ["ok"]
    result = store.get(unknown)
    assert (result.state, result.attempt) == (State.READY, 1)
    (attempt,) = result.attempts
    assert (attempt.reason, attempt.started_at, attempt.ended_at) == (
        "released",
        START_MS / 1000,
        START_MS / 1000 + 3,
    )
    assert store.field(unknown, "lost") is None
    assert store.field(unknown, "failures") is None
    assert [task.id for task in store.claim(5)] == [unknown, waiting], "at its old place"
    assert store.state(known) == "running"


def test_claims_under_way_are_spared(store: TimedStore) -> None:
    task, token = store.put(), store.new_token()
    store.claim(token=token)
    assert store.extend(claims=[store.new_token(), token]) == []
    assert store.state(task) == "running"
    store.extend(claims=[store.new_token()])
    assert store.state(task) == "ready"


def test_a_late_one_says_nothing_of_what_was_claimed_after_it_was_sent(store: TimedStore) -> None:
    """Its connection is closed, and the worker has gone on with another: it would take away what runs there."""
    before, after = store.put(), store.put(on_lost="fail")
    store.claim(nth=1)
    (claimed,) = store.claim(token=(token := store.new_token()), nth=2)
    assert store.extend(upto=1) == []
    assert [store.state(task) for task in (before, after)] == ["ready", "running"]
    assert store.extend(Fence(after, claimed.number, token), upto=2) == ["ok"]


def test_other_workers_are_left_alone(store: TimedStore) -> None:
    task = store.put()
    store.take(worker="w1")
    store.extend(worker="w2")
    store.extend(worker="w")
    assert store.state(task) == "running"


def test_an_unknown_claim_that_was_to_be_cancelled_is_cancelled(store: TimedStore) -> None:
    task = store.put()
    store.take()
    store.cancel(task)
    store.extend()
    assert store.state(task) == "cancelled"


def test_a_newer_attempt_is_unknown_although_an_older_one_is_named(store: TimedStore) -> None:
    """The worker lost the lease, claimed the same task again, and that reply was lost too."""
    task = store.put()
    old = store.take()
    store.release(old)
    store.take()
    assert store.extend(old) == ["fenced"]
    assert store.state(task) == "ready"
    assert store.take().number == 3


def test_the_heartbeat_is_kept_as_sent(store: TimedStore) -> None:
    store.extend(worker="w1", heartbeat=b'{"queues":["default"],"slots":4}')
    store.extend(worker="w1")
    store.pass_ms(2000)
    (worker,) = store.stats().workers
    assert (worker.name, worker.seen_s, worker.facts) == ("w1", 2.0, {"queues": ["default"], "slots": 4})


def test_held_claims_have_a_ttl_that_renewing_restores(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    held = f"{store.keys.prefix}held:w1"
    assert 86_000_000 < store.client.pttl(held) <= 86_400_000
    store.client.pexpire(held, 20_000)
    store.extend(fence)
    assert store.client.pttl(held) > 86_000_000
    store.end(fence)
    assert not store.client.exists(held)
    assert store.extend(Fence(fence.id, 1, fence.token)) == ["fenced"]
