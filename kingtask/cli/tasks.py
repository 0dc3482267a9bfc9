"""`kingtask get`, `wait` and `cancel`: tasks by their ids."""

from __future__ import annotations

from collections.abc import Callable

import click

from kingtask.cli import ending, output
from kingtask.cli.connect import broker_option, connect, json_option, timeout_option
from kingtask.cli.exit import Exit, exit_for
from kingtask.cli.params import SECONDS, TASK_ID
from kingtask.cli.times import local_time
from kingtask.errors import RequestRefused, ResultTimeout
from kingtask.task import Attempt, Result

IDS = click.argument("ids", metavar="ID...", nargs=-1, required=True, type=TASK_ID)


@click.command()
@json_option
@broker_option
@timeout_option
@IDS
def get(ids: tuple[str, ...], as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    """Show tasks: state, attempts, output. The exit status is 0 for every task that is found, however it ended."""
    with connect(broker, timeout) as client:

        def show(task_id: str) -> int:
            result = client.get(task_id)
            if as_json:
                output.write_json(output.result_fields(result))
            else:
                output.say(_described(result))
            return Exit.OK

        return _each(ids, show)


@click.command()
@click.option("--timeout", metavar="S", type=SECONDS, help="Wait at most so long (exit status 9).  [default: no limit]")
@click.option("--propagate", is_flag=True, help="End with the task's exit status (a signal: 128 + number).")
@json_option
@broker_option
@IDS
def wait(ids: tuple[str, ...], timeout: float | None, propagate: bool, as_json: bool, broker: tuple[str, ...]) -> int:
    """Wait until tasks have ended; their output becomes this command's, in the order of the ids.

    The exit status is 0 if all succeeded, 1 if one did not, 9 if one has not ended in time; of several, the first
    that is not 0 counts.
    """
    with connect(broker) as client:
        deadline = Deadline(timeout)

        def show(task_id: str) -> int:
            try:
                result = client.wait(task_id, deadline.left_s())
            except ResultTimeout:
                result = client.get(task_id)
            return ending.show(result, as_json=as_json, propagate=propagate)

        return _each(ids, show)
