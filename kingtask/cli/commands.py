"""The group `kingtask`, which imports the module of a subcommand when it is called."""

from __future__ import annotations

from importlib import import_module

import click

from kingtask import __version__
from kingtask.cli.exit import Exit

COMMANDS: dict[str, str] = {
    "submit": "submit:submit",
    "get": "tasks:get",
    "wait": "tasks:wait",
    "cancel": "tasks:cancel",
    "requeue": "requeue:requeue",
    "forget": "tasks:forget",
    "list": "listing:list_tasks",
    "stats": "queues:stats",
    "pause": "queues:pause",
    "resume": "queues:resume",
    "ping": "queues:ping",
    "keygen": "keygen:keygen",
    "doctor": "doctor:doctor",
    "dev": "dev:dev",
    "demo": "demo:demo",
}
"""Module and function of each command, below kingtask.cli."""


class LazyGroup(click.Group):
    """A group that lists its commands by name and imports a command at its first use."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            # Releases of click disagree on the exit status for this.
            click.echo(ctx.get_help(), err=True)
            ctx.exit(Exit.USAGE)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"kingtask.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    epilog="\n".join(("\b\nExit statuses:", *(f"{status.value:>5}  {status.meaning}" for status in Exit))),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="kingtask", message="%(prog)s %(version)s")
def kingtask() -> None:
    """Run executables now, at an instant, or again after a failure, and read their output.

    \b
    kingtask demo                                  see it work, nothing else needed
    kingtask dev                                   run a broker, a worker and their store, to try things
    kingtask submit --wait example 12 45           run an executable of the workers and print its output
    kingtask submit --at +5m --retry 5,8,9 report  in five minutes, with up to three retries
    """  # noqa: D301 - click's mark for lines that stay as they are
