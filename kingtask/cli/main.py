"""`kingtask` as a process: every error ends in one line on stderr and an exit status, never in a traceback.

The imports at the top cost next to nothing, so that `main` also handles Ctrl-C during the other imports.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command and exit; the entry point of `kingtask`."""
    try:
        _open_streams()
        status = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
        discard_output()
    except BrokenPipeError:
        status = 141
        discard_output()
    except OSError as error:
        status = 74
        discard_output()
        place = f" ({error.filename})" if error.filename else ""
        complain(f"cannot read or write: {error.strerror or error}{place}")
    sys.exit(status)


def _run() -> int:
    import click

    from kingtask.cli.commands import kingtask
    from kingtask.cli.exit import Exit, exit_for
    from kingtask.errors import KingtaskError

    if "_KINGTASK_COMPLETE" in os.environ:
        kingtask.main(prog_name="kingtask")
    try:
        # Not `kingtask.main`: it has other exit statuses for Ctrl-C and for a closed pipe.
        with kingtask.make_context("kingtask", sys.argv[1:]) as context:
            status = kingtask.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except KingtaskError as error:
        complain(str(error))
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


def discard_output() -> None:
    """Send buffered output to /dev/null: it has no reader, and flushing it at exit would fail again."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.close(sink)


def complain(text: str, program: str = "kingtask") -> None:
    """Write a line to stderr, if it is open."""
    from contextlib import suppress

    with suppress(OSError):
        sys.stderr.write(f"{program}: {text}\n")
        sys.stderr.flush()
