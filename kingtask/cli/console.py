"""Output of the commands: lines of JSON for programs, aligned tables and plain lines for people.

Output for programs is UTF-8 whatever the locale, and the output of a task passes unchanged. All other text that a task
or a broker chose reaches a terminal escaped: each line for people, and in JSON the control characters.
"""

from __future__ import annotations

import os
import re
import select
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import msgspec

from kingtask.result import Result
from kingtask.states import State

LIST_FIELDS = "id name queue priority state reason created_at due_at finished_at attempt worker origin".split()
"""The fields of a Result that `list` knows; `get` has all."""
PROPERTIES = "success exit_code signal truncated stdout_cut stderr_cut".split()
"""The properties of a Result that JSON has beside its fields."""
_CONTROLS = re.compile(b"\x7f|\xc2[\x80-\x9f]")
"""DEL and the second set of control characters, in UTF-8."""


def write(stream: TextIO, data: bytes) -> None:
    """Write past Python's buffers: the reader may be waiting.

    `python -u` has no buffers, and would silently write only a part of much data.
    """
    stream.flush()
    fd = stream.fileno()
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # the process that gave us this pipe set it to non-blocking
            select.select([], [fd], [])


def say(text: str) -> None:
    """Write lines for people to stdout."""
    _write_lines(sys.stdout, text)


def note(text: str) -> None:
    """Write lines for people to stderr: progress, reasons, ids of tasks that are waited for."""
    _write_lines(sys.stderr, text)


def _write_lines(stream: TextIO, text: str) -> None:
    lines = "".join(f"{visible(line)}\n" for line in text.split("\n"))
    write(stream, lines.encode(stream.encoding or "utf-8", "backslashreplace"))


def write_json(value: Mapping[str, Any]) -> None:
    """Write one line of JSON to stdout."""
    encoded = msgspec.json.encode(value)  # escapes the control characters before the space only
    write(sys.stdout, _CONTROLS.sub(lambda c: b"\\u%04x" % ord(c[0].decode()), encoded) + b"\n")


def show(as_json: bool, fields: Mapping[str, Any], text: str) -> None:
    """Write the fields for programs, or the text for people."""
    if as_json:
        write_json(fields)
    else:
        say(text)


def result_fields(result: Result) -> dict[str, Any]:
    """Return every field for JSON; bytes as text or, if they are not UTF-8, as base64 under `NAME_b64`."""
    fields = _printable(msgspec.structs.asdict(result))
    fields["attempts"] = [_printable(msgspec.structs.asdict(attempt)) for attempt in result.attempts]
    return fields | {name: getattr(result, name) for name in PROPERTIES}


def row_fields(result: Result) -> dict[str, Any]:
    """Return the fields of a Result of `list` for JSON."""
    return {name: getattr(result, name) for name in LIST_FIELDS}


def _printable(fields: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in fields.items():
        try:
            shown[name] = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            shown[f"{name}_b64"] = b64encode(value).decode()
    return shown


def visible(text: str) -> str:
    """Escape control characters and other characters that a terminal may interpret."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """Align columns without drawing lines; the columns numbered in `right` are right-aligned. No newline at the end."""
    lines = [list(headings), *([visible(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def ending(result: Result) -> str:
    """Describe the state in a few words: `succeeded`, `failed (time_limit)`, `running (cancelling)`."""
    detail = "cancelling" if result.state is State.RUNNING and result.cancelling else result.reason
    return f"{result.state} ({detail})" if detail else str(result.state)
