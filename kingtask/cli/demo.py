"""`kingtask demo`: four tasks in a kingtask of their own, in a temporary directory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
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
    from rich.live import Live

    from kingtask.client import Client
    from kingtask.result import Result

AHEAD_S = 2.0
ENDED_WITHIN_S = 60.0
POLL_S = 0.2

HEADINGS = ("TASK", "WHAT IT SHOWS", "STATE", "OUTCOME")


@dataclass(slots=True)
class Case:
    """One task and its expected end: `judge` returns whether the end is the expected one, and a description."""

    command: str
    shows: str
    options: dict[str, Any]
    judge: Callable[[Result], tuple[bool, str]]
    id: str = ""
    state: str = "submitting"
    as_expected: bool = False
    outcome: str = ""

    @property
    def row(self) -> tuple[str, str, str, str]:
        return (self.command, self.shows, self.state, self.outcome)


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
    """Submit the cases and show them until each has ended. Raises Stopped and ProcessEnded as Tree.watch does.

    On a terminal a table changes in place; elsewhere each end is a line on stderr, and the table comes last.
    """
    from kingtask.client import Client
    from kingtask.errors import ResultTimeout

    with Client(address, curve_key="", server_key="") as client, ExitStack() as display:
        cases = _submitted(client)
        live = _live(cases) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else None
        if live:
            display.enter_context(live)
        else:
            console.note(f"submitted {len(cases)} tasks, waiting for each …")
            display.callback(lambda: console.say(console.table(HEADINGS, [case.row for case in cases])))
        deadline = monotonic_s() + ENDED_WITHIN_S
        while (running := [case for case in cases if not case.outcome]) and monotonic_s() < deadline:
            tree.watch(0)
            with suppress(ResultTimeout):
                client.wait(running[0].id, POLL_S)
            for case in running:
                result = client.get(case.id)
                case.state = str(result.state)
                if result.ended:
                    case.as_expected, case.outcome = case.judge(result)
                    if not live:
                        console.note(f"{result.name}: {case.outcome}")
            if live:
                live.refresh()
    return cases


def _submitted(client: Client) -> list[Case]:
    at = round(wall_s() + AHEAD_S, 3)
    cases = [
        Case("example 12 45", "now", {}, _is_sum),
        Case("clock", f"on an instant, {AHEAD_S:.0f} s ahead", {"at": at}, partial(_lateness, at)),
        Case("flaky", "fails twice; again after 0.5 s, 1 s", {"retry": [0.5, 1.0]}, _third_attempt),
        Case("slow", "over its time limit of 1 s", {"time_limit": 1.0}, _cut_off),
    ]
    for case in cases:
        name, *args = case.command.split()
        case.id = client.submit(name, args, **case.options).id
    return cases


def _is_sum(result: Result) -> tuple[bool, str]:
    return result.success and result.text == "57\n", f"printed {result.text.strip()}"


def _lateness(at: float, result: Result) -> tuple[bool, str]:
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


def _live(cases: Sequence[Case]) -> Live:
    """Return a display of the cases that its `refresh` brings up to date."""
    import rich.box
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        shown = Table(*HEADINGS, box=rich.box.SIMPLE)
        for case in cases:
            style = "" if not case.outcome else "green" if case.as_expected else "red"
            shown.add_row(*(Text(cell, style) for cell in case.row))
        return shown

    return Live(get_renderable=table, auto_refresh=False)
