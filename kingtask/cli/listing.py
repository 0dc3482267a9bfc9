"""`kingtask list`: tasks by state, queue and time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from kingtask.cli import output
from kingtask.cli.connect import broker_option, connect, json_option, timeout_option
from kingtask.cli.exit import Exit
from kingtask.cli.params import QUEUE, WHEN
from kingtask.cli.times import When, local_time
from kingtask.clock import wall_s
from kingtask.task import TERMINAL, Result, State

if TYPE_CHECKING:
    from kingtask.client import Client

LIVE = (State.RUNNING, State.READY, State.SCHEDULED)
DEFAULT_LIMIT = 50
TIMELESS = (State.READY, State.RUNNING)
HEADINGS = ("ID", "STATE", "QUEUE", "NAME", "TRY", "WHEN", "")


@click.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="[default: those that live]")
@click.option("--queue", type=QUEUE, metavar="QUEUE", help="Only of this queue.")
@click.option("--since", metavar="TIME", type=WHEN, help="Ended, or for scheduled ones due, at or after; -1h is an hour ago.")
@click.option("--until", metavar="TIME", type=WHEN, help="The same, at or before.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(0), default=DEFAULT_LIMIT, show_default=True, help="Of each state; 0: all."
)
@json_option
@broker_option
@timeout_option
def list_tasks(
    state: str | None,
    queue: str | None,
    since: When | None,
    until: When | None,
    limit: int,
    as_json: bool,
    broker: tuple[str, ...],
    timeout: float,
) -> int:
    """List tasks: ended ones newest first, scheduled ones by due time, ready ones in the order in which they will run.

    Without --state all that live: running, ready, scheduled. `kingtask get ID` shows one with its output.
    """
    states = LIVE if state is None else (State(state),)
    if (since or until) and any(each in TIMELESS for each in states):
        raise click.UsageError("--since and --until go with --state scheduled or one that has ended.")
    now_s = wall_s()
    times = {"since": since and since.at(now_s), "until": until and until.at(now_s)}
    with connect(broker, timeout) as client:
        found = [
            task
            for each in states
            for task in islice(tasks_of(client, each, queue, **times), limit or None)
        ]
    ...


def tasks_of(
    client: Client, state: State, queue: str | None, *, since: float | None = None, until: float | None = None
) -> Iterator[Result]:
    """All tasks of a state, page by page; ready ones of all queues if none is named."""
    ...
