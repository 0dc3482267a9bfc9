"""finish, finish_cut and release: one outcome per task, recorded by the attempt that holds the fence."""

from __future__ import annotations

import pytest
import redis

from kingtask.policy import Policy
from kingtask.states import State
from kingtask.store import functions
from tests.store import keyspace
from tests.store.syncstore import START_MS, TimedStore

KEEP_MS, FAILED_KEEP_MS = 3_600_000, 7_200_000


@pytest.fixture
def keeping(store: TimedStore) -> TimedStore:
    store.policy = Policy(keep_ms=KEEP_MS, failed_keep_ms=FAILED_KEEP_MS)
    return store


def test_success(store: TimedStore) -> None:
    task = store.put(retry=(1.0,))
    fence = store.take()
    store.pass_ms(50)
    assert store.finish(store.ended(fence, stdout=b"57\n", stderr=b"warned", size=9_999)) == ["succeeded"]
    result = store.get(task)
    assert (result.state, result.reason, result.success) == (State.SUCCEEDED, "", True)
    assert (result.stdout, result.stderr, result.stdout_size, result.stderr_size) == (b"57\n", b"warned", 9_999, 9_999)
    assert result.truncated
    assert result.finished_at == START_MS / 1000 + 0.05
    (attempt,) = result.attempts
    assert (attempt.number, attempt.reason, attempt.exit_code) == (1, "", 0)


def test_the_retry_list_first_second_third_then_failed(store: TimedStore) -> None:
    """[5, 8, 9]: after the first failure 5 s, after the second 8 s, after the third 9 s, then failed."""
    task = store.put(retry=(5.0, 8.0, 9.0))
    for interval_s in (5, 8, 9):
        assert store.end(store.take(), "failed") == "scheduled"
        result = store.get(task)
        assert (result.state, result.reason) == (State.SCHEDULED, "exit")
        assert result.due_at == store.now_ms / 1000 + interval_s
        store.pass_ms(interval_s * 1000 - 1)
        assert store.tick().ready == []
        store.pass_ms(1)
        assert store.tick().ready == [("default", 1)]
    assert store.end(store.take(), "failed") == "failed"
    result = store.get(task)
    assert (result.state, result.reason) == (State.FAILED, "exit")
    assert [(attempt.number, attempt.exit_code) for attempt in result.attempts] == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_an_interval_of_zero_is_due_at_once(store: TimedStore) -> None:
    store.put(retry=(0.0,))
    assert store.end(store.take(), "failed") == "scheduled"
    assert store.tick().ready == [("default", 1)]


def test_without_retries_a_failure_is_the_end(store: TimedStore) -> None:
    store.put()
    assert store.end(store.take(), "failed") == "failed"


def test_final_is_the_end_whatever_the_list_says(store: TimedStore) -> None:
    store.put(retry=(1.0, 1.0))
    assert store.end(store.take(), "final") == "failed"


def test_a_retry_keeps_no_outputs_but_its_attempt(store: TimedStore) -> None:
    task = store.put(retry=(1.0,))
    store.finish(store.ended(store.take(), "failed", stdout=b"half"))
    assert store.get(task).stdout == b""
    store.pass_ms(1000)
    store.tick()
    store.finish(store.ended(store.take(), "failed", stdout=b"half again"))
    assert store.get(task).stdout == b"half again"


def test_cancel_wins_over_failure_and_a_faster_success_stands(store: TimedStore) -> None:
    outcomes = {}
    for verdict in ("failed", "final", "succeeded"):
        task = store.put(retry=(1.0,))
        fence = store.take()
        store.cancel(task)
        outcomes[verdict] = store.end(fence, verdict)
        assert store.state(task) == outcomes[verdict]
        assert not store.get(task).cancelling
    assert outcomes == {"failed": "cancelled", "final": "cancelled", "succeeded": "succeeded"}


def test_reported_again_it_was_recorded(store: TimedStore) -> None:
    task = store.put(retry=(1.0,))
    fence = store.take()
    row = store.ended(fence, "failed")
    assert store.finish(row, row) == ["scheduled", "recorded"]
    store.pass_ms(1000)
    store.tick()
    assert store.finish(row) == ["recorded"]
    second = store.take()
    assert store.finish(row) == ["fenced"], "another attempt is running"
    assert store.finish(store.ended(second)) == ["succeeded"]
    before = keyspace.task_in(keyspace.dump(store.client, store.keys), task)
    assert store.finish(store.ended(second, "failed"), cut=True) == ["recorded"]
    assert keyspace.task_in(keyspace.dump(store.client, store.keys), task) == before
    assert len(store.get(task).attempts) == 2


def test_a_stale_fence_writes_nothing(store: TimedStore) -> None:
    task = store.put(retry=(1.0,))
    fence = store.take()
    before = keyspace.dump(store.client, store.keys)
    stale = [
        fence._replace(token=store.new_token()),
        fence._replace(token=b""),
        fence._replace(number=2),
        fence._replace(number=0),
        fence._replace(id=store.new_id()),
    ]
    for verdict in ("succeeded", "failed", "final"):
        assert store.finish(*(store.ended(one, verdict) for one in stale)) == ["fenced"] * 5
    assert store.release(*stale) == ["fenced"] * 5
    after = keyspace.dump(store.client, store.keys)
    assert {key: entry.value for key, entry in after.items()} == {key: entry.value for key, entry in before.items()}
    assert store.state(task) == "running"


def test_a_batch_has_an_answer_each(store: TimedStore) -> None:
    tasks = [store.put(retry=(1.0,)) for _ in range(4)]
    fences = [store.take() for _ in tasks]
    verdicts = ["succeeded", "failed", "final"]
    rows = [store.ended(fence, verdict) for fence, verdict in zip(fences, verdicts, strict=False)]
    rows.insert(1, store.ended(fences[3]._replace(number=7)))
    assert store.finish(*rows) == ["succeeded", "fenced", "scheduled", "failed"]
    assert [store.state(task) for task in tasks] == ["succeeded", "scheduled", "failed", "running"]


