"""What ended tasks keep, outputs and what they were given: it counts, and is dropped in order; bounds of owners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from kingtask.policy import Policy
from kingtask.store import codec
from kingtask.store.functions import Quota
from kingtask.task import TaskSpec
from tests.store import keyspace
from tests.store.syncstore import TimedStore
from tests.store.test_bounds import limit, meta

GIVEN = b"x" * 2000
BYTES = len(codec.pack_spec(TaskSpec(name="example", stdin=GIVEN)))
ENDS = ("succeeded", "failed", "cancelled", "expired")


def ended(store: TimedStore, state: str = "succeeded", *, stdout: bytes = b"", **fields: Any) -> str:
    """A task that was given 2,000 bytes and has ended, a millisecond after the one before."""
    store.pass_ms(1)
    task = store.put(**{"stdin": GIVEN, "expires_at": store.now_ms / 1000 + 0.001, **fields})
    if state == "cancelled":
        store.cancel(task)
    elif state == "expired":
        store.pass_ms(1)
        store.claim()
    else:
        verdict = "final" if state == "failed" else state
        store.finish(store.ended(store.take(), verdict, stdout=stdout))
    assert store.state(task) == state
    return task


def dropped(store: TimedStore, *tasks: str) -> list[bool]:
    return [store.get(task).request_dropped for task in tasks]


def of_owner(store: TimedStore, owner: str) -> int | None:
    kept: Any = store.client.zscore(f"{store.keys.prefix}kept", owner)
    return None if kept is None else int(kept)


# ── what counts ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ENDS)
def test_what_a_task_was_given_counts_from_its_end_until_its_record_vanishes(store: TimedStore, state: str) -> None:
    task = store.put(stdin=GIVEN, delay_s=9.0)
    assert meta(store, "kept") == 0
    store.cancel(task)
    store.forget(task)
    task = ended(store, state, stdout=b"12345", keep_result_s=10.0)
    outputs = 5 if state in ("succeeded", "failed") else 0
    assert meta(store, "kept") == BYTES + outputs
    store.pass_ms(7 * 86_400_000 if state == "failed" else 10_000)
    store.tick()
    assert meta(store, "kept") == 0
    assert store.client.zcard(f"{store.keys.prefix}outputs:ended") == 0


def test_a_lost_task_counts_too(store: TimedStore) -> None:
    store.put(stdin=GIVEN, on_lost="fail")
    store.take()
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert meta(store, "kept") == BYTES


def test_less_than_a_kibibyte_does_not_count(store: TimedStore) -> None:
    for size, counts in ((1023, 0), (1024, 1024)):
        rest = len(codec.pack_spec(TaskSpec(name="example", stdin=b"x" * 1000))) - 1000
        ended(store, stdin=b"x" * (size - rest))
        assert meta(store, "kept") == counts


def test_a_task_that_is_forgotten_counts_no_more(store: TimedStore) -> None:
    limit(store, 10_000)
    store.quota = Quota("alice", bounded=True)
    kept, gone = ended(store, stdout=b"12345"), ended(store, "failed", stdout=b"123")
    store.forget(gone)
    assert (meta(store, "kept"), of_owner(store, "alice")) == (BYTES + 5, BYTES + 5)
    limit(store, 1)
    store.forget(kept)
    assert (meta(store, "kept"), of_owner(store, "alice")) == (0, None)


# ── the order in which it is dropped ────────────────────────────────────────────────────────────────────────────────


def test_outputs_go_first_and_what_failed_tasks_were_given_last(store: TimedStore) -> None:
    """Of each end an older and a younger one: the oldest of a class goes first."""
    limit(store, 10 * BYTES)
    failed = [ended(store, "failed", stdout=b"12345") for _ in range(2)]
    others = [ended(store, stdout=b"12345"), ended(store, "cancelled"), ended(store, "expired")]
    younger = ended(store, stdout=b"12345")
    order = []
    while (kept := meta(store, "kept")) > 0:
        before = {task: (store.get(task).dropped, store.get(task).request_dropped) for task in failed + others}
        before[younger] = (store.get(younger).dropped, store.get(younger).request_dropped)
        limit(store, kept - 1)
        for task, (outputs, request) in before.items():
            result = store.get(task)
            order += [(task, "outputs")] * (result.dropped > outputs) + [(task, "given")] * (
                result.request_dropped > request
            )
    first, cancelled, expired = others
    assert order == [
        (first, "outputs"),
        (younger, "outputs"),
        (first, "given"),
        (cancelled, "given"),
        (expired, "given"),
        (younger, "given"),
        *((task, "outputs") for task in failed),
        *((task, "given") for task in failed),
    ]


def test_an_end_makes_room_at_once(store: TimedStore) -> None:
    limit(store, 2 * BYTES)
    tasks = [ended(store, state) for state in ("failed", "succeeded", "cancelled", "expired", "failed")]
    assert meta(store, "kept") <= 2 * BYTES
    assert dropped(store, *tasks) == [False, True, True, True, False]


def test_one_call_drops_about_a_mebibyte_of_requests(store: TimedStore) -> None:
    tasks = [ended(store, stdin=bytes(300_000)) for _ in range(10)]
    store.policy = Policy(max_result_bytes=1)
    more = store.tick().more
    assert (more, sum(dropped(store, *tasks))) == (True, 4)
    while store.tick().more:
        pass
    assert (meta(store, "kept"), sum(dropped(store, *tasks))) == (0, 10)


# ── what is left of a request that was dropped ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def spec(store: TimedStore) -> TaskSpec:
    """Of a task that failed, whose request was dropped then."""
    spec = store.spec(args=("y",), stdin=GIVEN, env={"TASK_A": "1"}, tags=("t",), retry=())
    store.submit(spec)
    store.finish(store.ended(store.take(), "final", stdout=b"123"))
    limit(store, 1)
    return spec


def test_the_record_says_so_and_has_the_rest(store: TimedStore, spec: TaskSpec) -> None:
    result = store.get(spec.id or "")
    assert (result.request_dropped, result.args, result.tags) == (True, (), ())
    assert (result.state, result.reason, result.exit_code, result.stdout_size) == ("failed", "exit", 1, 3)
    assert len(result.attempts) == 1
    assert len(store.field(spec.id or "", "s") or b"") == 40


def test_the_same_request_exists_and_another_one_is_a_conflict(store: TimedStore, spec: TaskSpec) -> None:
    other = TaskSpec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, "stdin": GIVEN + b"y"})
    digest = (store.field(spec.id or "", "s") or b"").decode()
    assert store.submit(spec, other, store.spec(id=spec.id, args=(digest,))).outcomes == [
        "exists",
        "conflict",
        "conflict",
    ]
    store.owner = "alice"
    assert store.submit(spec).outcomes == ["conflict"]


def test_it_cannot_be_requeued(store: TimedStore, spec: TaskSpec) -> None:
    assert store.requeue(spec.id or "") == ("dropped", "")
    store.of = "alice"
    assert store.requeue(spec.id or "") == ("foreign", ""), "which another owner does not learn"


def test_a_requeue_that_was_done_exists_though_the_request_is_dropped(store: TimedStore) -> None:
    limit(store, BYTES)
    task, new = ended(store, expires_at=None), store.new_id()
    assert store.requeue(task, new)[0] == "ready"
    store.end(store.take())
    limit(store, 1)
    assert dropped(store, task, new) == [True, True]
    assert store.requeue(task, new)[0] == "exists"


# ── the bounds of owners ────────────────────────────────────────────────────────────────────────────────────────────


def bound(store: TimedStore, **bounds: int) -> None:
    """For owners, `others` for those that are not named."""
    store.policy = Policy(kept_bounds={"" if name == "others" else name: most for name, most in bounds.items()})


def tasks_of(store: TimedStore, owner: str, n: int = 3, **more: Any) -> list[str]:
    store.owner, store.quota = owner, Quota(owner, bounded=True)
    return [ended(store, **more) for _ in range(n)]


def test_past_the_bound_of_an_owner_its_own_oldest_go_with_the_next_tick(store: TimedStore) -> None:
    bound(store, alice=2 * BYTES, others=BYTES)
    alice, bob = tasks_of(store, "alice", stdout=b"12345"), tasks_of(store, "bob")
    store.owner = store.quota = None
    free = [ended(store) for _ in range(3)]
    assert (of_owner(store, "alice"), of_owner(store, "bob")) == (3 * BYTES + 15, 3 * BYTES)
    store.tick()
    assert dropped(store, *alice) == [True, False, False]
    assert [store.get(task).dropped for task in alice] == [True] * 3, "outputs first"
    assert dropped(store, *bob) == [True, True, False], "an owner without a name there"
    assert dropped(store, *free) == [False] * 3
    assert (of_owner(store, "alice"), of_owner(store, "bob")) == (2 * BYTES, BYTES)
    assert meta(store, "kept") == 6 * BYTES


def test_without_a_bound_now_nothing_goes(store: TimedStore) -> None:
    alice = tasks_of(store, "alice")
    bound(store, alice=0, others=1)
    store.tick()
    assert dropped(store, *alice) == [False] * 3
    store.policy = Policy()
    store.tick()
    assert dropped(store, *alice) == [False] * 3


def test_many_owners_past_their_bounds_take_some_ticks(store: TimedStore) -> None:
    for n in range(250):
        tasks_of(store, f"o{n}", n=1)
    bound(store, others=1)
    store.tick()
    assert store.client.zcard(f"{store.keys.prefix}kept") == 50
    while store.client.exists(f"{store.keys.prefix}kept"):
        store.tick()
    assert meta(store, "kept") == 0


def test_an_owner_of_which_nothing_is_kept_any_more_has_no_key(store: TimedStore) -> None:
    tasks_of(store, "alice", keep_result_s=10.0)
    store.pass_ms(10_000)
    store.tick()
    assert not [key for key in store.client.keys(f"{store.keys.prefix}kept*") if b"kept" in key]


def test_a_client_without_bounds_leaves_no_trace_of_them(store: TimedStore) -> None:
    store.owner, store.quota = "alice", Quota("alice", 5)
    task = ended(store)
    assert store.field(task, "k") is None
    assert store.client.keys(f"{store.keys.prefix}kept*") == []


def test_a_record_is_kept_no_longer_than_its_client_may_have_it(store: TimedStore) -> None:
    store.policy = Policy(keep_ms=50_000, failed_keep_ms=90_000)
    store.quota = Quota("alice", keep_ms=60_000)
    for state, keep_result_s, expected_ms in (
        ("succeeded", None, 50_000),
        ("succeeded", 55.0, 55_000),
        ("succeeded", 1e6, 60_000),
        ("failed", None, 60_000),
        ("cancelled", 1e6, 60_000),
        ("expired", 1e6, 60_000),
    ):
        task = ended(store, state, stdin=b"", keep_result_s=keep_result_s)
        assert expected_ms - 5000 < store.ttl_ms(task) <= expected_ms
    store.quota = None
    task = ended(store, keep_result_s=1e6, expires_at=None)
    store.quota = Quota("bob", bounded=True, keep_ms=10_000)
    _, new = store.requeue(task, again := store.new_id()), again
    store.end(store.take())
    assert store.ttl_ms(new) <= 10_000, "a requeue has the limits of its client"
    assert of_owner(store, "bob") == BYTES


@pytest.fixture
def unclean(store: TimedStore) -> Iterator[TimedStore]:
    """Its keys are damaged: they must not be checked."""
    yield store
    keyspace.remove(store.client, store.keys)


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_index_of_an_owner_costs_no_other(unclean: TimedStore) -> None:
    store = unclean
    bound(store, others=BYTES)
    store.client.set(f"{store.keys.prefix}kept:alice", "not an index")
    alice, bob = tasks_of(store, "alice"), tasks_of(store, "bob")
    for _ in range(2):
        store.tick()
    assert dropped(store, *bob) == [True, True, False]
    assert dropped(store, *alice) == [False] * 3
    store.client.delete(f"{store.keys.prefix}kept:alice")
    store.tick()
    (young,) = tasks_of(store, "alice", n=1)
    store.tick()
    assert dropped(store, young) == [False], "it counts from anew"


def test_damaged_sums_of_owners_stop_nothing(unclean: TimedStore) -> None:
    store = unclean
    bound(store, others=BYTES)
    store.client.set(f"{store.keys.prefix}kept", "no sums")
    tasks_of(store, "alice")
    store.tick()
    store.client.delete(f"{store.keys.prefix}kept")
    tasks_of(store, "alice")
    store.tick()
    assert of_owner(store, "alice") == BYTES


def test_an_index_of_an_owner_that_was_deleted_heals_with_its_next_tasks(unclean: TimedStore) -> None:
    store = unclean
    bound(store, alice=2 * BYTES)
    tasks_of(store, "alice", n=2)
    store.client.delete(f"{store.keys.prefix}kept:alice")
    for _ in range(2):
        young = tasks_of(store, "alice", n=1)
        store.tick()
    assert dropped(store, *young) == [False]
    assert of_owner(store, "alice") == BYTES


def test_an_end_is_counted_although_nothing_can_be_indexed(unclean: TimedStore) -> None:
    store = unclean
    task = store.put(stdin=GIVEN)
    store.client.set(f"{store.keys.prefix}outputs:ended", "not an index")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.cancel(task)
    assert (store.state(task), meta(store, "live"), meta(store, "kept")) == ("cancelled", 0, 0)
    assert store.cancel(task) == "cancelled"


def test_a_damaged_record_is_passed_over(unclean: TimedStore) -> None:
    store = unclean
    bad, good = ended(store), ended(store)
    store.client.hdel(store.keys.task(bad), "s")
    limit(store, 1)
    assert dropped(store, good) == [True]
    assert meta(store, "kept") == 0
