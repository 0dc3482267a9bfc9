"""How a task lies in Redis, and back."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.store import codec, stats
from kingtask.task import TaskSpec
from kingtask.wire import pack_raw, unpack

words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
seconds = st.floats(0, 30 * 86_400, allow_nan=False)
specs = st.builds(
    TaskSpec,
    name=st.sampled_from(["example", "a/b.sh"]),
    args=st.lists(words, max_size=4).map(tuple),
    start_at=st.just(0.0) | st.floats(1, 9_999_999_999),
    delay_s=seconds,
    retry=st.lists(seconds, max_size=4).map(tuple),
    queue=st.sampled_from(["default", "q", "x" * 64]),
    priority=st.integers(0, 9),
    time_limit_s=st.none() | st.floats(0.001, 86_400),
    stdin=st.binary(max_size=20),
    env=st.dictionaries(st.sampled_from(["A", "B", "LANG"]), words),
    keep_result_s=st.none() | st.floats(1, 86_400 * 365),
    expires_at=st.none() | st.floats(1, 9_999_999_999),
    stderr=st.sampled_from([None, "fail", "keep"]),
    on_lost=st.sampled_from(["retry", "fail"]),
    tags=st.lists(words.filter(bool), max_size=3).map(tuple),
)


@given(specs)
@example(TaskSpec(name="x"))
@example(TaskSpec(name="x", tags=("last",)))
@example(TaskSpec(name="x", args=("",)))
def test_a_spec_comes_back_as_it_went(spec: TaskSpec) -> None:
    got = codec.unpack_spec(codec.pack_spec(spec))
    assert (got.args, got.stdin, got.env, got.tags) == (spec.args, spec.stdin, spec.env, spec.tags)
    assert got.stderr == (spec.stderr or "")
    if spec.time_limit_s is None:
        assert got.time_limit_ms == 0
    else:
        assert spec.time_limit_s * 1000 - 1e-3 <= got.time_limit_ms <= math.ceil(spec.time_limit_s * 1000)


@given(specs)
def test_a_plan_never_starts_early_nor_waits_too_short(spec: TaskSpec) -> None:
    plan = codec.unpack_plan(codec.pack_plan(spec))
    asked = [spec.start_at, spec.delay_s, *spec.retry, spec.keep_result_s or 0, spec.expires_at or 0]
    for seconds_asked, got_ms in zip(
        asked, [plan.start_ms, plan.delay_ms, *plan.retry_ms, plan.keep_ms, plan.expires_ms], strict=True
    ):
        assert isinstance(got_ms, int)
        assert seconds_asked * 1000 - 1e-3 <= got_ms < seconds_asked * 1000 + 1
    assert (plan.name, plan.queue or "default", plan.priority) == (spec.name, spec.queue, spec.priority)
    assert bool(plan.fail_if_lost) == (spec.on_lost == "fail")


@given(specs)
def test_equal_requests_are_equal_bytes(spec: TaskSpec) -> None:
    twin = msgspec.structs.replace(
        spec, env=dict(reversed(spec.env.items())), id="00000000-0000-4000-8000-000000000001"
    )
    assert codec.pack_spec(twin) == codec.pack_spec(spec)
    assert codec.pack_plan(twin) == codec.pack_plan(spec)


def test_what_is_left_at_its_default_takes_no_room() -> None:
    assert len(codec.pack_spec(TaskSpec(name="x"))) == 1
    assert len(codec.pack_plan(TaskSpec(name="x"))) <= 3


@given(
    st.builds(
        dict,
        number=st.integers(1, 10_000),
        worker=st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True),
        started_ms=st.integers(0, 2**43),
        ended_ms=st.integers(0, 2**43),
        reason=st.sampled_from(["", "exit", "signal", "lost"]),
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        message=st.text(max_size=700),
        stderr=st.binary(max_size=1500),
    )
)
@example(
    {
        "number": 1,
        "worker": "w",
        "started_ms": 1,
        "ended_ms": 2,
        "reason": "exec",
        "message": "cannot run 'caf\udce9'",  # a file name that is not UTF-8, as os.fsdecode gives it
    }
)
@example({"number": 1, "worker": "w", "started_ms": 1, "ended_ms": 2, "reason": "", "message": "ü" * 600})
def test_an_attempt_comes_back_bounded(given: dict[str, Any]) -> None:
    packed = codec.pack_attempt(**given)
    assert len(packed) <= codec.MESSAGE_BYTES + codec.STDERR_TAIL_BYTES + 256
    attempt = codec.unpack_attempt(packed)
    for name in ("number", "worker", "reason", "exit_code", "signal"):
        assert getattr(attempt, name) == given.get(name)
    assert (attempt.started_at, attempt.ended_at) == (given["started_ms"] / 1000, given["ended_ms"] / 1000)
    assert given.get("stderr", b"").endswith(attempt.stderr_tail)
    assert len(attempt.stderr_tail) == min(len(given.get("stderr", b"")), codec.STDERR_TAIL_BYTES)
    message = given["message"]
    if len(message.encode("utf-8", "backslashreplace")) <= codec.MESSAGE_BYTES and message.isprintable():
        assert attempt.message == message


def hash_of(**fields: Any) -> dict[str, bytes]:
    spec = TaskSpec(name="example", args=("1",), queue="q", tags=("t",))
    return {
        "s": codec.pack_spec(spec),
        "p": codec.pack_plan(spec),
        "t": b"ready",
        "c": b"1000",
        **{name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()},
    }


def test_a_result_from_a_hash() -> None:
    attempts = [codec.pack_attempt(n, "w", n, n + 1, "exit", exit_code=n) for n in (10, 9, 2)]
    fields = hash_of(
        t="failed",
        due=1500,
        attempt=10,
        worker="w",
        claimed=2000,
        finished=3000,
        reason="exit",
        out=b"\xff",
        err_size=9,
        out_size=7,
        dropped="1",
        origin="o",
        **{f"attempt:{n}": packed for n, packed in zip((10, 9, 2), attempts, strict=True)},
    )
    assert codec.result_of("id", fields, 0) == Result(
        id="id",
        name="example",
        queue="q",
        priority=5,
        state=State.FAILED,
        created_at=1.0,
        due_at=1.5,
        args=("1",),
        tags=("t",),
        origin="o",
        reason="exit",
        attempt=10,
        started_at=2.0,
        finished_at=3.0,
        stdout=b"\xff",
        stdout_size=7,
        stderr_size=9,
        dropped=True,
        attempts=tuple(
            Attempt(number=n, worker="w", started_at=n / 1000, ended_at=(n + 1) / 1000, reason="exit", exit_code=n)
            for n in (2, 9, 10)
        ),
    )


def test_of_a_request_that_was_dropped_the_rest_is_left() -> None:
    fields = hash_of(s="1" * 40, g=0)
    found = codec.result_of("id", fields, 0)
    assert (found.request_dropped, found.args, found.tags, found.name) == (True, (), (), "example")
    assert codec.spec_in(fields) == codec.NO_SPEC
    kept = codec.result_of("id", hash_of(g=5000), 0)
    assert (kept.request_dropped, kept.args) == (False, ("1",))


def test_the_schedule_says_when_a_scheduled_task_is_due() -> None:
    assert codec.result_of("id", hash_of(t="scheduled", due=1500), 2500).due_at == 2.5
    assert codec.result_of("id", hash_of(), 0).due_at == 1.0


@pytest.mark.parametrize(("state", "shown"), [("running", "w"), ("ready", None), ("scheduled", None), ("failed", None)])
def test_only_a_running_task_has_a_worker(state: str, shown: str | None) -> None:
    result = codec.result_of("id", hash_of(t=state, worker="w", claimed=1), 0)
    assert (result.worker, result.started_at) == (shown, 0.001)


def test_peers_of_stats_come_sorted() -> None:
    beat = b"%013d" % 5000
    peers = [b"w2", beat + b'{"slots":4}', b"w1", beat]
    paused, found = stats.stats_of([10_000_000, [b"b", b"0", b"a", b"1"], 3, 4, peers, []])
    assert (paused, found.queues, found.live, found.kept_bytes) == ([("a", True), ("b", False)], [], 3, 4)
    assert [(peer.name, peer.seen_s, peer.facts) for peer in found.workers] == [
        ("w1", 5.0, {}),
        ("w2", 5.0, {"slots": 4}),
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        [b"running", b"many"],
        [b"running", b"9" * 30],
        [b"\xff", b"1"],
        [b"submitted", b"3", b"touched", b"x"],
        [b"submitted", b"3", b"touched", b"1", b"before", b"\xc1"],
    ],
)
def test_damaged_numbers_of_a_queue_are_zeros_and_the_others_stay(numbers: list[bytes]) -> None:
    rows = [[1, 2, numbers], [3, 0, [b"submitted", b"3", b"touched", b"1", b"owner", b"alice"]]]
    damaged, sound = stats.queues_of({"a": True, "b": False}, [10_000_000, rows])
    assert (damaged.name, damaged.paused, damaged.ready, damaged.totals) == ("a", True, 0, {})
    assert (sound.name, sound.ready, sound.totals) == ("b", 3, {"submitted": 3})
    fields = stats.StoreStats([damaged, sound], [], []).reply(dict)
    assert [queue["name"] for queue in unpack(bytes(fields["queues"]))] == ["a", "b"]


def test_a_page_at_the_end_has_no_cursor() -> None:
    plan = codec.pack_plan(TaskSpec(name="x"))
    row = [b"id", 1500, [b"p", plan, b"c", b"1000", b"t", b"scheduled"]]
    assert codec.page_of([b"1500", 1, 1, [row]]).cursor is None
    page = codec.page_of([b"1500.0009765625", 1, 0, [row]])
    assert page.cursor == ("1500.0009765625", 1)
    assert (page.tasks[0].due_at, page.tasks[0].attempt, page.tasks[0].origin) == (1.5, 0, None)


def test_raw_packing_is_what_the_functions_can_read() -> None:
    """cmsgpack knows no bin type."""
    assert pack_raw([b"\xff", "ü"]) == b"\x92\xa1\xff\xa2\xc3\xbc"