# ── how long a record is kept ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("verdict", "keep_result_s", "expected_ms"),
    [
        ("succeeded", None, KEEP_MS),
        ("succeeded", 60.0, 60_000),
        ("succeeded", 86_400.0, 86_400_000),
        ("failed", None, FAILED_KEEP_MS),
        ("failed", 60.0, FAILED_KEEP_MS),
        ("failed", 86_400.0, 86_400_000),
    ],
)
def test_time_to_live(keeping: TimedStore, verdict: str, keep_result_s: float | None, expected_ms: int) -> None:
    store = keeping
    task = store.put(keep_result_s=keep_result_s)
    assert store.ttl_ms(task) == -1
    store.end(store.take(), verdict)
    assert expected_ms - 5_000 < store.ttl_ms(task) <= expected_ms


def test_time_to_live_of_cancelled_expired_and_lost(keeping: TimedStore) -> None:
    store = keeping
    store.tick()
    cancelled, expired, lost = (
        store.put(),
        store.put(expires_at=START_MS / 1000 + 1, delay_s=2.0),
        store.put(on_lost="fail", queue="q"),
    )
    store.cancel(cancelled)
    store.take(queues=["q"])
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert [store.state(task) for task in (cancelled, expired, lost)] == ["cancelled", "expired", "failed"]
    for task, expected_ms in ((cancelled, KEEP_MS), (expired, KEEP_MS), (lost, FAILED_KEEP_MS)):
        assert expected_ms - 5_000 < store.ttl_ms(task) <= expected_ms


def test_a_record_that_has_had_its_time_is_gone(store: TimedStore) -> None:
    task = store.put()
    store.end(store.take())
    store.client.pexpire(store.keys.task(task), -1)
    assert store.find(task) is None
    assert store.state(task) == ""
    assert store.put(id=task) == task, "its id may be used again"


# ── and claim ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_call_claims_what_is_next(store: TimedStore) -> None:
    first, second, third = (store.put() for _ in range(3))
    fence = store.take()
    token = store.new_token()
    finished = store.finish_and_claim(store.ended(fence), claim=functions.ClaimRequest(["default"], 1, token, 2))
    assert finished.answers == ["succeeded"]
    assert finished.claims is not None
    assert [task.id for task in finished.claims.tasks] == [second]
    assert (store.state(first), store.state(second), store.state(third)) == ("succeeded", "running", "ready")
    assert store.claim(token=token, nth=2, again=True) == finished.claims.tasks, "its reply may be lost"
    (queue,) = store.stats().queues
    assert (queue.ready, queue.running, queue.totals["started"]) == (1, 1, 2)


def test_what_is_refused_of_the_ends_does_not_hinder_the_claim(store: TimedStore) -> None:
    store.put()
    stale = store.ended(functions.Fence(store.new_id(), 1, store.new_token()))
    finished = store.finish_and_claim(
        stale, claim=functions.ClaimRequest(["default"], 5, store.new_token(), 1), cut=True
    )
    assert finished.answers == ["fenced"]
    assert finished.claims is not None
    assert len(finished.claims.tasks) == 1
    assert not finished.claims.more


# ── finish_cut ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cut_outputs_are_taken_up_to_4096_bytes(store: TimedStore) -> None:
    task = store.put()
    fence = store.take()
    too_much = store.ended(fence, stdout=bytes(4000), stderr=bytes(97))
    with pytest.raises(redis.ResponseError, match="KINGTASK finish_cut takes outputs of at most 4096 bytes"):
        store.finish(too_much, cut=True)
    assert store.state(task) == "running"
    fits = store.ended(fence, stdout=bytes(4000), stderr=bytes(96), size=1_000_000)
    assert store.finish(fits, cut=True) == ["succeeded"]
    result = store.get(task)
    assert (len(result.stdout), len(result.stderr), result.stdout_size) == (4000, 96, 1_000_000)
    assert functions.CUT_BYTES == 4096


# ── release ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_released_it_goes_back_to_its_place_uncounted(store: TimedStore) -> None:
    first, second, third = store.put(), store.put(), store.put()
    fences = [store.take(), store.take()]
    assert store.release(*fences) == ["ready", "ready"]
    for task in (first, second):
        result = store.get(task)
        assert (result.state, [attempt.reason for attempt in result.attempts]) == (State.READY, ["released"])
        assert store.field(task, "lost") is None
        assert store.field(task, "failures") is None
    assert store.end(fences[0]) == "fenced"
    assert store.release(*fences) == ["fenced", "fenced"]
    assert [(task.id, task.number) for task in store.claim(5)] == [(first, 2), (second, 2), (third, 1)]


def test_released_after_cancel_it_is_cancelled(store: TimedStore) -> None:
    task = store.put()
    fence = store.take()
    store.cancel(task)
    assert store.release(fence) == ["cancelled"]
    assert store.state(task) == "cancelled"


def test_released_past_its_expiry_it_expires(store: TimedStore) -> None:
    task = store.put(expires_at=START_MS / 1000 + 1)
    fence = store.take()
    store.pass_ms(1500)
    assert store.release(fence) == ["ready"]
    store.tick()
    assert store.state(task) == "expired"


def test_the_records_of_attempts_are_bounded(store: TimedStore) -> None:
    task = store.put()
    for _ in range(100):
        store.release(store.take())
    numbers = [attempt.number for attempt in store.get(task).attempts]
    assert numbers == list(range(100 - keyspace.ATTEMPTS_CAP + 1, 101))
