"""`kingtask submit --from`: tasks as lines of JSON, and for each, in order, a line of JSON with its outcome.

A line is an object with the fields of a task in PROTOCOL.md; `stdin` is text there, `stdin_b64` any bytes. The options
of the command line are the defaults. All lines that one read(2) returns are one batch: a slow writer gets each answer
soon, and a fast writer gets large batches.
"""

from __future__ import annotations

import os
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from kingtask import protocol, wire
from kingtask.cli import console, result_view
from kingtask.cli.connect import connect
from kingtask.cli.exit import exit_for
from kingtask.clock import monotonic_s, wall_s
from kingtask.errors import InvalidRequest, KingtaskError, NoAnswer, RequestRefused
from kingtask.result import Result
from kingtask.task import TaskSpec

if TYPE_CHECKING:
    from kingtask.client import Client

READ_BYTES = 1_048_576
LONGEST_LINE_BYTES = 8 * wire.MAX_MESSAGE_BYTES
"""A message in JSON: each byte may take several."""


def submit_lines(source: str, defaults: Mapping[str, Any], wait: float | None) -> int:
    """Submit every line of `source` (`-`: standard input); return the first exit status that is not 0."""
    status, number, silent = 0, 0, False
    with _opened(source) as file, connect() as client:
        for texts in _blocks(file.fileno()):
            tasks = {number + i: _task(text, defaults) for i, text in enumerate(texts, 1) if text.strip()}
            number += len(texts)
            for line, task_id, found in _answers(client, tasks, wait):
                if isinstance(found, KingtaskError):
                    status = status or exit_for(found)
                    silent = silent or isinstance(found, NoAnswer)
                    fields = {"id": task_id, "outcome": "error", "error": _error_fields(found)}
                elif isinstance(found, Result):
                    status = status or result_view.status_of(found)
                    fields = console.result_fields(found)
                else:
                    fields = {"id": task_id, "outcome": found}
                console.write_json({"line": line, **fields})
            if silent:  # no broker would answer the later lines either
                console.note(f"kingtask: no answer, stopped after line {number}")
                break
    return status


def _opened(source: str) -> IO[bytes]:
    try:
        return open(sys.stdin.fileno() if source == "-" else source, "rb", closefd=source != "-")
    except OSError as error:
        raise click.UsageError(f"--from: cannot read {source}: {error.strerror}.") from None


def _blocks(fd: int) -> Iterator[list[bytes]]:
    """Wait for at least one whole line, then yield all that were read."""
    rest = bytearray()
    while data := os.read(fd, READ_BYTES):
        end = data.rfind(b"\n")
        rest += data[: end + 1]
        if end >= 0:
            yield bytes(rest[:-1]).split(b"\n")
            rest.clear()
        rest += data[end + 1 :]
        if len(rest) > LONGEST_LINE_BYTES:
            raise click.UsageError(f"--from: a line is longer than {LONGEST_LINE_BYTES:,} bytes.")
    if rest:
        yield [bytes(rest)]


def _task(text: bytes, defaults: Mapping[str, Any]) -> TaskSpec | InvalidRequest:
    try:
        return protocol.parse_task({**defaults, **_fields(text)}, wall_s(), "")
    except InvalidRequest as error:
        return error


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"not JSON: {error}", code="malformed") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("expected an object with the fields of a task")
    if isinstance(fields.get("stdin"), str):
        fields["stdin"] = fields["stdin"].encode()
    if "stdin_b64" in fields:
        try:
            fields["stdin"] = b64decode(fields.pop("stdin_b64"), validate=True)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"stdin_b64: {error}", field="stdin_b64") from None
    return fields


def _answers(
    client: Client, tasks: Mapping[int, TaskSpec | InvalidRequest], wait: float | None
) -> Iterator[tuple[int, str | None, KingtaskError | Result | str]]:
    """Submit the tasks; yield for each line, in their order, the task's id and its error, result or outcome."""
    deadline = monotonic_s() + (wait or 0)
    submitted = iter(client.submit_many([task for task in tasks.values() if isinstance(task, TaskSpec)]))
    if wait is not None:
        submitted = iter(list(submitted))  # store all before waiting for the first
    for number, task in tasks.items():
        if isinstance(task, InvalidRequest):
            yield number, None, task
            continue
        outcome = next(submitted)
        found: KingtaskError | Result | str = outcome.error or outcome.outcome
        if wait is not None and outcome.error is None:
            try:
                found = result_view.wait_for(client, outcome.task.id, max(0.0, deadline - monotonic_s()))
            except KingtaskError as error:
                found = error
        yield number, outcome.task.id, found


def _error_fields(error: KingtaskError) -> dict[str, Any]:
    if isinstance(error, RequestRefused):
        return protocol.error_fields(error)
    stored = error.stored if isinstance(error, NoAnswer) else "no"
    return {"code": "no_answer", "message": str(error), "retryable": True, "stored": stored}
