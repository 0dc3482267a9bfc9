"""The table of transitions, and the whole product of how a task may stand and what may be done to it.

What EXPECTED names must happen; everything else must leave the task as it was, to the last field of the last key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from kingtask.states import TRANSITIONS, State
from kingtask.store import functions
from kingtask.store.functions import Fence
from kingtask.store.library import shipped
from kingtask.task import TaskSpec
from tests.store import keyspace
from tests.store.syncstore import START_MS, TimedStore, with_id

DUE_S, EXPIRES_S = 10, 30
"""Its instant (and its retry's) comes in 10 s, the lease ends in 15 s, and in 30 s it is too late to start."""


class Subject(NamedTuple):
    spec: TaskSpec
    fence: Fence
    """Of the last attempt; of none if it never ran."""

    @property
    def id(self) -> str:
        assert self.spec.id is not None
        return self.spec.id


# ── how a task may stand ────────────────────────────────────────────────────────────────────────────────────────────


def _put(store: TimedStore, **fields: Any) -> Subject:
    store.tick()
    spec = store.spec(expires_at=START_MS / 1000 + EXPIRES_S, **{"retry": (DUE_S,), **fields})
    store.submit(spec)
    assert spec.id is not None
    return Subject(spec, Fence(spec.id, 1, store.new_token()))


def _running(store: TimedStore, **fields: Any) -> Subject:
    subject = _put(store, **fields)
    return subject._replace(fence=store.take())


def _cancelling(store: TimedStore) -> Subject:
    subject = _running(store)
    store.cancel(subject.id)
    return subject


def _retrying(store: TimedStore) -> Subject:
    subject = _running(store)
    store.end(subject.fence, "failed")
    return subject


def _released(store: TimedStore) -> Subject:
    subject = _running(store)
    store.release(subject.fence)
    return subject


def _on_its_last_try(store: TimedStore) -> Subject:
    subject = _running(store, retry=(0.0,))
    store.end(subject.fence, "failed")
    store.tick()
    return subject._replace(fence=store.take())


def _lost_twice(store: TimedStore) -> Subject:
    subject = _running(store)
    for _ in range(2):
        store.client.zadd(f"{store.keys.prefix}running", {subject.id: store.now_ms})
        store.tick()
        subject = subject._replace(fence=store.take())
    return subject


def _ended(verdict: str) -> Callable[[TimedStore], Subject]:
    def bring(store: TimedStore) -> Subject:
        subject = _running(store)
        store.end(subject.fence, verdict)
        return subject

    return bring


def _cancelled(store: TimedStore) -> Subject:
    subject = _put(store)
    store.cancel(subject.id)
    return subject


def _cancelled_while_running(store: TimedStore) -> Subject:
    subject = _cancelling(store)
    store.end(subject.fence, "failed")
    return subject


def _expired(store: TimedStore) -> Subject:
    store.tick()
    subject = _put(store)
    store.pass_ms(EXPIRES_S * 1000)
    store.tick()
    return subject


STANDINGS: dict[str, tuple[State, Callable[[TimedStore], Subject]]] = {
    "scheduled": (State.SCHEDULED, lambda store: _put(store, delay_s=DUE_S)),
    "retrying": (State.SCHEDULED, _retrying),
    "ready": (State.READY, _put),
    "released": (State.READY, _released),
    "running": (State.RUNNING, _running),
    "running on its last try": (State.RUNNING, _on_its_last_try),
    "running at most once": (State.RUNNING, lambda store: _running(store, on_lost="fail")),
    "running, lost twice": (State.RUNNING, _lost_twice),
    "cancelling": (State.RUNNING, _cancelling),
    "succeeded": (State.SUCCEEDED, _ended("succeeded")),
    "failed": (State.FAILED, _ended("final")),
    "cancelled": (State.CANCELLED, _cancelled),
    "cancelled while running": (State.CANCELLED, _cancelled_while_running),
    "expired": (State.EXPIRED, _expired),
}


# ── what may be done ────────────────────────────────────────────────────────────────────────────────────────────────


def _seconds(seconds: int) -> Callable[[TimedStore, Subject], None]:
    def run(store: TimedStore, subject: Subject) -> None:
        for _ in range(seconds):
            store.pass_ms(1000)
            store.tick(housekeep=True)

    return run


def _too_late(store: TimedStore, subject: Subject) -> None:
    store.pass_ms(EXPIRES_S * 1000)
    store.tick()


def _claim_too_late(store: TimedStore, subject: Subject) -> None:
    store.pass_ms(EXPIRES_S * 1000)
    assert store.claim() == []


def _end(verdict: str, *, cut: bool = False) -> Callable[[TimedStore, Subject], None]:
    def run(store: TimedStore, subject: Subject) -> None:
        store.finish(store.ended(subject.fence, verdict, stdout=b"out", stderr=b"err"), cut=cut)

    return run


def _stale(store: TimedStore, subject: Subject) -> None:
    """Everything that takes a fence, with each way that a fence can be wrong."""
    number, token = subject.fence.number, subject.fence.token
    for fence in (
        subject.fence._replace(token=store.new_token()),
        subject.fence._replace(token=b""),
        Fence(subject.id, number + 1, token),
        Fence(subject.id, number - 1, token),
    ):
        for verdict in ("succeeded", "failed", "final"):
            assert store.end(fence, verdict, worker="w9") == "fenced"
        assert store.release(fence, worker="w9") == ["fenced"]
        assert store.extend(fence, worker="w9") == ["fenced"]


def _read(store: TimedStore, subject: Subject) -> None:
    store.get(subject.id)
    store.state(subject.id)
    store.stats()
    for state in State:
        store.ask(functions.list_tasks(state, "default", first="-inf", last="+inf", rest=0, limit=50))


LIVING = {State.SCHEDULED, State.READY, State.RUNNING}
OPERATIONS: dict[str, Callable[[TimedStore, Subject], object]] = {
    "submit again": lambda store, subject: store.submit(subject.spec),
    "submit other content": lambda store, subject: store.submit(with_id(subject.spec, args=("other",))),
    "requeue": lambda store, subject: store.requeue(subject.id),
    "requeue as itself": lambda store, subject: store.requeue(subject.id, subject.id),
    "a second passes": _seconds(1),
    "its instant comes": _seconds(DUE_S),
    "a lease passes": _seconds(16),
    "too late": _too_late,
    "claim": lambda store, subject: store.claim(5, worker="w2"),
    "claim again": lambda store, subject: store.claim(0, token=subject.fence.token, again=True),
    "claim too late": _claim_too_late,
    "extend": lambda store, subject: store.extend(subject.fence),
    "extend without it": lambda store, subject: store.extend(),
    "extend by another worker": lambda store, subject: store.extend(worker="w2"),
    "succeed": _end("succeeded"),
    "succeed, cut": _end("succeeded", cut=True),
    "fail": _end("failed"),
    "fail for good": _end("final"),
    "release": lambda store, subject: store.release(subject.fence),
    "stale fences": _stale,
    "cancel": lambda store, subject: store.cancel(subject.id),
    "forget, unless it has ended": lambda store, subject: (
        State(store.state(subject.id)) in LIVING and store.forget(subject.id)
    ),
    "wait": lambda store, subject: store.ask(functions.wait(subject.id)),
    "pause": lambda store, subject: store.pause(),
    "resume": lambda store, subject: store.pause(paused=False),
    "open": lambda store, subject: store.ask(functions.open_namespace(1, "c")),
    "mark": lambda store, subject: store.ask(functions.mark()),
    "read": _read,
}


def _rows(standings: str, moves: dict[str, str]) -> dict[tuple[str, str], State]:
    return {(standing, what): State(to) for standing in standings.split(" | ") for what, to in moves.items()}


EXPECTED: dict[tuple[str, str], State] = {
    **_rows(
        "scheduled | retrying",
        {"its instant comes": "ready", "a lease passes": "ready", "too late": "expired", "cancel": "cancelled"},
    ),
    **_rows(
        "ready | released",
        {"claim": "running", "claim too late": "expired", "too late": "expired", "cancel": "cancelled"},
    ),
    **_rows(
        "running | running on its last try | running at most once | running, lost twice",
        {
            "succeed": "succeeded",
            "succeed, cut": "succeeded",
            "fail": "scheduled",
            "fail for good": "failed",
            "release": "ready",
            "extend without it": "ready",
            "a lease passes": "ready",
        },
    ),
    ("running on its last try", "fail"): State.FAILED,
    ("running at most once", "a lease passes"): State.FAILED,
    ("running, lost twice", "a lease passes"): State.FAILED,
    **_rows(
        "cancelling",
        {
            "succeed": "succeeded",
            "succeed, cut": "succeeded",
            "fail": "cancelled",
            "fail for good": "cancelled",
            "release": "cancelled",
            "extend without it": "cancelled",
            "a lease passes": "cancelled",
        },
    ),
}


def marks(state: State, what: str) -> set[str]:
    """What may change although the state does not: fields of the task, or the index that holds its lease."""
    if what == "wait" and state in LIVING:
        return {"watched"}
    if what == "cancel" and state is State.RUNNING:
        return {"cancel"}
    if what == "too late" and state is State.RUNNING:
        return {"graced", "running"}  # nobody ticked for 30 s: the lease is forgiven
    return set()


def snapshot(store: TimedStore, subject: Subject, but: set[str]) -> dict[str, Any]:
    found = keyspace.task_in(keyspace.dump(store.client, store.keys), subject.id)
    key = f"task:{subject.id}"
    has_ttl, fields = found.pop(key)
    found[key] = (has_ttl, {name: value for name, value in fields.items() if name.decode() not in but})
    return {key: value for key, value in found.items() if key not in but}


@pytest.mark.parametrize("what", OPERATIONS)
@pytest.mark.parametrize("standing", STANDINGS)
def test_the_whole_product(store: TimedStore, standing: str, what: str) -> None:
    state, bring = STANDINGS[standing]
    subject = bring(store)
    assert store.state(subject.id) == state
    but = marks(state, what)
    before = snapshot(store, subject, but)
    OPERATIONS[what](store, subject)
    expected = EXPECTED.get((standing, what))
    assert store.state(subject.id) == (expected or state)
    if expected is None:
        assert snapshot(store, subject, but) == before
    else:
        assert expected in TRANSITIONS[state]


def test_every_transition_of_the_table_was_walked() -> None:
    walked = {(STANDINGS[standing][0], to) for (standing, _), to in EXPECTED.items()}
    assert walked == {(state, to) for state, targets in TRANSITIONS.items() for to in targets}
    assert {state for state, _ in STANDINGS.values()} == set(State)
    assert all(standing in STANDINGS and what in OPERATIONS for standing, what in EXPECTED)


def test_the_library_holds_the_same_table() -> None:
    (literal,) = re.findall(r"^local TRANSITIONS = \{\n(.*?)^\}", shipped().template, re.DOTALL | re.MULTILINE)
    table = {
        State(state): frozenset(State(to) for to in re.findall(r"(\w+) = true", targets))
        for state, targets in re.findall(r"(\w+) = \{(.*?)\}", literal)
    }
    assert table == TRANSITIONS
    (terminal,) = re.findall(r"^local TERMINAL = \{(.*?)\}", shipped().template, re.MULTILINE)
    assert set(re.findall(r"(\w+) = true", terminal)) == {
        state for state, targets in TRANSITIONS.items() if not targets
    }
