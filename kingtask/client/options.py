"""Task options as Python callers pass them, and as fields of a request. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict
from uuid import UUID

from kingtask.client.handles import AsyncTask, Task
from kingtask.errors import InvalidRequest
from kingtask.result import Result
from kingtask.task import OPTIONS

Instant = float | datetime
"""Epoch seconds, or a datetime that has a time zone."""

Duration = float | timedelta
"""Seconds, or a timedelta."""

TaskRef = str | UUID | Task | AsyncTask | Result


class TaskOptions(TypedDict, total=False):
    """The types of task.OPTIONS for Python callers; an option that is left out or None has its default.

    TaskSpec defines and checks the options.
    """

    at: Instant | None
    delay: Duration | None
    retry: Iterable[Duration]
    queue: str | None
    priority: int | None
    time_limit: Duration | None
    stdin: bytes | str | None
    env: Mapping[str, str] | None
    keep_result: Duration | None
    expires_at: Instant | None
    stderr: Literal["fail", "keep"] | None
    on_lost: Literal["retry", "fail"] | None
    tags: Iterable[str]


def task_fields(task_id: str, name: str, args: Iterable[str], options: TaskOptions) -> dict[str, Any]:
    """Return the map of one task, whose values the protocol checks.

    Raises TypeError for an unknown option, InvalidRequest for a datetime without zone.
    """
    fields: dict[str, Any] = {"id": task_id, "name": name}
    if args != ():
        fields["args"] = _listed(args)
    for option, value in options.items():
        field = OPTIONS.get(option)
        if field is None:
            raise TypeError(f"unknown task option {option!r}; the options are {', '.join(OPTIONS)}")
        if value is not None and value != ():
            convert = CONVERSIONS.get(field)
            fields[field] = value if convert is None else convert(value)
    return fields


def id_of(task: TaskRef) -> str:
    """Return the id of a task that is given as a handle, a result or an id."""
    if isinstance(task, (Task, AsyncTask, Result)):
        return task.id
    return str(task).lower()


def epoch_s(value: Instant, place: str) -> float:
    """Return an instant as epoch seconds. Raises InvalidRequest, naming `place`, for a datetime without zone."""
    if not isinstance(value, datetime):
        return value
    if value.utcoffset() is None:
        raise InvalidRequest(
            f"{place}: expected a datetime with a time zone, such as datetime.now(UTC) or value.astimezone(),"
            f" or epoch seconds; got {value!r}",
            field=place,
        )
    return value.timestamp()


def _seconds(value: Duration) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _listed(values: Any) -> Any:
    """Return an iterable as a list, but not a string, which is one value."""
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping))
    return list(values) if several else values


def _intervals(values: Any) -> Any:
    listed = _listed(values)
    return [_seconds(value) for value in listed] if isinstance(listed, list) else listed


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "start_at": lambda value: epoch_s(value, "task.start_at"),
    "delay_s": _seconds,
    "retry": _intervals,
    "time_limit_s": _seconds,
    "stdin": lambda value: value.encode() if isinstance(value, str) else value,
    "env": lambda value: dict(value) if isinstance(value, Mapping) else value,
    "keep_result_s": _seconds,
    "expires_at": lambda value: epoch_s(value, "task.expires_at"),
    "tags": _listed,
}
"""The fields that have another type in Python than on the wire."""
