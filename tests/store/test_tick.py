"""tick: never early, in order, bounded; and what it tells the brokers."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import functions
from tests.store import keyspace
from tests.store.syncstore import START_MS, TimedStore

BUDGET = 200
LEASE_MS = Policy().lease_ms


@pytest.fixture
def ticking(store: TimedStore) -> TimedStore:
    """A store in which a broker has ticked just now, so that a later gap is an outage."""
    store.tick()
    return store


def second_by_second(store: TimedStore, ms: int) -> list[functions.Ticked]:
    """Let time pass as it does with a broker: a tick each second."""
    return [store.tick() for _ in range(ms // 1000) if store.pass_ms(1000)]


# ── due ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ahead_ms", [1, 2, 7, 999, 1000, 59_999, 86_400_000, 3652 * 86_400_000])
def test_never_a_millisecond_early_and_not_late(store: TimedStore, ahead_ms: int) -> None:
    task = store.put(start_at=(START_MS + ahead_ms) / 1000)
    store.at(START_MS + ahead_ms - 1, us=999)
    assert store.tick().ready == []
    assert store.state(task) == "scheduled"
    store.at(START_MS + ahead_ms)
    assert store.tick().ready == [("default", 1)]
    assert store.get(task).due_at == (START_MS + ahead_ms) / 1000


def test_neighbouring_milliseconds_are_not_confused(store: TimedStore) -> None:
    """A score's fraction must never reach into the next millisecond, nor a tick's range."""
    store.submit(*(store.spec(start_at=(START_MS + 1 + i % 4) / 1000) for i in range(180)))
    for _ in range(4):
        store.pass_ms(1)
        assert store.tick().ready == [("default", 45)]
    assert store.tick().ready == []


def test_promotes_by_instant_then_by_submission(store: TimedStore) -> None:
    late, early = store.put(delay_s=0.002), store.put(delay_s=0.001)
    also_early = store.put(delay_s=0.001)
    store.pass_ms(5)
    store.tick()
    assert [task.id for task in store.claim(5)] == [early, also_early, late]


def test_priority_counts_again_once_due(store: TimedStore) -> None:
    low, high = store.put(delay_s=0.001, priority=1), store.put(delay_s=0.002, priority=8)
    store.pass_ms(5)
    store.tick()
    assert [task.id for task in store.claim(5)] == [high, low]


def test_a_task_that_becomes_due_queues_behind_those_that_wait(store: TimedStore) -> None:
    due = store.put(delay_s=0.001)
    waiting = store.put()
    store.pass_ms(1)
    store.tick()
    assert [task.id for task in store.claim(5)] == [waiting, due]


def test_ticking_twice_is_harmless(store: TimedStore) -> None:
    store.put(delay_s=0.001)
    store.pass_ms(1)
    assert store.tick(broker="b1").ready == [("default", 1)]
    assert store.tick(broker="b2").ready == []
    assert len(store.claim(5)) == 1


def test_one_tick_moves_at_most_its_budget_and_says_more(store: TimedStore) -> None:
    ids = [store.put(delay_s=1.0, queue=f"q{i % 2}") for i in range(2 * BUDGET + 1)]
    store.pass_ms(1000)
    first, second, third = store.tick(), store.tick(), store.tick()
    assert [sum(n for _, n in ticked.ready) for ticked in (first, second, third)] == [BUDGET, BUDGET, 1]
    assert [ticked.more for ticked in (first, second, third)] == [True, True, False]
    claimed = [task.id for task in store.claim(BUDGET, queues=["q0"]) + store.claim(BUDGET, queues=["q0"])]
    assert claimed == ids[::2]


def test_upcoming_instants_lie_within_the_window(store: TimedStore) -> None:
    tasks = [
        store.put(start_at=(START_MS + ahead_ms) / 1000)
        for ahead_ms in (60_000, 60_000, 1_500, 1_500, 60_001, 59_999, 1_499)
    ]
    store.cancel(tasks[0])
    ticked = store.tick()
    assert ticked.now_us == START_MS * 1000
    assert ticked.upcoming_ms == [START_MS + ms for ms in (1_499, 1_500, 59_999, 60_000)]
    assert ticked.complete


def test_upcoming_is_cut_where_asked_and_says_so(store: TimedStore) -> None:
    for ahead in (3, 1, 2):
        store.put(delay_s=float(ahead))
    cut = store.tick(upcoming=2)
    assert cut.upcoming_ms == [START_MS + 1000, START_MS + 2000]
    assert not cut.complete
    assert store.tick(upcoming=4).complete
    nothing = store.tick(upcoming=0)
    assert (nothing.upcoming_ms, nothing.complete) == ([], False)


# ── expiry ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_too_late_expires_from_either_state(store: TimedStore) -> None:
    expires_at = START_MS / 1000 + 2
    ready, scheduled = store.put(expires_at=expires_at), store.put(expires_at=expires_at, delay_s=5.0)
    store.pass_ms(1999)
    store.tick()
    assert [store.state(task) for task in (ready, scheduled)] == ["ready", "scheduled"]
    store.pass_ms(1)
    store.tick()
    for task in (ready, scheduled):
        result = store.get(task)
        assert (result.state, result.reason) == (State.EXPIRED, "expires_at")
        assert result.finished_at == START_MS / 1000 + 2
    assert store.claim(5) == []


def test_due_and_too_late_in_the_same_tick_expires(store: TimedStore) -> None:
    task = store.put(expires_at=START_MS / 1000 + 2, start_at=START_MS / 1000 + 1)
    store.pass_ms(2000)
    assert store.tick().ready == []
    assert store.state(task) == "expired"


def test_what_has_started_does_not_expire_but_its_retry_does(store: TimedStore) -> None:
    task = store.put(expires_at=START_MS / 1000 + 2, retry=(5.0,))
    fence = store.take()
    store.pass_ms(3000)
    store.tick()
    assert store.state(task) == "running"
    assert store.end(fence, "failed") == "scheduled"
    store.tick()
    assert store.state(task) == "expired"


def test_expiry_is_bounded_too(store: TimedStore) -> None:
    store.submit(*(store.spec(expires_at=START_MS / 1000 + 1) for _ in range(BUDGET)))
    store.submit(*(store.spec(expires_at=START_MS / 1000 + 1) for _ in range(1)))
    store.pass_ms(1000)
    assert [store.tick().more, store.tick().more] == [True, False]
    assert keyspace.dump(store.client, store.keys).keys().isdisjoint({"expiry", "ready:default"})


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_attempt_is_lost_when_its_lease_ends(ticking: TimedStore) -> None:
    store = ticking
    first, second = store.put(), store.put()
    fence = store.take()
    ticks = second_by_second(store, LEASE_MS - 1000)
    store.pass_ms(999)
    assert [*(ticked.lost for ticked in ticks), store.tick().lost] == [[]] * 15
    assert store.state(first) == "running"
    store.pass_ms(1)
    ticked = store.tick()
    assert (ticked.lost, ticked.ready) == ([(first, 1, "default", "w1")], [("default", 1)])
    result = store.get(first)
    assert (result.state, result.attempt) == (State.READY, 1)
    (attempt,) = result.attempts
    assert (attempt.number, attempt.worker, attempt.reason) == (1, "w1", "lost")
    assert (attempt.started_at, attempt.ended_at) == (START_MS / 1000, store.now_ms / 1000)
    assert [task.id for task in store.claim(5)] == [first, second], "a lost task keeps its place"
    assert store.end(fence) == "fenced"


def test_lost_too_often_is_failed(ticking: TimedStore) -> None:
    store = ticking
    store.policy = Policy(max_lost=3)
    task = store.put(retry=(1.0,))
    for number in (1, 2, 3):
        assert store.take().number == number
        second_by_second(store, LEASE_MS)
        assert store.state(task) == ("ready" if number < 3 else "failed")
    result = store.get(task)
    assert result.reason == "lost"
    assert [attempt.reason for attempt in result.attempts] == ["lost"] * 3


def test_lost_is_counted_apart_from_failed(ticking: TimedStore) -> None:
    store = ticking
    task = store.put(retry=(0.5, 60.0))
    assert store.end(store.take(), "failed") == "scheduled"
    store.pass_ms(500)
    store.tick()
    store.take()
    second_by_second(store, LEASE_MS)
    assert store.end(store.take(), "failed") == "scheduled"
    assert store.get(task).due_at == store.now_ms / 1000 + 60, "the second interval, whatever was lost in between"


def test_on_lost_fail_is_terminal_at_once(ticking: TimedStore) -> None:
    store = ticking
    task = store.put(on_lost="fail", retry=(1.0, 1.0))
    fence = store.take()
    second_by_second(store, LEASE_MS)
    assert (store.state(task), store.get(task).reason) == ("failed", "lost")
    assert store.end(fence) == "fenced", "its outcome was not recorded, and it is told so"


def test_lost_after_cancel_is_cancelled(ticking: TimedStore) -> None:
    store = ticking
    task = store.put()
    store.take()
    store.cancel(task)
    second_by_second(store, LEASE_MS)
    assert (store.state(task), store.get(task).reason) == ("cancelled", "lost")


def test_reaping_is_bounded_too(ticking: TimedStore) -> None:
    store = ticking
    store.submit(*(store.spec() for _ in range(BUDGET)))
    store.put()
    store.claim(BUDGET)
    store.claim(1)
    ticks = second_by_second(store, LEASE_MS)
    assert (len(ticks[-1].lost), ticks[-1].more) == (BUDGET, True)
    again = store.tick()
    assert (len(again.lost), again.more) == (1, False)


def test_an_outage_is_forgiven_for_one_lease(ticking: TimedStore) -> None:
    """Nobody ticked for longer than 3 s: live workers could not renew either, and get a lease to do so."""
    store = ticking
    task = store.put()
    fence = store.take()
    store.pass_ms(60_000)
    assert store.tick().lost == []
    assert store.state(task) == "running"
    assert sum(len(ticked.lost) for ticked in second_by_second(store, LEASE_MS - 1000)) == 0
    assert store.extend(fence) == ["ok"]
    assert sum(len(ticked.lost) for ticked in second_by_second(store, LEASE_MS - 1000)) == 0
    assert [len(ticked.lost) for ticked in second_by_second(store, 2000)] == [1, 0], "not renewed once more: lost"


def test_a_short_gap_is_no_outage(ticking: TimedStore) -> None:
    store = ticking
    store.put()
    store.take()
    for _ in range(4):
        store.pass_ms(3000)
        assert store.tick().lost == []
    store.pass_ms(3000)
    assert len(store.tick().lost) == 1
    store.take()
    second_by_second(store, 12_000)
    store.pass_ms(3001)
    assert store.tick().lost == [], "a millisecond longer is one"


def test_an_attempt_is_forgiven_three_outages_at_most(ticking: TimedStore) -> None:
    store = ticking
    task = store.put()
    store.take()
    for _ in range(3):
        store.pass_ms(60_000)
        assert store.tick().lost == []
        assert store.state(task) == "running"
    store.pass_ms(60_000)
    assert len(store.tick().lost) == 1
    assert store.take().number == 2
    store.pass_ms(60_000)
    assert store.tick().lost == [], "the next attempt is forgiven its own"


def test_a_retry_is_forgiven_its_own_outages(ticking: TimedStore) -> None:
    store = ticking
    store.put(retry=(0.0,))
    fence = store.take()
    for _ in range(3):
        store.pass_ms(60_000)
        store.tick()
    store.end(fence, "failed")
    store.tick()
    store.take()
    store.pass_ms(60_000)
    assert store.tick().lost == []


def test_a_lease_that_outlasts_the_outage_is_left_alone(ticking: TimedStore) -> None:
    store = ticking
    task = store.put()
    store.pass_ms(10_000)
    store.take()
    store.tick()
    assert store.field(task, "graced") is None
    ticks = second_by_second(store, LEASE_MS)
    assert [len(ticked.lost) for ticked in ticks] == [0] * 14 + [1]


def test_the_clock_set_back_delays_but_loses_nothing(ticking: TimedStore) -> None:
    store = ticking
    task = store.put(delay_s=5.0)
    running = store.put()
    store.take()
    store.pass_ms(-3_600_000)
    assert (store.tick().lost, store.state(task), store.state(running)) == ([], "scheduled", "running")
    store.at(START_MS + 5000)
    store.tick()
    assert store.state(task) == "ready"


# ── housekeeping ────────────────────────────────────────────────────────────────────────────────────────────────────


def peers(store: TimedStore) -> tuple[list[str], list[str]]:
    stats = store.stats()
    return [worker.name for worker in stats.workers], [broker.name for broker in stats.brokers]


def test_silent_workers_and_brokers_are_forgotten(store: TimedStore) -> None:
    store.extend(worker="w1", heartbeat=b'{"slots":4}')
    store.tick(broker="b1", housekeep=True)
    store.pass_ms(30_000)
    store.extend(worker="w2", heartbeat=b"{}")
    store.tick(broker="b2", housekeep=True)
    assert peers(store) == (["w1", "w2"], ["b1", "b2"])
    store.pass_ms(30_001)
    store.tick(broker="b2", housekeep=True)
    assert peers(store) == (["w2"], ["b2"])


def test_a_tick_without_housekeeping_does_none(store: TimedStore) -> None:
    store.extend(worker="w1", heartbeat=b"{}")
    store.pass_ms(120_000)
    store.tick(broker="b1")
    assert peers(store) == (["w1"], [])


def test_a_long_idle_queue_is_forgotten_and_a_paused_or_used_one_is_not(store: TimedStore) -> None:
    for queue in ("idle", "paused", "scheduled", "ready", "running"):
        store.submit(store.spec(queue=queue))
        if queue != "ready":
            fence = store.take(queues=[queue])
            if queue != "running":
                store.end(fence)
    store.pause("paused")
    store.pause("resumed", paused=False)
    store.put(queue="scheduled", delay_s=864_000.0)
    store.pass_ms(86_400_000)
    store.put(queue="recent")
    store.end(store.take(queues=["recent"]))
    for _ in range(100):
        store.tick(housekeep=True)
    assert _queues(store) == {"idle", "paused", "resumed", "scheduled", "ready", "running", "recent"}
    store.pass_ms(1)
    for _ in range(200):  # it looks at one queue at a time, chosen at random: by now at each, all but certainly
        store.tick(housekeep=True)
    assert _queues(store) == {"paused", "scheduled", "ready", "running", "recent"}
    store.put(queue="idle")
    assert "idle" in _queues(store)


def _queues(store: TimedStore) -> set[str]:
    return {queue.name for queue in store.stats().queues}


def test_entries_of_vanished_records_go(store: TimedStore) -> None:
    tasks = [store.put() for _ in range(30)]
    for task in tasks:
        store.pass_ms(1)
        store.cancel(task)
    store.client.delete(*(store.keys.task(task) for task in tasks[:25]))  # as if their time were over
    finished = f"{store.keys.prefix}finished:cancelled"
    store.put(id=tasks[0])
    store.tick(housekeep=True)
    assert store.client.zcard(finished) == 10
    store.tick(housekeep=True)
    assert store.client.zrange(finished, 0, -1) == [task.encode() for task in tasks[25:]]


def test_recent_tasks_are_capped_as_they_end(store: TimedStore) -> None:
    """However fast tasks end: no call leaves more than the cap."""
    finished = f"{store.keys.prefix}finished:cancelled"
    store.client.zadd(finished, {f"old-{i:05}": START_MS - 20_000 + i for i in range(keyspace.FINISHED_CAP)})
    task = store.put()
    store.cancel(task)
    assert store.client.zcard(finished) == keyspace.FINISHED_CAP
    assert store.client.zrange(finished, 0, 0) == [b"old-00001"]
    assert store.client.zrange(finished, -1, -1) == [task.encode()]
