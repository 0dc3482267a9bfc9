"""Everything is bounded: tasks in all, outputs kept, who is listed; and the bounds give way again."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store.functions import Quota
from tests.store import keyspace
from tests.store.syncstore import TimedStore

LISTED = keyspace.PEERS_CAP


def meta(store: TimedStore, field: str) -> int:
    return int(store.client.hget(store.keys.meta, field) or 0)


# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_as_many_tasks_as_may_be_refuse_more_in_every_queue_until_one_has_ended(store: TimedStore) -> None:
    store.policy = Policy(max_tasks=3)
    specs = [store.spec(), store.spec(queue="q", delay_s=1.0), store.spec(), store.spec(queue="r"), store.spec()]
    assert store.submit(*specs).outcomes == ["ready", "scheduled", "ready", "too_many_tasks", "too_many_tasks"]
    assert store.submit(*specs).outcomes == ["exists", "exists", "exists", "too_many_tasks", "too_many_tasks"]
    assert store.find(specs[3].id or "") is None
    assert {queue.name for queue in store.stats().queues} == {"default", "q"}, "a refusal leaves no name"
    fence = store.take()
    assert store.submit(specs[3]).outcomes == ["too_many_tasks"], "what runs lives"
    store.end(fence)
    assert store.submit(*specs[3:]).outcomes == ["ready", "too_many_tasks"]


def test_a_requeue_is_refused_as_well_and_one_that_was_done_is_not(store: TimedStore) -> None:
    old, done, new = store.put(), store.new_id(), store.new_id()
    store.cancel(old)
    store.policy = Policy(max_tasks=1)
    assert store.requeue(old, done) == ("ready", "default")
    assert store.requeue(old, new) == ("too_many_tasks", "")
    assert store.requeue(old, done) == ("exists", "")
    store.cancel(done)
    assert store.requeue(old, new) == ("ready", "default")


def test_retries_releases_and_lost_attempts_are_never_refused(store: TimedStore) -> None:
    tasks = [store.put(retry=(0.0,)) for _ in range(3)]
    store.policy = Policy(max_tasks=1)
    failing, releasing, _ = store.take(), store.take(), store.take()
    assert store.end(failing, "failed") == "scheduled"
    assert store.release(releasing) == ["ready"]
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert [store.state(task) for task in tasks] == ["ready", "ready", "ready"]
    assert store.submit(store.spec()).outcomes == ["too_many_tasks"]


def test_tasks_deleted_from_outside_do_not_fill_it_for_ever(store: TimedStore) -> None:
    store.policy = Policy(max_tasks=2)
    tasks = [store.put(), store.put()]
    store.client.delete(f"{store.keys.prefix}ready:default", *map(store.keys.task, tasks))
    assert store.submit(store.spec()).outcomes == ["too_many_tasks"]
    store.tick(housekeep=True)
    assert store.submit(store.spec()).outcomes == ["ready"]


# ── a client's tasks ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_has_no_more_tasks_than_it_may_until_one_has_ended(store: TimedStore) -> None:
    store.quota = Quota("alice", 2)
    specs = [store.spec(), store.spec(delay_s=1.0), store.spec(queue="q"), store.spec()]
    assert store.submit(*specs).outcomes == ["ready", "scheduled", "quota_exceeded", "quota_exceeded"]
    assert store.submit(*specs).outcomes == ["exists", "exists", "quota_exceeded", "quota_exceeded"]
    assert {queue.name for queue in store.stats().queues} == {"default"}, "a refusal leaves no name"
    store.quota = Quota("bob", 1)
    assert store.submit(store.spec()).outcomes == ["ready"], "another client's are not counted"
    store.quota = Quota("alice", 2)
    store.end(store.take())
    assert store.submit(*specs[2:]).outcomes == ["ready", "quota_exceeded"]


def test_a_retry_is_the_same_task_and_a_requeue_is_another(store: TimedStore) -> None:
    store.quota = Quota("alice", 1)
    task, again = store.put(retry=(0.0,)), store.new_id()
    assert store.end(store.take(), "failed") == "scheduled"
    assert store.submit(store.spec()).outcomes == ["quota_exceeded"]
    store.tick()
    assert store.end(store.take(), "failed") == "failed"
    assert store.requeue(task, again) == ("ready", "default")
    assert store.requeue(task, again) == ("exists", "")
    assert store.requeue(task) == ("quota_exceeded", "")
    store.cancel(again)
    assert store.requeue(task) == ("ready", "default")


def test_a_clients_tasks_deleted_from_outside_are_not_counted_for_ever(store: TimedStore) -> None:
    store.quota = Quota("alice", 3)
    tasks = [store.put(), store.put(), store.put()]
    store.client.delete(*map(store.keys.task, tasks[1:]))
    assert store.submit(store.spec(), store.spec(), store.spec()).outcomes == ["ready", "ready", "quota_exceeded"]
    keyspace.remove(store.client, store.keys)  # two living tasks went uncounted


def test_what_is_counted_by_mistake_is_found_behind_what_is_not(store: TimedStore) -> None:
    """As a release without this index leaves it: its ends stay counted."""
    store.quota = Quota("alice", 300)
    living = [store.spec(delay_s=9.0) for _ in range(150)]
    ended = [store.spec(delay_s=9.0) for _ in range(150)]
    store.submit(*living)
    store.submit(*ended)
    for spec in ended:
        assert spec.id
        store.client.hdel(store.keys.task(spec.id), "o")
        store.cancel(spec.id)
    assert store.submit(store.spec(delay_s=9.0)).outcomes == ["scheduled"]
    keyspace.remove(store.client, store.keys)


def test_who_had_no_limit_is_counted_from_the_first_task_on_that_has_one(store: TimedStore) -> None:
    store.put()
    store.quota = Quota("alice", 1)
    counted = store.put()
    store.quota = None
    store.put()
    store.cancel(counted)
    store.quota = Quota("alice", 1)
    assert store.submit(store.spec(), store.spec()).outcomes == ["ready", "quota_exceeded"]


# ── queues ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_many_queues_are_counted_anew_one_second_in_a_few(store: TimedStore) -> None:
    for first in range(0, 600, 200):
        store.submit(*(store.spec(queue=f"q{first + n}") for n in range(200)))
    store.client.hset(store.keys.meta, "live", 5)
    seconds = 0
    while meta(store, "live") != 600:
        store.pass_ms(1000)
        store.tick(housekeep=True)
        seconds += 1
    assert seconds == 3


# ── outputs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def finished(
    store: TimedStore, stdout: bytes, stderr: bytes = b"", verdict: str = "succeeded", **fields: object
) -> str:
    task = store.put(**fields)
    store.finish(store.ended(store.take(), verdict, stdout=stdout, stderr=stderr, size=99))
    return task


def outputs(store: TimedStore, *tasks: str) -> list[bytes]:
    return [store.get(task).stdout for task in tasks]


def limit(store: TimedStore, max_result_bytes: int) -> None:
    """As a broker sets it; workers go by what the last tick said."""
    store.policy = Policy(max_result_bytes=max_result_bytes)
    store.tick()


def test_the_oldest_outputs_are_dropped_and_the_outcomes_stay(store: TimedStore) -> None:
    limit(store, 10)
    old = finished(store, b"12345", b"1", "final", keep_result_s=1e6)
    store.pass_ms(1)
    young = finished(store, b"1234", verdict="final", keep_result_s=100.0)
    before = store.get(old)
    assert outputs(store, old, young) == [b"12345", b"1234"], "as many as may be"
    store.pass_ms(1)
    silent, new = finished(store, b""), finished(store, b"x", verdict="final")
    after = store.get(old)
    assert (after.stdout, after.stderr, after.dropped, after.truncated) == (b"", b"", True, True)
    assert (after.stdout_size, after.stderr_size) == (99, 99)
    assert (after.state, after.reason, after.exit_code) == (State.FAILED, "exit", 1)
    assert after.attempts == before.attempts
    assert after.finished_at == before.finished_at
    assert outputs(store, young, silent, new) == [b"1234", b"", b"x"]
    assert not any(store.get(task).dropped for task in (young, silent, new))
    assert meta(store, "kept") == 5


def test_a_lower_limit_is_reached_by_ticks_of_bounded_work(store: TimedStore) -> None:
    tasks = [finished(store, b"1") for _ in range(450)]
    limit(store, 20)
    ticks = [store.tick() for _ in range(3)]
    assert [ticked.more for ticked in ticks] == [True, False, False]
    assert meta(store, "kept") == 20
    kept = [task for task in tasks if not store.get(task).dropped]
    assert len(kept) == 20


def test_a_cut_finish_makes_room_too(store: TimedStore) -> None:
    limit(store, 5)
    old = finished(store, b"12345")
    store.pass_ms(1)
    new = store.put()
    store.finish(store.ended(store.take(), stdout=b"1"), cut=True)
    assert outputs(store, old, new) == [b"", b"1"]


def test_an_output_larger_than_all_room_is_not_kept(store: TimedStore) -> None:
    limit(store, 5)
    assert store.get(finished(store, b"123456")).dropped
    assert meta(store, "kept") == 0


@pytest.mark.parametrize("vanish", ["by its time", "by hand"])
def test_what_has_vanished_counts_no_more(store: TimedStore, vanish: str) -> None:
    limit(store, 100)
    short = [finished(store, b"12345", keep_result_s=10.0) for _ in range(3)]
    long = finished(store, b"123", keep_result_s=100.0)
    if vanish == "by hand":
        store.client.delete(*map(store.keys.task, short))
    store.pass_ms(9_999)
    store.tick()
    assert meta(store, "kept") == 18
    store.pass_ms(1)
    store.client.delete(*map(store.keys.task, short))
    store.tick()
    assert meta(store, "kept") == 3
    assert outputs(store, long) == [b"123"]


def test_an_id_used_again_keeps_its_own_output(store: TimedStore) -> None:
    limit(store, 100)
    task = finished(store, b"12345")
    store.client.delete(store.keys.task(task))
    store.pass_ms(1)
    assert finished(store, b"54321", id=task) == task
    assert meta(store, "kept") == 10, "the old one until its time has passed"
    store.pass_ms(86_400_000 - 1)
    store.tick()
    assert meta(store, "kept") == 5
    store.client.delete(store.keys.task(task))
    store.pass_ms(1)
    finished(store, b"123", id=task)
    limit(store, 3)
    assert outputs(store, task) == [b"123"]
    assert not store.get(task).dropped


@pytest.mark.parametrize("index", ["ended", "until"])
def test_an_index_of_outputs_deleted_from_outside_does_not_forbid_them_for_ever(store: TimedStore, index: str) -> None:
    limit(store, 8)
    lost = finished(store, b"12345")
    store.client.delete(f"{store.keys.prefix}outputs:{index}")
    store.pass_ms(86_400_000)
    store.client.delete(store.keys.task(lost))
    store.tick()
    for _ in range(3):
        store.pass_ms(1)
        finished(store, b"54321")
    store.pass_ms(1)
    last = finished(store, b"12345678")
    assert outputs(store, last) == [b"12345678"]


def test_rubbish_in_the_indexes_of_outputs_stops_nothing(store: TimedStore) -> None:
    for index in ("ended", "until"):
        store.client.zadd(f"{store.keys.prefix}outputs:{index}", {"rubbish": 1, f"{index}:": 2})
    limit(store, 3)
    for stdout in (b"123", b"456"):
        store.pass_ms(1)
        last = finished(store, stdout)
    assert outputs(store, last) == [b"456"]
    assert store.client.zcard(f"{store.keys.prefix}outputs:ended") == 1


# ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_under_ever_new_names_push_out_those_that_are_silent(store: TimedStore) -> None:
    store.extend(worker="steady", heartbeat=b"{}")
    for n in range(LISTED + 50):
        if n % 500 == 0:
            store.pass_ms(1)
            store.extend(worker="steady", heartbeat=b"{}")
        store.pass_ms(1)
        store.extend(worker=f"w{n}", heartbeat=b"{}")
    names = {worker.name for worker in store.stats().workers}
    assert len(names) == LISTED
    assert {"steady", f"w{LISTED + 49}", "w60"} <= names
    assert "w0" not in names


def test_brokers_too_and_silence_ends_them_all(store: TimedStore) -> None:
    for n in range(LISTED + 5):
        store.tick(broker=f"b{n}", housekeep=True)
    assert len(store.stats().brokers) == LISTED
    store.pass_ms(60_001)
    ticks = 0
    while len(store.stats().brokers) > 1:
        store.tick(broker="b", housekeep=True)
        ticks += 1
    assert ticks <= LISTED // 200 + 1, "so many in one tick, no more"


def test_an_index_of_peers_deleted_from_outside_does_not_keep_them(store: TimedStore) -> None:
    store.extend(worker="w1", heartbeat=b"{}")
    store.client.delete(f"{store.keys.prefix}workers:seen")
    store.tick(housekeep=True)
    assert store.stats().workers == []
    store.extend(worker="w1", heartbeat=b"{}")
    assert [worker.name for worker in store.stats().workers] == ["w1"]


def test_what_a_worker_holds_has_a_ttl_and_goes_with_its_tasks(store: TimedStore) -> None:
    store.put()
    fence = store.take(worker="w7")
    held = f"{store.keys.prefix}held:w7"
    assert 0 < store.client.pttl(held) <= 86_400_000
    store.extend(fence, worker="w7")
    assert 0 < store.client.pttl(held) <= 86_400_000
    store.end(fence, worker="w7")
    store.extend(worker="w7")
    assert not store.client.exists(held)
