"""Strategies: task specifications within the limits, results, and whatever else a decoder may bring to light."""

from __future__ import annotations

from hypothesis import strategies as st

from kingtask import task
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.task import TaskSpec

NOW_S = 1_800_000_000.0

ids = st.uuids().map(str)
queues = st.from_regex(task.QUEUE_PATTERN)
names = st.from_regex(task.NAME_PATTERN)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
intervals = st.floats(0, task.MAX_INTERVAL_S)
env_names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,20}\Z").filter(
    lambda name: name not in task.ENV_REFUSED and not name.startswith(task.ENV_REFUSED_PREFIXES)
)
ends = st.none() | st.floats(0, task.LATEST_S)


@st.composite
def specs(draw: st.DrawFn) -> TaskSpec:
    """A valid specification at NOW_S."""
    delayed = draw(st.booleans())
    start_at = 0.0 if delayed else draw(st.floats(0, NOW_S + task.MAX_AHEAD_S))
    return TaskSpec(
        id=draw(st.none() | ids),
        name=draw(names),
        args=tuple(draw(st.lists(texts, max_size=8))),
        start_at=start_at,
        delay_s=draw(st.floats(0, task.MAX_AHEAD_S)) if delayed else 0.0,
        retry=tuple(draw(st.lists(intervals, max_size=task.MAX_RETRIES))),
        queue=draw(queues),
        priority=draw(st.integers(0, 9)),
        time_limit_s=draw(st.none() | st.floats(0.001, task.MAX_INTERVAL_S)),
        stdin=draw(st.binary(max_size=200)),
        env=draw(st.dictionaries(env_names, texts, max_size=5)),
        keep_result_s=draw(st.none() | st.floats(1, task.MAX_KEEP_S)),
        expires_at=draw(st.none() | st.floats(start_at, task.LATEST_S)),
        stderr=draw(st.sampled_from([None, "fail", "keep"])),
        on_lost=draw(st.sampled_from(["retry", "fail"])),
        tags=tuple(draw(st.lists(st.text(min_size=1, max_size=task.MAX_TAG_LENGTH), max_size=task.MAX_TAGS))),
    )


attempts = st.builds(
    Attempt,
    number=st.integers(1, 100),
    worker=st.text(max_size=20),
    started_at=st.floats(0, task.LATEST_S),
    ended_at=st.floats(0, task.LATEST_S),
    reason=st.sampled_from(["", "exit", "signal", "lost"]),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    message=st.text(max_size=20),
    stderr_tail=st.binary(max_size=50),
)

results = st.builds(
    Result,
    id=ids,
    name=names,
    queue=queues,
    priority=st.integers(0, 9),
    state=st.sampled_from(State),
    created_at=st.floats(0, task.LATEST_S),
    due_at=st.floats(0, task.LATEST_S),
    args=st.lists(texts, max_size=4).map(tuple),
    tags=st.lists(texts, max_size=4).map(tuple),
    origin=st.none() | ids,
    reason=st.text(max_size=10),
    cancelling=st.booleans(),
    worker=st.none() | st.text(max_size=20),
    attempt=st.integers(0, 100),
    started_at=ends,
    finished_at=ends,
    stdout=st.binary(max_size=50),
    stderr=st.binary(max_size=50),
    stdout_size=st.integers(0, 2**40),
    stderr_size=st.integers(0, 2**40),
    dropped=st.booleans(),
    attempts=st.lists(attempts, max_size=4).map(tuple),
)

integers = st.integers(-(2**63), 2**64 - 1)
scalars = st.none() | st.booleans() | integers | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | integers, inner, max_size=4),
    max_leaves=12,
)
"""Whatever msgpack can carry."""
