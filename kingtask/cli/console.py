"""Output of the commands: lines of JSON for programs, aligned tables and plain lines for people.

Everything for programs is UTF-8 whatever the locale, and bytes of a task go out as they came. What a task chose (its
arguments, messages, tags) never reaches a terminal unescaped in a table or a message.
"""

from __future__ import annotations

import os
import select
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from kingtask.result import Result
from kingtask.states import State

if TYPE_CHECKING:
    from kingtask.result import Attempt

LIST_FIELDS = (
    "id",
    "name",
    "queue",
    "priority",
    "state",
    "reason",
    "created_at",
    "due_at",
    "finished_at",
    "attempt",
    "worker",
    "origin",
)
"""Return the fields of a task in `list`; `get` has the others."""


def write(data: bytes) -> None:
    """Write bytes to stdout and flush them, since a reader may wait for them."""
    _write_all(sys.stdout, data)


def write_error(data: bytes) -> None:
    """Bytes to stderr, at once."""
    _write_all(sys.stderr, data)


def say(text: str) -> None:
    """A line for people on stdout."""
    write(f"{text}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def note(text: str) -> None:
    """A line for people on stderr: progress, reasons, ids of tasks that are waited for."""
    write_error(f"{text}\n".encode(sys.stderr.encoding or "utf-8", "backslashreplace"))


def write_json(value: Mapping[str, Any]) -> None:
    """One line of JSON on stdout."""
    write(json_line(value))


def json_line(value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def result_fields(result: Result) -> dict[str, Any]:
    """A Result for JSON: every field, bytes as text or, if they are not UTF-8, base64 under `NAME_b64`."""
    fields = _printable(msgspec.structs.asdict(result))
    fields["attempts"] = [_attempt_fields(attempt) for attempt in result.attempts]
    return {
        **fields,
        "success": result.success,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "truncated": result.truncated,
        "stdout_cut": result.stdout_cut,
        "stderr_cut": result.stderr_cut,
    }


def row_fields(result: Result) -> dict[str, Any]:
    """A Result of `list` for JSON: only what a list knows."""
    return {name: getattr(result, name) for name in LIST_FIELDS}


def _write_all(stream: TextIO, data: bytes) -> None:
    """Past Python's buffers: with `python -u` there are none, and a large write would silently be a part of it."""
    stream.flush()
    fd = stream.fileno()
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # the pipe was opened without blocking
            select.select([], [fd], [])


def _attempt_fields(attempt: Attempt) -> dict[str, Any]:
    return _printable(msgspec.structs.asdict(attempt))


def _printable(fields: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in fields.items():
        if not isinstance(value, bytes):
            shown[name] = value
            continue
        try:
            shown[name] = value.decode()
        except UnicodeDecodeError:
            shown[f"{name}_b64"] = b64encode(value).decode()
    return shown


def visible(text: str) -> str:
    """Text of others on a terminal: control characters and the like are shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Aligned columns, no lines drawn; columns numbered in `right` are set to the right. Ends without a newline."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    lines = []
    for row in [list(headings), *cells]:
        parts = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def ending(result: Result) -> str:
    """How a task stands or ended, in a few words: `succeeded`, `failed (time_limit)`, `scheduled`."""
    text = str(result.state)
    if result.state is State.RUNNING and result.cancelling:
        return "running (cancelling)"
    return f"{text} ({result.reason})" if result.reason else text
