"""`kingtask requeue`: run ended tasks again, each as a new task."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import click

from kingtask.cli import console
from kingtask.cli.connect import broker_option, connect, json_option, timeout_option
from kingtask.cli.exit import Exit
from kingtask.cli.listing import tasks_of
from kingtask.cli.param_types import QUEUE, TASK_ID, WHEN
from kingtask.cli.tasks import each
from kingtask.cli.times import When
from kingtask.clock import wall_s
from kingtask.states import TERMINAL, State

if TYPE_CHECKING:
    from kingtask.client.handles import Task

ENDED = [str(state) for state in State if state in TERMINAL]


@click.command()
@click.option("--state", type=click.Choice(ENDED), help="Instead of ids: all that ended so.")
@click.option("--queue", type=QUEUE, metavar="QUEUE", help="With --state: only of this queue.")
@click.option("--since", metavar="TIME", type=WHEN, help="With --state: ended at or after; -1h is an hour ago.")
@click.option("--until", metavar="TIME", type=WHEN, help="With --state: ended at or before.")
@json_option
@broker_option
@timeout_option
@click.argument("ids", metavar="[ID...]", nargs=-1, type=TASK_ID)
def requeue(
    ids: tuple[str, ...],
    state: str | None,
    queue: str | None,
    since: When | None,
    until: When | None,
    as_json: bool,
    broker: tuple[str, ...],
    timeout: float,
) -> int:
    """Run ended tasks again. Prints the id of each new task; the old one keeps its result.

    With --state the new id is derived from the old one, so that a second run of the same command, after the first was
    cut short or for what failed since, makes no task twice. It prints the ids of those that it made, and on stderr how
    many there were before; --json has them all.

    \b
    kingtask list    --state failed --queue mail --since -1h     look
    kingtask requeue --state failed --queue mail --since -1h     and do it
    """  # noqa: D301 - click's mark for lines that stay as they are
    if bool(ids) == (state is not None):
        raise click.UsageError("Which tasks? Give their ids, or --state with --queue, --since, --until.")
    if ids and (queue or since or until):
        raise click.UsageError("--queue, --since and --until go with --state.")
    with connect(broker, timeout) as client:
        if state is None:
            return each(ids, lambda old: _shown(client.requeue(old), old, as_json))
        now_s = wall_s()
        found = tasks_of(client, State(state), queue, since and since.at(now_s), until and until.at(now_s))
        existed = 0

        def again(old: str) -> int:
            nonlocal existed
            new = client.requeue(old, successor_id(old))
            if new.outcome == "exists":
                existed += 1
                if not as_json:
                    return Exit.OK
            return _shown(new, old, as_json)

        status = each((task.id for task in found), again)
        if existed and not as_json:
            console.note(f"kingtask: {existed} {'task' if existed == 1 else 'tasks'} had been requeued before")
        return status


def successor_id(old_id: str) -> str:
    """The id of the task that `requeue --state` makes of another."""
    return str(uuid.uuid5(uuid.UUID(old_id), "requeue"))


def _shown(new: Task, old: str, as_json: bool) -> int:
    if as_json:
        console.write_json({"id": new.id, "origin": old, "outcome": new.outcome})
    else:
        console.say(new.id)
    return Exit.OK
