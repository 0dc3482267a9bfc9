"""The states, and how a result reads."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given

from kingtask.result import Attempt, Result
from kingtask.states import TERMINAL, TRANSITIONS, State
from tests.unit.values import results


def result(state: State, *attempts: Attempt, **fields: Any) -> Result:
    values: dict[str, Any] = {
        "id": "i",
        "name": "n",
        "queue": "default",
        "priority": 5,
        "created_at": 1.0,
        "due_at": 1.0,
        **fields,
    }
    return Result(state=state, attempts=attempts, **values)


def attempt(**fields: Any) -> Attempt:
    values: dict[str, Any] = {"number": 1, "worker": "w", "started_at": 1.0, "ended_at": 2.0, **fields}
    return Attempt(**values)


def test_the_table_knows_every_state_and_no_other():
    assert set(TRANSITIONS) == set(State)
    assert {to for targets in TRANSITIONS.values() for to in targets} == set(State) - {State.SCHEDULED} | {
        State.SCHEDULED
    }
    assert {state for state in State if not TRANSITIONS[state]} == TERMINAL


def test_what_has_not_ended_can_end_and_what_has_ended_cannot_move():
    def reachable(start: State) -> set[State]:
        found, edge = {start}, [start]
        while edge:
            for state in TRANSITIONS[edge.pop()] - found:
                found.add(state)
                edge.append(state)
        return found

    for state in set(State) - TERMINAL:
        assert reachable(state) >= TERMINAL
    for start, to in product(TERMINAL, State):
        assert to not in TRANSITIONS[start]


def test_only_what_runs_can_succeed_or_fail():
    for outcome in (State.SUCCEEDED, State.FAILED):
        assert [state for state in State if outcome in TRANSITIONS[state]] == [State.RUNNING]


@given(results)
def test_a_result_reads_as_one_consistent_story(value: Result):
    assert value.ended == (value.state in TERMINAL)
    assert value.success == (value.state == "succeeded")
    assert value.text.encode("utf-8", "replace").decode() == value.text
    last = value.attempts[-1] if value.attempts else None
    assert value.exit_code == (last.exit_code if last else None)
    assert value.signal == (last.signal if last else None)
    assert value.id in value.describe()
    assert value.state in value.describe()


def test_bytes_that_are_no_text_do_not_hide_the_rest():
    assert result(State.SUCCEEDED, stdout=b"57\xff\n").text == "57\ufffd\n"


def test_output_is_truncated_if_there_was_more_than_is_kept():
    assert not result(State.SUCCEEDED, stdout=b"57", stdout_size=2).truncated
    assert result(State.SUCCEEDED, stdout=b"57", stdout_size=3).truncated
    assert result(State.SUCCEEDED, stderr_size=1).truncated


def test_people_see_where_something_is_missing_and_programs_are_told():
    cut = result(State.SUCCEEDED, stdout="äöü".encode(), stdout_size=1_000_006, stderr=b"abc", stderr_size=5)
    assert (cut.stdout_cut, cut.stderr_cut) == (3, 2)
    assert cut.text == "ä\ufffd\n[… 1,000,000 bytes were not kept …]\n\ufffdü"
    whole = result(State.SUCCEEDED, stdout=b"57", stdout_size=2)
    assert (whole.stdout_cut, whole.stderr_cut, whole.text) == (None, None, "57")
    assert result(State.SUCCEEDED, stdout_size=2).stdout_cut == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (result(State.READY), "task i (n) is ready"),
        (result(State.SUCCEEDED, attempt(exit_code=0)), "task i (n) has succeeded"),
        (result(State.CANCELLED, reason="cancelled"), "task i (n) was cancelled"),
        (result(State.EXPIRED, reason="expired"), "task i (n) has expired"),
        (result(State.SCHEDULED, reason="exit"), "task i (n) is scheduled: exit"),
        (
            result(State.FAILED, attempt(reason="exit", exit_code=3, stderr_tail=b" no disk\n"), reason="exit"),
            "task i (n) has failed: exit (attempt 1: no disk)",
        ),
        (
            result(State.FAILED, attempt(reason="missing", message="no file example"), reason="missing"),
            "task i (n) has failed: missing (attempt 1: no file example)",
        ),
    ],
)
def test_a_line_for_people(value: Result, text: str):
    assert value.describe() == text
