"""`kingtask submit`: one task from the command line, or many from lines of JSON."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from kingtask.cli import console, result_view
from kingtask.cli.connect import connect, has_keys, shared_options
from kingtask.cli.exit import Exit
from kingtask.cli.fields import task_of, task_options, wire_fields
from kingtask.cli.param_types import TextType, id_of_key
from kingtask.cli.times import DURATION_FORMS, parse_duration
from kingtask.errors import NoAnswer, RequestRefused

if TYPE_CHECKING:
    from kingtask.client import Client
    from kingtask.task import TaskSpec

FOREVER = "forever"
"""The value of `--wait` without a value."""
WAIT = TextType("seconds", lambda text: math.inf if text == FOREVER else parse_duration(text), DURATION_FORMS)


class WaitOption(click.Option):
    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return "--wait[=S]", self.help or ""


class SubmitCommand(click.Command):
    """A command whose `--wait` may have a value (`--wait=5`) and whose options end at NAME.

    click takes the next word, here NAME, as the value of an option whose value is optional.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = [param for param in self.params if isinstance(param, click.Option) and not param.is_flag]
        takes_value = {name for param in valued for name in param.opts}
        words = list(args)
        i = 0
        while i < len(words) and words[i].startswith("-") and words[i] not in ("-", "--"):
            if words[i] == "--wait":
                words[i] = f"--wait={FOREVER}"
            elif words[i] in takes_value:
                i += 1
            i += 1
        return super().parse_args(ctx, words)


@click.command(cls=SubmitCommand, context_settings={"allow_interspersed_args": False})
@task_options
@click.option(
    "--wait",
    cls=WaitOption,
    type=WAIT,
    help="Wait until the task has ended, or S seconds at most; its output becomes this command's.",
)
@click.option(
    "--propagate", is_flag=True, help="With --wait: end with the task's exit status (a signal: 128 + number)."
)
@click.option(
    "--from", "source", metavar="FILE|-", help="Tasks as lines of JSON; for each a line of JSON with its outcome."
)
@shared_options
@click.argument("name", required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def submit(
    name: str | None,
    args: tuple[str, ...],
    wait: float | None,
    propagate: bool,
    source: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Run the executable NAME of the workers with ARGS. Everything after NAME belongs to the task.

    Prints the task's id. With --wait the id goes to stderr and the task's stdout and stderr to stdout and stderr;
    the exit status is 0 if it succeeded, 1 if not, 9 if it has not ended in time.

    \b
    kingtask submit --wait example 12 -45
    kingtask submit --at '2026-07-01 08:30' --retry 5,8,9 report --verbose
    kingtask submit --key "nightly $(date +%F)" backup
    """  # noqa: D301 - click's mark for lines that stay as they are
    if source is not None:
        if name is not None:
            raise click.UsageError("--from and NAME exclude each other: each line names its executable.")
        if options["id"] or options["key"] or options["stdin"]:
            raise click.UsageError("--id, --key and --stdin do not go with --from: each line has its own.")
        from kingtask.cli.batch import submit_lines

        return submit_lines(source, wire_fields(options), wait)
    if name is None:
        raise click.UsageError("Missing argument NAME: which executable is to run?")
    if propagate and wait is None:
        raise click.UsageError("--propagate needs --wait.")
    spec = task_of(name, args, wire_fields(options))
    with connect() as client:
        if options["key"] is not None and has_keys():
            spec = replace(spec, id=id_of_key(options["key"], client.ping().get("owner")))
        return _submit_one(client, spec, wait=wait, propagate=propagate, as_json=as_json)


def _submit_one(client: Client, spec: TaskSpec, *, wait: float | None, propagate: bool, as_json: bool) -> int:
    (outcome,) = client.submit_many([spec])
    task = outcome.task
    if outcome.error is not None:
        if isinstance(outcome.error, (NoAnswer, RequestRefused)) and outcome.error.stored == "unknown":
            # With the same content: an expiry that was counted from now would differ then.
            again = f"--id {task.id}" + ("" if spec.expires_at is None else f" --expires-at {spec.expires_at!r}")
            console.note(f"kingtask: submit it again with {again}: that makes no second task")
        raise outcome.error
    if wait is None:
        console.show(as_json, {"id": task.id, "outcome": outcome.outcome}, task.id)
        return Exit.OK
    console.note(task.id)
    if wait == math.inf:
        _hint(spec.name)
    return result_view.show(result_view.wait_for(client, task.id, wait), as_json=as_json, propagate=propagate)


def _hint(name: str) -> None:
    """Note that `--wait 5 example` runs the executable `5`. It may exist, so this is no error."""
    with suppress(ValueError):
        limit_s = parse_duration(name)
        console.note(f"kingtask: runs the executable {name}; --wait={name} waits at most {limit_s:g} s")
