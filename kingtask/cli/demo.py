"""`kingtask demo`: four tasks in a kingtask of their own, in a temporary directory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kingtask import procfs
from kingtask.cli import console
from kingtask.cli.dev_stack import start
from kingtask.cli.exit import Exit
from kingtask.cli.process_tree import ProcessEnded, Stopped, Tree
from kingtask.clock import monotonic_s, wall_s

if TYPE_CHECKING:
    from rich.table import Table

    from kingtask.client import Client
    from kingtask.result import Result

AHEAD_S = 2.0
ENDED_WITHIN_S = 60.0
POLL_S = 0.2

HEADINGS = ("TASK", "WHAT IT SHOWS", "STATE", "OUTCOME")


@dataclass(slots=True)
class Case:
    """One task and its expected end: `judge` returns whether the end is the expected one, and a description."""

    name: str
    args: tuple[str, ...]
    shows: str
    options: dict[str, Any]
    judge: Callable[[Result], tuple[bool, str]]
    id: str = ""
    state: str = "submitting"
    as_expected: bool = False
    outcome: str = ""

    @property
    def row(self) -> tuple[str, str, str, str]:
        return (" ".join((self.name, *self.args)), self.shows, self.state, self.outcome)


@click.command(short_help="See four tasks run, in a temporary directory.")
def demo() -> int:
    """Start everything in a temporary directory, run four tasks, show how each ended.

    The exit status is 0 only if each ended as it should.
    """
    with tempfile.TemporaryDirectory(prefix="kingtask-demo-") as directory, Tree() as tree:
        try:
            console.note("starting Valkey, a broker and a worker …")
            cases = _run(start(tree, Path(directory)).address, tree)
        except Stopped:
            return Exit.INTERRUPTED
        except ProcessEnded as ended:
            console.note(f"kingtask: {ended}")
            return Exit.TASK_FAILED
    good = all(case.as_expected for case in cases)
    console.say("Every outcome was the expected one." if good else "Not every outcome was the expected one.")
    return Exit.OK if good else Exit.TASK_FAILED


def _run(address: str, tree: Tree) -> list[Case]:
    """Submit the cases and show them until each has ended. Raises Stopped and ProcessEnded as Tree.watch does."""
    from kingtask.client import Client

    with Client(address, curve_key="", server_key="") as client:
        cases = _submitted(client)
        with _display(cases) as show:
            deadline = monotonic_s() + ENDED_WITHIN_S
            while (running := [case for case in cases if not case.outcome]) and monotonic_s() < deadline:
                tree.watch(0)
                _refresh(client, running)
                show([case for case in running if case.outcome])
    return cases


def _submitted(client: Client) -> list[Case]:
    at = round(wall_s() + AHEAD_S, 3)
    cases = [
        Case("example", ("12", "45"), "now", {}, _is_sum),
        Case("clock", (), f"on an instant, {AHEAD_S:.0f} s ahead", {"at": at}, lambda result: _lateness(result, at)),
        Case("flaky", (), "fails twice; again after 0.5 s, 1 s", {"retry": [0.5, 1.0]}, _third_attempt),
        Case("slow", (), "over its time limit of 1 s", {"time_limit": 1.0}, _cut_off),
    ]
    for case in cases:
        case.id = client.submit(case.name, case.args, **case.options).id
    return cases


def _refresh(client: Client, cases: Sequence[Case]) -> None:
    """Read the results of the cases, after waiting a moment for the first."""
    from kingtask.errors import ResultTimeout

    with suppress(ResultTimeout):
        client.wait(cases[0].id, POLL_S)
    for case in cases:
        result = client.get(case.id)
        case.state = str(result.state)
        if result.ended:
            case.as_expected, case.outcome = case.judge(result)


def _is_sum(result: Result) -> tuple[bool, str]:
    return result.success and result.text == "57\n", f"printed {result.text.strip()}"


def _lateness(result: Result, at: float) -> tuple[bool, str]:
    """Compare with the start that the task prints in nanoseconds; without GNU's `date`, with the worker's record."""
    printed = result.text.strip()
    if printed.isdigit():
        late_ms = int(printed) / 1e6 - at * 1e3
    else:
        late_ms = (result.attempts[-1].started_at - at) * 1e3 if result.attempts else -1.0
    return result.success and late_ms >= 0, f"started {late_ms:.1f} ms after it"


def _third_attempt(result: Result) -> tuple[bool, str]:
    numbers = [attempt.number for attempt in result.attempts]
    outcome = f"attempt {result.attempt} succeeded" if result.success else "failed"
    return result.success and numbers == [1, 2, 3], outcome


def _cut_off(result: Result) -> tuple[bool, str]:
    child = result.text.strip()
    survived = child.isdigit() and _runs(int(child))
    text = f"stopped ({result.reason}), {'but its child goes on' if survived else 'its child as well'}"
    return result.reason == "time_limit" and child.isdigit() and not survived, text


def _runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie: in a container nothing may reap an orphan."""
    try:
        return procfs.stat(pid)[procfs.STATE] not in (b"Z", b"X")
    except OSError:
        return False


@contextmanager
def _display(cases: Sequence[Case]) -> Iterator[Callable[[Sequence[Case]], None]]:
    """Show the cases: a table that changes in place on a terminal, else a line on stderr for each that ends.

    Yields a function that takes the cases that have just ended.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        import rich.live

        with rich.live.Live(_table(cases), auto_refresh=False) as live:
            yield lambda _ended: live.update(_table(cases), refresh=True)
        return
    console.note(f"submitted {len(cases)} tasks, waiting for each …")
    try:
        yield _note_outcomes
    finally:
        console.say(console.table(HEADINGS, [case.row for case in cases]))


def _note_outcomes(ended: Sequence[Case]) -> None:
    for case in ended:
        console.note(f"{case.name}: {case.outcome}")


def _table(cases: Sequence[Case]) -> Table:
    import rich.box
    import rich.table
    from rich.text import Text

    table = rich.table.Table(*HEADINGS, box=rich.box.SIMPLE)
    for case in cases:
        style = "" if not case.outcome else "green" if case.as_expected else "red"
        table.add_row(*(Text(cell, style) for cell in case.row))
    return table
