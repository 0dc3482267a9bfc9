"""The limit of open files: a connection is one, and so is each end of a pipe."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource

from kingtask.errors import ConfigurationError

EVERY_S = 5.0
FEWEST = 64
"""With fewer a daemon does not come up (libzmq aborts at 10), or soon accepts nothing more."""


def raise_limit(wanted: int) -> int:
    """Raise the soft limit to `wanted`, as far as the hard limit goes; returns how many of them are granted.

    Raises ConfigurationError if they are too few for anything.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted < FEWEST:
        raise ConfigurationError(
            f"only {wanted} open files are allowed, and at least {FEWEST} are needed: raise ulimit -n, or LimitNOFILE"
            " in the unit"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def nearly_used_up() -> int | None:
    """The limit, if less than a tenth of it is left; else None.

    The lowest free descriptor says so, at no cost: all below it are in use (open(2)).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        free = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return limit if error.errno == errno.EMFILE else None
    os.close(free)
    return limit if limit != resource.RLIM_INFINITY and free >= limit * 9 // 10 else None


def watch(loop: asyncio.AbstractEventLoop, log: logging.Logger) -> None:
    """As long as the loop runs, warn when the limit is near; once, until there is room again."""
    told = False

    def look() -> None:
        nonlocal told
        limit = nearly_used_up()
        if limit is not None and not told:
            log.warning("descriptors=short limit=%d: raise LimitNOFILE, or what connects next is refused", limit)
        told = limit is not None
        loop.call_later(EVERY_S, look)

    look()
