"""submit: stores once, keeps order, refuses what does not fit."""

from __future__ import annotations

import pytest

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import codec
from tests.store.syncstore import START_MS, TimedStore, with_id


def test_a_task_for_now_is_ready_and_says_so(store: TimedStore) -> None:
    spec = store.spec(args=("12", "45"), tags=("a", "b"))
    submitted = store.submit(spec)
    assert submitted.now_us == START_MS * 1000
    assert submitted.outcomes == ["ready"]
    assert submitted.ready == [("default", 1)]
    assert submitted.due_ms == []
    result = store.get(spec.id or "")
    assert (result.state, result.name, result.args, result.tags) == (State.READY, "example", ("12", "45"), ("a", "b"))
    assert result.created_at == result.due_at == START_MS / 1000


def test_a_task_for_later_is_scheduled(store: TimedStore) -> None:
    at, delayed = store.spec(start_at=START_MS / 1000 + 3.5), store.spec(delay_s=0.25)
    submitted = store.submit(at, delayed)
    assert submitted.outcomes == ["scheduled", "scheduled"]
    assert submitted.due_ms == [START_MS + 3500, START_MS + 250]
    assert submitted.ready == []
    assert store.get(at.id or "").due_at == START_MS / 1000 + 3.5
    assert store.get(delayed.id or "").due_at == START_MS / 1000 + 0.25


def test_a_start_that_has_passed_means_now_and_is_kept_as_due(store: TimedStore) -> None:
    task = store.put(start_at=START_MS / 1000 - 60)
    assert store.state(task) == "ready"
    assert store.get(task).due_at == START_MS / 1000 - 60


def test_a_start_in_this_very_millisecond_is_now(store: TimedStore) -> None:
    store.at(START_MS, us=999)
    assert store.state(store.put(start_at=START_MS / 1000)) == "ready"
    assert store.state(store.put(start_at=(START_MS + 1) / 1000)) == "scheduled"


def test_the_same_request_again_makes_no_second_task(store: TimedStore) -> None:
    spec = store.spec(delay_s=5.0, retry=(1.0, 2.5), env={"A": "1", "B": "2"})
    assert store.submit(spec, spec).outcomes == ["scheduled", "exists"]
    store.pass_ms(1000)
    assert store.submit(with_id(spec, env={"B": "2", "A": "1"})).outcomes == ["exists"]
    assert store.get(spec.id or "").due_at == START_MS / 1000 + 5, "the delay counts from the first submit"


