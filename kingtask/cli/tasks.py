"""`kingtask get`, `wait`, `cancel` and `forget`: tasks by their ids."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable

import click

from kingtask.cli import console, result_view
from kingtask.cli.connect import connect, shared_options, shared_options_without_timeout
from kingtask.cli.exit import Exit, exit_for
from kingtask.cli.param_types import SECONDS, TASK_ID
from kingtask.cli.times import local_time, short_duration
from kingtask.clock import monotonic_s
from kingtask.errors import RequestRefused
from kingtask.result import SHOWN_BYTES, Attempt, Result, readable

IDS = click.argument("ids", metavar="ID...", nargs=-1, required=True, type=TASK_ID)


@click.command()
@shared_options
@IDS
def get(ids: tuple[str, ...], as_json: bool) -> int:
    """Show tasks: state, attempts, output. The exit status is 0 for every task that is found, however it ended."""
    with connect() as client:

        def show(task_id: str) -> int:
            result = client.get(task_id)
            if as_json:
                console.write_json(console.result_fields(result))
            else:
                console.say(description(result))
            return Exit.OK

        return each(ids, show)


@click.command(short_help="Wait until tasks have ended, and show their output.")
@click.option("--timeout", metavar="S", type=SECONDS, help="Wait at most so long (exit status 9).  [default: no limit]")
@click.option("--propagate", is_flag=True, help="End with the task's exit status (a signal: 128 + number).")
@shared_options_without_timeout
@IDS
def wait(ids: tuple[str, ...], timeout: float | None, propagate: bool, as_json: bool) -> int:
    """Wait until tasks have ended; their output becomes this command's, in the order of the ids.

    The exit status is 0 if all succeeded, 1 if one did not, 9 if one has not ended in time; of several tasks, the
    first status that is not 0 counts.
    """
    deadline = math.inf if timeout is None else monotonic_s() + timeout
    with connect() as client:

        def show(task_id: str) -> int:
            result = result_view.wait_for(client, task_id, max(0.0, deadline - monotonic_s()))
            return result_view.show(result, as_json=as_json, propagate=propagate)

        return each(ids, show)


@click.command()
@shared_options
@IDS
def cancel(ids: tuple[str, ...], as_json: bool) -> int:
    """Cancel tasks. One that runs is stopped by its worker: it is `cancelling` until then.

    The exit status is 6 for a task that has ended already in another way.
    """
    return _show_outcomes(ids, "cancel", as_json)


@click.command()
@shared_options
@IDS
def forget(ids: tuple[str, ...], as_json: bool) -> int:
    """Remove the records of tasks that have ended, with their output.

    The exit status is 6 for a task that has not ended, 7 for one whose record is gone already.
    """
    return _show_outcomes(ids, "forget", as_json)


def _show_outcomes(ids: tuple[str, ...], method: str, as_json: bool) -> int:
    with connect() as client:

        def act(task_id: str) -> int:
            outcome = getattr(client, method)(task_id)
            console.show(as_json, {"id": task_id, "outcome": outcome}, f"{task_id}: {outcome}")
            return Exit.OK

        return each(ids, act)


def each(ids: Iterable[str], act: Callable[[str], int]) -> int:
    """Call `act` with every id, also after a refusal; return the first exit status that is not 0.

    NoAnswer is raised at once: the broker would not answer for the others either.
    """
    status = 0
    for task_id in ids:
        try:
            ended = act(task_id)
        except RequestRefused as error:
            console.note(f"kingtask: {task_id}: {error}")
            ended = exit_for(error)
        status = status or ended
    return status


def description(result: Result) -> str:
    """Describe a task for people, over several lines."""
    lines = [
        ("task", result.id),
        ("runs", " ".join((result.name, *map(shlex.quote, result.args)))),
        ("dropped", "args, stdin, env and tags, to make room for later ones" if result.request_dropped else ""),
        ("state", console.ending(result)),
        ("queue", f"{result.queue}, priority {result.priority}"),
        ("created", local_time(result.created_at)),
        ("due", local_time(result.due_at)),
        ("ended", local_time(result.finished_at) if result.finished_at else ""),
        ("worker", result.worker),
        ("origin", result.origin),
        ("tags", ", ".join(result.tags)),
    ]
    for attempt in result.attempts:
        shown = result.stderr if attempt is result.attempts[-1] else b""
        lines.append((f"attempt {attempt.number}", _attempt(attempt, shown)))
    described = [f"{name:<12}{console.visible(text)}" for name, text in lines if text]
    described += _output_lines("stdout", result.stdout, result.stdout_size, dropped=result.dropped)
    described += _output_lines("stderr", result.stderr, result.stderr_size, dropped=result.dropped)
    return "\n".join(described)


def _attempt(attempt: Attempt, shown: bytes) -> str:
    """Describe an attempt in a line, without the stderr `shown` below the line."""
    text = f"{local_time(attempt.started_at)}, {short_duration(attempt.ended_at - attempt.started_at)}"
    text += f" on {attempt.worker}: {attempt.reason or 'succeeded'}"
    if attempt.message:  # it contains the numbers
        quote = shown[-SHOWN_BYTES:].decode("utf-8", "replace").strip()
        return f"{text}: {attempt.message.replace(f': {quote}', '', 1) if quote else attempt.message}"
    if attempt.exit_code is not None:
        text += f", exit status {attempt.exit_code}"
    if attempt.signal is not None:
        text += f", signal {attempt.signal}"
    tail = attempt.stderr_tail.strip()
    return text if shown.strip().endswith(tail) else f"{text}: {tail.decode('utf-8', 'replace')}"


def _output_lines(name: str, kept: bytes, size: int, *, dropped: bool) -> list[str]:
    if not size:
        return []
    if dropped:
        return [f"{name:<12}{size:,} bytes, dropped to make room for later ones"]
    cut = f", {len(kept):,} of them kept" if size > len(kept) else ""
    lines = readable(kept, size).splitlines()
    return [f"{name:<12}{size:,} bytes{cut}", *(f"  {console.visible(line)}" for line in lines)]
