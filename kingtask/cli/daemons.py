"""Entry points of `kingtask-broker` and `kingtask-worker`.

Both take `-c FILE`, and as the first kingtask did `-config=FILE` or `-config FILE`, which click would read as `-c`
with the file `onfig=…`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from kingtask import __version__
from kingtask.cli import main
from kingtask.cli.exit import Exit
from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from kingtask.config.settings import Settings

CONFIG_DIRECTORY = Path("/etc/kingtask")
CONFIG_FILE = click.Path(readable=False, path_type=Path)  # `load` reports a file that cannot be read

S = TypeVar("S", bound="Settings")


def broker() -> None:
    """Entry point of `kingtask-broker`; does not return."""
    _main("broker", _broker)


def worker() -> None:
    """Entry point of `kingtask-worker`; does not return."""
    _main("worker", _worker)


def with_two_dashes(args: list[str]) -> list[str]:
    """Return the arguments with the original's `-config` in click's spelling."""
    return [f"-{arg}" if arg == "-config" or arg.startswith("-config=") else arg for arg in args]


def _main(name: str, start: Callable[[Path, bool], int]) -> NoReturn:
    """Run a daemon as a command with the options that both have."""
    default = CONFIG_DIRECTORY / f"{name}.yaml"
    text = f"The YAML configuration. [default: {default}]"

    @click.command(help=start.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("-c", "--config", "path", metavar="FILE", default=default, type=CONFIG_FILE, help=text)
    @click.option("--check", is_flag=True, help="Only check the configuration: exit status 0 or 3.")
    @click.version_option(__version__, message="%(prog)s %(version)s")
    def command(path: Path, check: bool) -> int:
        return start(path, check)

    main.run(f"kingtask-{name}", lambda: command, with_two_dashes(sys.argv[1:]))


def _broker(path: Path, check: bool) -> int:
    """Accept tasks and start each at its instant. SIGTERM stops the broker in order, SIGHUP reloads FILE."""
    from kingtask.broker.server import run
    from kingtask.config import load_broker

    return _run("broker", path, check, load_broker, run)


def _worker(path: Path, check: bool) -> int:
    """Run the executables that tasks name. SIGTERM drains the worker, within drain_timeout; SIGHUP reloads FILE."""
    from kingtask.config import load_worker
    from kingtask.worker.host import run

    return _run("worker", path, check, load_worker, partial(run, file=str(path.absolute())))


def _run(
    program: str, path: Path, check: bool, load: Callable[[Path], S], run: Callable[[S, Callable[[], S]], int]
) -> int:
    from kingtask import config, log
    from kingtask.event import Event

    def warned(settings: S) -> S:
        for text in config.exposed(path, settings):
            logging.getLogger("kingtask.config").warning(Event("path=exposed", text))
        return settings

    settings = load(path)
    if check:
        click.echo(f"{path}: ok")
        for text in config.exposed(path, settings):
            click.echo(f"warning: {text}", err=True)
        return Exit.OK
    try:
        log.setup(program, settings.log_level, settings.log_path, log_format=settings.log_format)
        return run(warned(settings), lambda: warned(load(path)))
    except ConfigurationError as error:
        raise config.located(path, error) from None


if __name__ == "__main__":
    # `python -m kingtask.cli.daemons broker|worker …`: how `kingtask dev` starts them, wherever the scripts lie.
    {"broker": broker, "worker": worker}[sys.argv.pop(1)]()
