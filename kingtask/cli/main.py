"""The commands as processes: every error ends in one line on stderr and an exit status, never in a traceback.

The imports at the top cost next to nothing, so that `run` also handles Ctrl-C during the other imports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import click


def main() -> None:
    """Run `kingtask` and exit; its entry point."""
    run("kingtask", _kingtask, sys.argv[1:])


def _kingtask() -> click.Command:
    from kingtask.cli.commands import kingtask

    return kingtask


def run(program: str, load: Callable[[], click.Command], args: list[str]) -> NoReturn:
    """Run the command that `load` returns, and exit."""
    try:
        _open_streams()
        status = _run(program, load(), args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
        _discard_output()
    except BrokenPipeError:
        status = 141
        _discard_output()
    except OSError as error:
        status = 74
        _discard_output()
        place = f" ({error.filename})" if error.filename else ""
        _complain(program, f"cannot read or write: {error.strerror or error}{place}")
    sys.exit(status)


def _run(program: str, command: click.Command, args: list[str]) -> int:
    import click

    from kingtask.cli.exit import Exit, exit_for
    from kingtask.errors import KingtaskError

    if f"_{program}_COMPLETE".replace("-", "_").upper() in os.environ:
        command.main(args, prog_name=program)
    try:
        # Not `command.main`: it has other exit statuses for Ctrl-C and for a closed pipe.
        with command.make_context(program, args) as context:
            status = command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except KingtaskError as error:
        _complain(program, str(error))
        return exit_for(error)
    return status if isinstance(status, int) else Exit.OK


def _open_streams() -> None:
    """Open /dev/null for closed standard streams (`>&-`), so that no socket gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            sink = os.open(os.devnull, os.O_RDWR)
            if sink != number:
                os.dup2(sink, number, inheritable=True)
                os.close(sink)
            setattr(sys, name, os.fdopen(number, mode))


def _discard_output() -> None:
    """Send buffered output to /dev/null: it has no reader, and flushing it at exit would fail again."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)


def _complain(program: str, text: str) -> None:
    """Write a line to stderr, if that is possible."""
    from contextlib import suppress

    from kingtask.cli.console import note

    with suppress(OSError):
        note(f"{program}: {text}")
