"""The options of `submit` that describe a task. Each is passed under the name of the field of TaskSpec that it sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from kingtask import protocol, task
from kingtask.cli.connect import Decorated
from kingtask.cli.param_types import INTERVALS, PAIR, SECONDS, TASK_ID, WHEN, id_of_key
from kingtask.clock import wall_s
from kingtask.errors import InvalidRequest
from kingtask.task import MAX_STDIN_BYTES, TaskSpec

SETTINGS: dict[str, dict[str, Any]] = {
    "at": {"metavar": "TIME", "type": WHEN, "help": "Start at this instant. A time without a zone is local."},
    "delay": {"metavar": "S", "type": SECONDS, "help": "Start after so many seconds, or 90s, 5m, 1h30m."},
    "retry": {"metavar": "S,S,…", "type": INTERVALS, "help": "Pauses before the second, third, … attempt."},
    "queue": {"metavar": "QUEUE", "help": "The queue.  [default: default]"},
    "priority": {"metavar": "0-9", "type": click.IntRange(0, 9), "help": "Higher goes first.  [default: 5]"},
    "time_limit": {"metavar": "S", "type": SECONDS, "help": "Longest duration of an attempt."},
    "stdin": {"metavar": "FILE|-", "help": "Standard input of the executable; - passes on this command's."},
    "env": {"metavar": "NAME=VALUE", "type": PAIR, "multiple": True, "help": "Environment variable; repeatable."},
    "keep_result": {"metavar": "S", "type": SECONDS, "help": "How long to keep the result after the end."},
    "expires_at": {"metavar": "TIME", "type": WHEN, "help": "Do not start it after this instant."},
    "stderr": {
        "type": click.Choice(["fail", "keep"]),
        "help": "Whether output on stderr makes the task fail.  [default: the worker's setting]",
    },
    "on_lost": {
        "type": click.Choice(["retry", "fail"]),
        "help": "If its worker dies in an attempt: run it again, or fail (at most one execution).  [default: retry]",
    },
    "tags": {"metavar": "TEXT", "multiple": True, "help": "A note kept with the task; repeatable."},
}
"""The arguments of click.option for each of task.OPTIONS."""

IDS = (
    click.option("--id", metavar="UUID", type=TASK_ID, help="Id of the task; submitting it again changes nothing."),
    click.option(
        "--key",
        metavar="TEXT",
        callback=lambda _context, _option, text: None if text is None else _text("--key", text),
        help="Derive the id from this text: cron on two hosts then makes one task, not two.",
    ),
)


def task_options(command: Decorated) -> Decorated:
    """Add an option for each of task.OPTIONS, --id and --key."""
    for option in IDS:
        command = option(command)
    for name, field in reversed(task.OPTIONS.items()):
        flag = "--tag" if name == "tags" else f"--{name.replace('_', '-')}"
        command = click.option(flag, field, **SETTINGS[name])(command)
    return command


def wire_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options as fields of a submit request. Raises click.UsageError."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "id" in given and "key" in given:
        raise click.UsageError("--id and --key exclude each other.")
    if "start_at" in given and "delay_s" in given:
        raise click.UsageError("--at and --delay exclude each other.")
    if "key" in given and "expires_at" in given and given["expires_at"].relative:
        raise click.UsageError(
            "--key: --expires-at from now is another instant on each host and call, so that all but the first would be"
            ' refused (id_conflict); give an absolute time, such as --expires-at "$(date +%F) 06:00".'
        )
    fields: dict[str, Any] = {}
    for name, value in given.items():
        match name:
            case "start_at" if value.relative:
                if value.seconds < 0:
                    raise click.UsageError("--at: a time in the past; leave it out to start now.")
                # A delay counts on Redis's clock, and is equal on every host for the same --key.
                fields["delay_s"] = value.seconds
            case "start_at" | "expires_at":
                fields[name] = value.at(wall_s())
            case "key":
                fields["id"] = id_of_key(value)
            case "stdin":
                fields[name] = _read(value)
            case "env":
                fields[name] = {_text("--env", key): _text("--env", content) for key, content in value}
            case "tags":
                fields[name] = [_text("--tag", tag) for tag in value]
            case _:
                fields[name] = value
    return fields


def task_of(name: str, args: tuple[str, ...], fields: Mapping[str, Any]) -> TaskSpec:
    """Return the task, checked as a broker checks it. Raises click.UsageError."""
    texts = [_text(f"argument {i}", arg) for i, arg in enumerate(args, 1)]
    try:
        return protocol.parse_task({**fields, "name": _text("NAME", name), "args": texts}, wall_s(), "")
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None


def _read(path: str) -> bytes:
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(MAX_STDIN_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"--stdin: cannot read {path}: {error.strerror}.") from None
    if len(data) > MAX_STDIN_BYTES:
        raise click.UsageError(f"--stdin: more than {MAX_STDIN_BYTES:,} bytes.")
    return data


def _text(place: str, value: str) -> str:
    with suppress(UnicodeEncodeError):
        value.encode()
        return value
    try:
        return os.fsencode(value).decode()  # bytes without a character in this locale may be UTF-8 all the same
    except ValueError:
        raise click.UsageError(f"{place}: not UTF-8 text ({value!a}).") from None
