"""Types of options: each turns text into a value or names the expected forms (exit status 2)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from kingtask.cli import times
from kingtask.clock import wall_s
from kingtask.task import QUEUE_PATTERN

KEY_NAMESPACE = uuid.UUID("471f1daf-9a86-49d9-87fb-d9d3b6f45ced")
"""`id_of_key` derives ids from it. Never change either: equal keys must stay equal tasks."""


class TextType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.3
    """A value that `read` makes of text; its ValueError and the `expected` forms make a usage error."""

    def __init__(self, name: str, read: Callable[[str], Any], expected: str = "") -> None:
        self.name = name
        self._read = read
        self._expected = f"; expected {expected}" if expected else ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}{self._expected}", param, ctx)


def _task_id(text: str) -> str:
    with suppress(ValueError):
        if str(uuid.UUID(text)) == text.lower():
            return text.lower()
    raise ValueError("this is not a UUID such as 6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11")


def _queue(text: str) -> str:
    if not re.match(QUEUE_PATTERN, text):
        raise ValueError("expected letters, digits, . _ -, at most 64, not beginning with . or -")
    return text


def _pair(text: str) -> tuple[str, str]:
    key, equals, content = text.partition("=")
    if not equals or not key:
        raise ValueError("expected NAME=VALUE")
    return key, content


WHEN = TextType("time", times.parse_when, f"one of: {times.FORMS}")
INSTANT = TextType("time", lambda text: times.parse_when(text).at(wall_s()), f"one of: {times.FORMS}")
SECONDS = TextType("seconds", times.parse_duration, times.DURATION_FORMS)
INTERVALS = TextType("seconds,…", times.parse_intervals, f"a list such as 5,8,9, each {times.DURATION_FORMS}")
TASK_ID = TextType("id", _task_id)
QUEUE = TextType("queue", _queue)
PAIR = TextType("name=value", _pair)


def id_of_key(key: str, owner: str | None = None) -> str:
    """Return the task id that `--key` stands for. It depends on the owner, so that no client takes another one's id."""
    namespace = KEY_NAMESPACE if owner is None else uuid.uuid5(KEY_NAMESPACE, owner)
    return str(uuid.uuid5(namespace, key))
