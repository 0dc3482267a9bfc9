"""`kingtask requeue`: make new tasks from tasks that have ended."""

from __future__ import annotations

import uuid

import click

from kingtask.cli import console
from kingtask.cli.connect import connect, shared_options
from kingtask.cli.exit import Exit
from kingtask.cli.listing import tasks_of
from kingtask.cli.param_types import INSTANT, QUEUE, TASK_ID
from kingtask.cli.tasks import each
from kingtask.states import TERMINAL, State

ENDED = [str(state) for state in State if state in TERMINAL]


@click.command()
@click.option("--state", type=click.Choice(ENDED), help="Instead of ids: all that ended so.")
@click.option("--queue", type=QUEUE, metavar="QUEUE", help="With --state: only of this queue.")
@click.option("--since", metavar="TIME", type=INSTANT, help="With --state: ended at or after; -1h is an hour ago.")
@click.option("--until", metavar="TIME", type=INSTANT, help="With --state: ended at or before.")
@shared_options
@click.argument("ids", metavar="[ID...]", nargs=-1, type=TASK_ID)
def requeue(
    ids: tuple[str, ...],
    state: str | None,
    queue: str | None,
    since: float | None,
    until: float | None,
    as_json: bool,
) -> int:
    """Run tasks that have ended again. Prints the id of each new task; the old one keeps its result.

    With --state the new id is derived from the old one, so that a second run of the same command, after the first was
    interrupted or to requeue later failures, makes no task twice. It prints the ids of the tasks that it made, and on
    stderr how many existed before; --json has them all.

    \b
    kingtask list    --state failed --queue mail --since -1h     show them
    kingtask requeue --state failed --queue mail --since -1h     requeue them
    """  # noqa: D301 - click's mark for lines that stay as they are
    if bool(ids) == (state is not None):
        raise click.UsageError("Which tasks? Give their ids, or --state with --queue, --since, --until.")
    if ids and (queue, since, until) != (None, None, None):
        raise click.UsageError("--queue, --since and --until go with --state.")
    existed = 0

    def again(old: str) -> int:
        nonlocal existed
        new = client.requeue(old, None if state is None else successor_id(old))
        existed += new.outcome == "exists"
        if as_json or new.outcome != "exists":
            console.show(as_json, {"id": new.id, "origin": old, "outcome": new.outcome}, new.id)
        return Exit.OK

    with connect() as client:
        found = ids if state is None else (task.id for task in tasks_of(client, State(state), queue, since, until))
        status = each(found, again)
    if existed and not as_json:
        console.note(f"kingtask: {existed} {'task' if existed == 1 else 'tasks'} had been requeued before")
    return status


def successor_id(old_id: str) -> str:
    """Return the id of the task that `requeue --state` makes from another."""
    return str(uuid.uuid5(uuid.UUID(old_id), "requeue"))
