"""Entry points of `kingtask-broker` and `kingtask-worker`.

Both take `-c FILE`, and as the first kingtask did `-config=FILE` or `-config FILE`, which click would read as `-c`
with the file `onfig=…`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kingtask import __version__
from kingtask.cli.exit import Exit, exit_for
from kingtask.cli.main import complain, discard_output
from kingtask.errors import ConfigurationError, KingtaskError

if TYPE_CHECKING:
    from kingtask.config.settings import Settings

CONFIG_DIRECTORY = Path("/etc/kingtask")
CONFIG_FILE = click.Path(readable=False, path_type=Path)  # what cannot be read is a matter of the configuration


def broker() -> None:
    """Entry point of `kingtask-broker`; does not return."""
    sys.exit(_main(_broker, "kingtask-broker", sys.argv[1:]))


def worker() -> None:
    """Entry point of `kingtask-worker`; does not return."""
    sys.exit(_main(_worker, "kingtask-worker", sys.argv[1:]))


def with_two_dashes(args: list[str]) -> list[str]:
    """Arguments with the original's `-config` spelled as click knows it."""
    return [f"-{arg}" if arg == "-config" or arg.startswith("-config=") else arg for arg in args]


def _daemon(name: str, run: Callable[[Path, bool], int], text: str) -> click.Command:
    """A command with the options that both daemons have."""
    default = CONFIG_DIRECTORY / f"{name}.yaml"
    command = click.version_option(__version__, message="%(prog)s %(version)s")(run)
    command = click.option("--check", is_flag=True, help="Only check the configuration: exit status 0 or 3.")(command)
    command = click.option(
        "-c",
        "--config",
        "path",
        metavar="FILE",
        default=default,
        type=CONFIG_FILE,
        help=f"The YAML configuration. [default: {default}]",
    )(command)
    return click.command(help=text, context_settings={"help_option_names": ["-h", "--help"]})(command)


def _run_broker(path: Path, check: bool) -> int:
    from kingtask.config import load_broker

    settings = load_broker(path)
    if check:
        return _checked(path)
    from kingtask.broker.server import run

    return _run("broker", path, settings, partial(run, settings, partial(load_broker, path)))


def _run_worker(path: Path, check: bool) -> int:
    from kingtask.config import load_worker

    settings = load_worker(path)
    if check:
        return _checked(path)
    from kingtask.worker.host import run

    return _run("worker", path, settings, partial(run, settings, partial(load_worker, path)))


def _run(program: str, path: Path, settings: Settings, run: Callable[[], int]) -> int:
    from kingtask import config, log

    try:
        log.setup(program, settings.log_level, settings.log_path, log_format=settings.log_format)
        return run()
    except ConfigurationError as error:
        raise config.located(path, error) from None


_broker = _daemon(
    "broker",
    _run_broker,
    "Accept tasks and start each at its instant. SIGTERM stops the broker in order, SIGHUP reloads FILE.",
)
_worker = _daemon(
    "worker",
    _run_worker,
    "Run the executables that tasks name. SIGTERM drains the worker, within drain_timeout; SIGHUP reloads FILE.",
)


def _checked(path: Path) -> int:
    click.echo(f"{path}: ok")
    return Exit.OK


def _main(command: click.Command, name: str, args: list[str]) -> int:
    try:
        status = command.main(with_two_dashes(args), prog_name=name, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except ConfigurationError as error:
        click.echo(f"{name}: {error}", err=True)
        return Exit.CONFIGURATION
    except KingtaskError as error:
        click.echo(f"{name}: {error}", err=True)
        return exit_for(error)
    except BrokenPipeError:
        discard_output()
        return Exit.BROKEN_PIPE
    except OSError as error:
        discard_output()
        complain(f"cannot read or write: {error.strerror or error}", name)
        return Exit.OUTPUT
    return status if isinstance(status, int) else Exit.OK


if __name__ == "__main__":
    # `python -m kingtask.cli.daemons broker|worker …`: how `kingtask dev` starts them, wherever the scripts lie.
    {"broker": broker, "worker": worker}[sys.argv.pop(1)]()
