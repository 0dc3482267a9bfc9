"""The tree of exceptions: as drawn, one class for each code, and whole after a trip between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from kingtask import errors
from kingtask.errors import KingtaskError, RequestRefused
from kingtask.result import Result
from kingtask.states import State

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, KingtaskError)]
RESULT = Result(
    id="i", name="n", queue="default", priority=5, state=State.FAILED, created_at=1.0, due_at=1.0, reason="exit"
)


def test_the_tree_is_as_drawn():
    drawn: dict[str, str] = {}
    parents: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        match = re.match(r"(?P<branch>[│ ]*(?:[├└]── )?)(?P<name>[A-Z]\w+)\b", line)
        if match and (match["branch"] or match["name"] == "KingtaskError"):
            depth = len(match["branch"]) // 4
            parents[depth:] = [match["name"]]
            drawn[match["name"]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls.__base__}


def test_every_refusal_stands_for_a_code_of_its_own():
    assert {cls for cls in CLASSES if issubclass(cls, RequestRefused)} == set(errors.REFUSALS.values())
    for cls in errors.REFUSALS.values():
        assert errors.REFUSALS[cls.code] is cls


@pytest.mark.parametrize("code", errors.REFUSALS)
def test_what_may_be_stored_can_be_sent_again(code: str):
    error = errors.REFUSALS[code]("why", code=code)
    assert error.stored in ("no", "unknown")
    # Sending what met a fault of ours again may meet it again: `get` says what is there.
    assert error.retryable or error.stored == "no" or code == "internal"


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigurationError("broker.yaml:3: addr: why"),
        errors.InvalidRequest("name: why", code="too_big", field="name"),
        errors.Busy("why", retry_after_s=0.5),
        errors.NotConfirmed("why"),
        errors.NoAnswer("why", stored="no"),
        errors.ClientClosed("why"),
        errors.ResultTimeout("why"),
        errors.TaskFailed(RESULT),
        errors.StoreError("lost", "why", stored="unknown"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("carry", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_keeps_everything_between_processes(error: KingtaskError, carry):
    error.id = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
    carried = carry(error)
    assert type(carried) is type(error)
    assert str(carried) == str(error)
    assert vars(carried) == vars(error)


def test_a_failed_task_says_why():
    error = errors.TaskFailed(RESULT)
    assert str(error) == "task i (n) has failed: exit"
    assert error.result is RESULT
