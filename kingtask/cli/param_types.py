"""Types of options: each turns text into a value or names what was expected (exit status 2)."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

import click

from kingtask.cli import times
from kingtask.task import QUEUE_PATTERN

if TYPE_CHECKING:
    from click import Context, Parameter

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic only since click 8.3

KEY_NAMESPACE = uuid.UUID("471f1daf-9a86-49d9-87fb-d9d3b6f45ced")
"""`--key TEXT` makes the id uuid5(KEY_NAMESPACE, TEXT). Never change it: equal keys must stay equal tasks."""


class WhenType(ParamType):
    name = "time"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> times.When:
        if isinstance(value, times.When):
            return value
        try:
            return times.parse_when(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}; expected one of: {times.FORMS}", param, ctx)


class SecondsType(ParamType):
    name = "seconds"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return times.parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}; expected {times.DURATION_FORMS}", param, ctx)


class IntervalsType(ParamType):
    name = "seconds,…"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return times.parse_intervals(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}; expected a list such as 5,8,9, each {times.DURATION_FORMS}", param, ctx)


class TaskIdType(ParamType):
    name = "id"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> str:
        text = str(value).lower()
        try:
            canonical = str(uuid.UUID(text)) == text
        except ValueError:
            canonical = False
        if not canonical:
            self.fail(f"{value!r} is not a UUID such as 6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11", param, ctx)
        return text


class QueueType(ParamType):
    name = "queue"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> str:
        if not re.match(QUEUE_PATTERN, value):
            self.fail(f"{value!r}: expected letters, digits, . _ -, at most 64, not beginning with . or -", param, ctx)
        return str(value)


class PairType(ParamType):
    name = "name=value"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, content = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r}: expected NAME=VALUE", param, ctx)
        return key, content


WHEN = WhenType()
SECONDS = SecondsType()
INTERVALS = IntervalsType()
TASK_ID = TaskIdType()
QUEUE = QueueType()
PAIR = PairType()


def id_of_key(key: str) -> str:
    """The task id that `--key` stands for."""
    return str(uuid.uuid5(KEY_NAMESPACE, key))
