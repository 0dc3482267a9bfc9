"""Every error has one exit status, and every status a meaning."""

from __future__ import annotations

import pytest

from kingtask import errors
from kingtask.cli.exit import Exit, exit_for
from kingtask.cli.result_view import status_of
from kingtask.cli.tasks import each
from kingtask.result import Attempt, Result
from kingtask.states import State


def result(state: State, **ending: object) -> Result:
    attempt = Attempt(number=1, worker="w", started_at=1.0, ended_at=2.0, **ending)  # type: ignore[arg-type]
    return Result(
        id="x", name="x", queue="default", priority=5, state=state, created_at=1.0, due_at=1.0, attempts=(attempt,)
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigurationError(""), 3),
        (errors.NoAnswer("", stored="no"), 4),
        (errors.NoAnswer("", stored="unknown"), 4),
        (errors.PermissionDenied(""), 5),
        (errors.InvalidRequest(""), 6),
        (errors.IdConflict(""), 6),
        (errors.WrongState(""), 6),
        (errors.Busy("", code="busy"), 4),
        (errors.Busy("", code="rate_limited"), 4),
        (errors.Unavailable("", code="unavailable"), 4),
        (errors.Unavailable("", code="store_full"), 4),
        (errors.Busy("", retryable=False), 6),
        (errors.RequestRefused("", stored="no"), 6),
        (errors.RequestRefused(""), 8),
        (errors.TaskNotFound(""), 7),
        (errors.NotConfirmed(""), 8),
        (errors.Busy("", stored="unknown"), 8),
        (errors.ResultTimeout(""), 9),
        (errors.StoreError("lost", ""), 4),
        (errors.TaskFailed(result(State.FAILED)), 1),
    ],
)
def test_the_status_of_an_error(error, status):
    assert exit_for(error) == status


def test_no_kind_of_error_is_without_a_status():
    kinds = [errors.KingtaskError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind is errors.TaskFailed:
            continue
        error = kind.__new__(kind)
        error.__dict__.setdefault("stored", "no")
        assert exit_for(error) in Exit


@pytest.mark.parametrize(
    ("state", "ending", "plain", "propagated"),
    [
        (State.SUCCEEDED, {"exit_code": 0}, 0, 0),
        (State.FAILED, {"exit_code": 3}, 1, 3),
        (State.FAILED, {"signal": 9}, 1, 137),
        (State.FAILED, {"signal": 15, "reason": "time_limit"}, 1, 143),
        (State.FAILED, {"exit_code": 0, "reason": "stderr"}, 1, 1),
        (State.FAILED, {"reason": "missing"}, 1, 1),
        (State.CANCELLED, {}, 1, 1),
        (State.EXPIRED, {}, 1, 1),
        (State.RUNNING, {}, 9, 9),
        (State.SCHEDULED, {"exit_code": 3}, 9, 9),
    ],
)
def test_the_status_of_a_task(state, ending, plain, propagated):
    assert status_of(result(state, **ending)) == plain
    assert status_of(result(state, **ending), propagate=True) == propagated


def test_the_exit_status_of_several_tasks_is_the_first_that_is_not_ok(capfd: pytest.CaptureFixture[str]):
    statuses = iter([0, 9, 1])
    assert each("abc", lambda _: next(statuses)) == 9
    assert each("", lambda _: 1) == 0

    def refused(task_id: str) -> int:
        raise errors.TaskNotFound(f"no {task_id}")

    assert each("ab", refused) == 7
    assert capfd.readouterr().err == "kingtask: a: no a\nkingtask: b: no b\n"
