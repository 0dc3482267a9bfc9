"""`kingtask demo`: four tasks in a kingtask of their own, in a temporary directory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kingtask import procfs
from kingtask.cli import console
from kingtask.cli.exit import Exit
from kingtask.clock import monotonic_s, wall_s

if TYPE_CHECKING:
    from rich.table import Table

    from kingtask.cli.process_tree import Tree
    from kingtask.client import Client
    from kingtask.result import Result

AHEAD_S = 2.0
PATIENCE_S = 60.0
LOOK_S = 0.2

HEADINGS = ("TASK", "WHAT IT SHOWS", "STATE", "OUTCOME")


@dataclass(slots=True)
class Case:
    """One task, and what is expected of it: `judge` returns whether that came, and says what did."""

    name: str
    args: tuple[str, ...]
    shows: str
    options: dict[str, Any]
    judge: Callable[[Result], tuple[bool, str]]
    id: str = ""
    result: Result | None = None
    as_expected: bool = False
    outcome: str = ""

    @property
    def row(self) -> tuple[str, str, str, str]:
        state = str(self.result.state) if self.result else "submitting"
        return (" ".join((self.name, *self.args)), self.shows, state, self.outcome)


@click.command(short_help="See four tasks run, in a temporary directory.")
def demo() -> int:
    """Start everything in a temporary directory, run four tasks, show how each ended.

    The exit status is 0 only if each ended as it should.
    """
    from kingtask.cli.dev_stack import Stack, StackOptions
    from kingtask.cli.process_tree import ProcessEnded, Stopped, Tree

    with tempfile.TemporaryDirectory(prefix="kingtask-demo-") as directory, Tree() as tree:
        stack = Stack(tree, StackOptions(data=Path(directory), port=0))
        try:
            console.note("starting Valkey, a broker and a worker …")
            stack.start()
            cases = run(stack.address, tree)
        except Stopped:
            return Exit.INTERRUPTED
        except ProcessEnded as ended:
            console.note(f"kingtask: {ended}")
            return Exit.TASK_FAILED
        finally:
            tree.stop()
            stack.close()
    good = all(case.as_expected for case in cases)
    console.say("Every outcome was the expected one." if good else "Not every outcome was the expected one.")
    return Exit.OK if good else Exit.TASK_FAILED


def run(address: str, tree: Tree) -> list[Case]:
    """Submit the cases and wait for each, showing how they stand. Raises Stopped and Ended as Tree.watch does."""
    from kingtask.client import Client

    with Client(address, curve_key="", server_key="") as client:
        cases = _submitted(client)
        with _display(cases) as show:
            deadline = monotonic_s() + PATIENCE_S
            while (open_cases := [case for case in cases if not case.outcome]) and monotonic_s() < deadline:
                tree.watch(0)
                _look(client, open_cases)
                show()
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


def _look(client: Client, cases: Sequence[Case]) -> None:
    """See how the cases stand; waits a moment for the first."""
    from kingtask.errors import ResultTimeout

    with suppress(ResultTimeout):
        client.wait(cases[0].id, LOOK_S)
    for case in cases:
        case.result = client.get(case.id)
        if case.result.ended:
            case.as_expected, case.outcome = case.judge(case.result)


def _is_sum(result: Result) -> tuple[bool, str]:
    return result.success and result.text == "57\n", f"printed {result.text.strip()}"


def _lateness(result: Result, at: float) -> tuple[bool, str]:
    """It prints its start in nanoseconds; where `date` cannot, the worker's record in milliseconds must do."""
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
    survived = child.isdigit() and _runs(child)
    text = f"stopped ({result.reason}), {'but its child goes on' if survived else 'its child as well'}"
    return result.reason == "time_limit" and child.isdigit() and not survived, text


def _runs(pid: str) -> bool:
    """Whether a process exists and is no zombie: in a container nobody may reap an orphan."""
    try:
        return procfs.stat(int(pid))[procfs.STATE] not in (b"Z", b"X")
    except OSError:
        return False


def _display(cases: list[Case]) -> Lines | Live:
    """How progress is shown: a table that changes in place on a terminal, else a line for each task that ends."""
    return Live(cases) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines(cases)


class Lines:
    """A line on stderr for each task that ends, and the table on stdout at the end."""

    def __init__(self, cases: list[Case]) -> None:
        self._cases = cases
        self._told: set[str] = set()

    def __enter__(self) -> Callable[[], None]:
        console.note(f"submitted {len(self._cases)} tasks, waiting for each …")
        return self._show

    def __exit__(self, *error: object) -> None:
        console.say(console.table(HEADINGS, [case.row for case in self._cases]))

    def _show(self) -> None:
        for case in self._cases:
            if case.outcome and case.id not in self._told:
                self._told.add(case.id)
                console.note(f"{case.name}: {case.outcome}")


class Live:
    """The table, drawn again as things change."""

    def __init__(self, cases: list[Case]) -> None:
        import rich.live

        self._cases = cases
        self._live = rich.live.Live(self._table(), auto_refresh=False)

    def __enter__(self) -> Callable[[], None]:
        self._live.start(refresh=True)
        return self._show

    def __exit__(self, *error: object) -> None:
        self._show()
        self._live.stop()

    def _show(self) -> None:
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        import rich.box
        import rich.table
        from rich.text import Text

        table = rich.table.Table(*HEADINGS, box=rich.box.SIMPLE)
        for case in self._cases:
            style = "" if not case.outcome else "green" if case.as_expected else "red"
            table.add_row(*(Text(cell, style) for cell in case.row))
        return table
