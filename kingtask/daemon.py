"""The process of a daemon, from its start to its end: what the broker and the worker have in common.

Stop signals and reloads, the messages to systemd, a warning when descriptors run short, a stack trace in a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from kingtask import failpoint, linux
from kingtask.config import Reload
from kingtask.event import Event
from kingtask.store.redis.supervisor import SupervisedConnection
from kingtask.systemd import Notifier

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
CHECK_OPEN_FILES_S = 5.0


class Service(Protocol):
    """A broker or a worker."""

    @property
    def alive(self) -> bool:
        """False if the loop runs but its periodic work does not: the watchdog is withheld."""

    def status(self) -> str:
        """One line for people."""

    async def start(self) -> None:
        """Raises ConfigurationError."""

    async def stop(self) -> None:
        """Close everything; also called after a start that failed."""


def prepare(log: logging.Logger) -> None:
    """Set up the process; call this first."""
    with contextlib.suppress(RuntimeError):  # without a stderr
        faulthandler.enable()  # prints where the process hangs when the watchdog of systemd aborts it
    failpoint.warn(log)


@contextlib.asynccontextmanager
async def running(
    service: Service, reload: Reload[Any], notifier: Notifier, log: logging.Logger, on_signal: Callable[[], None]
) -> AsyncIterator[None]:
    """Start the service, and stop it at the end of the block. `on_signal` is called for each SIGTERM and SIGINT.

    SIGHUP reloads. systemd learns when the service is ready, and from the first stop signal on that it is stopping.
    """
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        reload.stop()
        notifier.stopping()

    def signalled() -> None:
        stopping()
        on_signal()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled)
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    _watch_open_files(loop, log)
    try:
        await service.start()
        gc.collect()
        gc.freeze()  # later collections skip what exists now
        notifier.start(status=lambda: service.status() + reload.note, alive=lambda: service.alive)
        reload.start(notifier.reloading, notifier.reloaded)
        yield
    finally:
        stopping()
        await service.stop()
        notifier.close()
        # A signal in the last moments, when the loop no longer handles it, would make the exit look like a crash.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def instance_name(base: str | None = None) -> str:
    """A name that no other daemon has or will have: `base` or the host's name, the pid, and random digits.

    Redis takes the attempts under a worker's name for lost claims if the worker does not hold them.
    """
    label = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in base or socket.gethostname())
    return f"{label[:100] or 'host'}.{os.getpid()}.{os.urandom(3).hex()}"


def reasons_not_ready(links: Iterable[SupervisedConnection], *, draining: bool) -> list[str]:
    """One line each; empty if the daemon is ready."""
    reasons = ["it is stopping"] if draining else []
    return reasons + [f"redis ({link.purpose}): {link.problem or 'not yet'}" for link in links if not link.up]


def _watch_open_files(loop: asyncio.AbstractEventLoop, log: logging.Logger) -> None:
    """While the loop runs, warn when descriptors run short; once, until there is room again."""
    warned = False

    def check() -> None:
        nonlocal warned
        limit = linux.open_files_nearly_used_up()
        if limit is not None and not warned:
            log.warning(Event("descriptors=short", "raise LimitNOFILE, or new connections are refused", limit=limit))
        warned = limit is not None
        loop.call_later(CHECK_OPEN_FILES_S, check)

    check()
