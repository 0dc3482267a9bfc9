"""`kingtask dev`: a store, a broker and a worker in one foreground process tree, to try things with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kingtask.cli import console
from kingtask.cli.dev_stack import Stack, start
from kingtask.cli.exit import Exit
from kingtask.cli.process_tree import ProcessEnded, Stopped, Tree
from kingtask.endpoint import DEFAULT_PORT, endpoint, nearest

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


def default_data() -> Path:
    """Return the directory that keeps the data between runs: below the XDG base directory for state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification says to ignore a relative path.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "kingtask" / "dev"


@click.command(short_help="Run a store, a broker and a worker here, to try things.")
@click.option(
    "--bin-path", metavar="DIR", type=DIRECTORY, multiple=True, help="Executables; again for more.  [default: examples]"
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for data that are kept between runs.  [default: $XDG_STATE_HOME/kingtask/dev]",
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65_534),
    default=DEFAULT_PORT,
    help=f"The broker's port; its wakeups use the next one. 0: any free one.  [default: {DEFAULT_PORT}]",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True
)
def dev(bin_path: tuple[Path, ...], data: Path | None, port: int, log_level: str) -> int:
    """Run everything here: an embedded Valkey that writes each change to disk, a broker and a worker.

    Data are kept between runs. Ctrl-C stops all of it in order, and nothing survives even `kill -9`. Not for
    production: there, run kingtask-broker and kingtask-worker as services with a Redis of your own.
    """
    where = (data or default_data()).absolute()
    with Tree() as tree:
        try:
            stack = start(tree, where, port=port, bin_paths=bin_path, log_level=log_level)
            console.say(_ready(stack, where))
            while True:
                tree.watch(60.0)
        except Stopped:
            console.note("stopping: worker, broker, Valkey")
            return Exit.OK
        except ProcessEnded as ended:
            console.note(f"kingtask: {ended}; stopping the rest")
            return Exit.CONFIGURATION if ended.status == Exit.CONFIGURATION else Exit.TASK_FAILED


def _ready(stack: Stack, data: Path) -> str:
    broker = "" if nearest() == (endpoint(stack.address),) else f" --broker {stack.address}"
    name = "example 12 45" if (stack.bin_paths[0] / "example").is_file() else "NAME [ARGS…]"
    return (
        f"ready: broker {stack.address}, executables {', '.join(map(str, stack.bin_paths))}, data {data}\n"
        f"try:   kingtask submit{broker} --wait {name}\n"
        f"check: kingtask doctor{broker} -c {stack.broker_file} --worker-config {stack.worker_file}\n"
        "stop:  Ctrl-C"
    )