def test_the_same_request_after_the_end_makes_no_second_task(store: TimedStore) -> None:
    spec = store.spec()
    store.submit(spec)
    store.end(store.take())
    assert store.submit(spec).outcomes == ["exists"]
    assert store.state(spec.id or "") == "succeeded"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"args": ("1",)},
        {"stdin": b"x"},
        {"env": {"A": "1"}},
        {"tags": ("t",)},
        {"stderr": "keep"},
        {"time_limit_s": 1.0},
        {"start_at": 1.0},
        {"delay_s": 1.0},
        {"queue": "other"},
        {"priority": 6},
        {"retry": (1.0,)},
        {"keep_result_s": 60.0},
        {"expires_at": START_MS / 1000 + 9},
        {"on_lost": "fail"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_id_with_other_content_is_a_conflict(store: TimedStore, change: dict[str, object]) -> None:
    spec = store.spec()
    store.submit(spec)
    before = store.get(spec.id or "")
    assert store.submit(with_id(spec, **change)).outcomes == ["conflict"]
    assert store.get(spec.id or "") == before


def test_priority_first_then_first_in_first_out(store: TimedStore) -> None:
    order: dict[int, list[str]] = {}
    for priority in (5, 0, 9, 5, 0, 9):
        order.setdefault(priority, []).append(store.put(priority=priority))
        store.pass_ms(1)
    claimed = [task.id for task in store.claim(10)]
    assert claimed == order[9] + order[5] + order[0]


def test_submission_order_is_kept_within_one_millisecond(store: TimedStore) -> None:
    due_s = START_MS / 1000 + 10
    scheduled = [store.put(start_at=due_s) for _ in range(20)]
    batch = [store.spec(start_at=due_s) for _ in range(150)]
    store.submit(*batch)
    store.pass_ms(10_000)
    assert store.tick().ready == [("default", 170)]
    assert [task.id for task in store.claim(200)] == scheduled + [spec.id for spec in batch]


def test_more_tasks_than_a_millisecond_has_fractions_are_still_due_in_it(store: TimedStore) -> None:
    for _ in range(6):
        store.submit(*(store.spec(delay_s=1.0) for _ in range(200)))
    store.pass_ms(999)
    assert store.tick().ready == []
    store.pass_ms(1)
    ticks = [store.tick() for _ in range(7)]
    assert [sum(n for _, n in ticked.ready) for ticked in ticks] == [200] * 6 + [0]


def test_only_so_many_queues(store: TimedStore) -> None:
    store.policy = Policy(max_queues=2)
    one, two, three, again = (store.spec(queue=name) for name in ("one", "two", "three", "one"))
    submitted = store.submit(one, two, three, again)
    assert submitted.outcomes == ["ready", "ready", "too_many_queues", "ready"]
    assert sorted(submitted.ready) == [("one", 2), ("two", 1)]
    assert store.find(three.id or "") is None
    assert store.submit(three).outcomes == ["too_many_queues"]
    assert store.submit(one).outcomes == ["exists"]


def test_a_full_queue_refuses_and_recovers(store: TimedStore) -> None:
    store.policy = Policy(max_queue_length=3)
    specs = [store.spec(), store.spec(delay_s=1.0), store.spec(), store.spec(), store.spec(delay_s=1.0)]
    assert store.submit(*specs).outcomes == ["ready", "scheduled", "ready", "queue_full", "queue_full"]
    assert store.submit(*specs).outcomes == ["exists", "exists", "exists", "queue_full", "queue_full"]
    assert store.submit(store.spec(queue="other")).outcomes == ["ready"]
    assert store.find(specs[3].id or "") is None
    store.take()  # what runs no longer waits
    assert store.submit(*specs[3:]).outcomes == ["ready", "queue_full"]
    assert store.cancel(specs[1].id or "") == "scheduled"
    assert store.submit(specs[4]).outcomes == ["scheduled"]


def test_every_submit_writes_even_if_all_exist(store: TimedStore) -> None:
    """WAIT covers only the writes of its own connection."""
    spec = store.spec()
    store.submit(spec)
    offset = store.client.info("replication")["master_repl_offset"]
    dirty = store.client.info("persistence")["rdb_changes_since_last_save"]
    assert store.submit(spec).outcomes == ["exists"]
    assert store.client.info("persistence")["rdb_changes_since_last_save"] > dirty
    assert store.client.info("replication")["master_repl_offset"] >= offset


def test_a_task_as_large_as_may_be_arrives_whole(store: TimedStore) -> None:
    args = tuple("ü" * 60_000 for _ in range(8))
    task = store.put(args=args, stdin=bytes(range(256)) * 4096)
    assert store.get(task).args == args
    (claimed,) = store.claim()
    assert codec.unpack_spec(claimed.spec).stdin == bytes(range(256)) * 4096


def test_a_batch_looks_for_its_ids_once_and_enters_each_index_once(store: TimedStore) -> None:
    store.put()
    store.put(queue="q")
    specs = [store.spec(queue=queue, delay_s=delay_s) for queue in ("default", "q") for delay_s in (0.0, 5.0)] * 20
    specs = [with_id(spec, id=store.new_id()) for spec in specs]
    store.client.config_resetstat()
    store.submit(*specs)
    stats = store.client.info("commandstats")
    used = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    assert used["exists"] == 1
    assert used["zadd"] == len(("ready:default", "ready:q", "schedule"))
    assert used["hset"] == len(specs) + len(("counts:default", "counts:q", "meta"))
    assert sum(used.values()) < len(specs) + 30
