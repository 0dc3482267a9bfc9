"""`kingtask list`: tasks by state, queue and time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kingtask.cli import console
from kingtask.cli.connect import connect, shared_options
from kingtask.cli.exit import Exit
from kingtask.cli.param_types import INSTANT, QUEUE
from kingtask.cli.times import local_time
from kingtask.result import Result
from kingtask.states import TERMINAL, State

if TYPE_CHECKING:
    from kingtask.client import Client

LIVE = (State.RUNNING, State.READY, State.SCHEDULED)
TIMELESS = (State.READY, State.RUNNING)
DEFAULT_LIMIT = 50
HEADINGS = ("ID", "NAME", "QUEUE", "STATE", "WHEN", "ATTEMPT")


@click.command("list", short_help="List tasks by state, queue and time.")
@click.option("--state", type=click.Choice(list(map(str, State))), help="[default: running, ready, scheduled]")
@click.option("--queue", type=QUEUE, metavar="QUEUE", help="Only of this queue.")
@click.option("--since", metavar="TIME", type=INSTANT, help="Ended (scheduled: due) at or after; -1h is an hour ago.")
@click.option("--until", metavar="TIME", type=INSTANT, help="Ended (scheduled: due) at or before.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(0),
    default=DEFAULT_LIMIT,
    show_default=True,
    help="Of each state; 0: all.",
)
@shared_options
def list_tasks(
    state: str | None,
    queue: str | None,
    since: float | None,
    until: float | None,
    limit: int,
    as_json: bool,
) -> int:
    """List tasks: ended ones newest first, scheduled ones by due time, ready ones in the order in which they will run.

    Without --state all that have not ended: running, ready, scheduled. `kingtask get ID` shows one with its output.
    """
    states = LIVE if state is None else (State(state),)
    if (since, until) != (None, None) and any(each in TIMELESS for each in states):
        raise click.UsageError(
            "--since and --until need --state, and one that has a time: scheduled, or one that ended."
        )
    rows: list[Result] = []
    more = False
    with connect() as client:
        for each in states:
            for count, task in enumerate(tasks_of(client, each, queue, since, until)):
                if limit and count == limit:
                    more = True
                    break
                if as_json:
                    console.write_json(console.row_fields(task))
                else:
                    rows.append(task)
    if not as_json:
        console.say(console.table(HEADINGS, [_row(task) for task in rows]) if rows else "No such tasks.")
    if more:
        console.note(f"There are more; --limit {limit} left them out.")
    return Exit.OK


def tasks_of(
    client: Client, state: State, queue: str | None, since: float | None = None, until: float | None = None
) -> Iterator[Result]:
    """Yield all tasks of a state, page by page as they are read; ready ones queue by queue if none is named."""
    if state is not State.READY or queue is not None:
        yield from client.list(state, queue, since=since, until=until)
        return
    for each in client.stats()["queues"]:
        if each["ready"]:
            yield from client.list(state, each["name"])


def _row(task: Result) -> tuple[str, ...]:
    when = task.finished_at if task.state in TERMINAL else task.due_at
    return (task.id, task.name, task.queue, console.ending(task), local_time(when), str(task.attempt or "-"))
