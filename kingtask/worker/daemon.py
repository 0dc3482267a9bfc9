"""The worker as a process: what it needs of its host, then a Worker from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from kingtask import failpoint, linux, openfiles
from kingtask import log as logs
from kingtask.config import Reload, WorkerConfig
from kingtask.config.settings import MAX_CONCURRENCY
from kingtask.errors import ConfigurationError
from kingtask.systemd import Notifier
from kingtask.worker.reap.cgroup import Cgroup
from kingtask.worker.reap.reaper import Reaper
from kingtask.worker.sandbox.isolate import Isolation
from kingtask.worker.worker import Worker

log = logging.getLogger("kingtask.worker")

PROC = Path("/proc/self")
DESCRIPTORS_PER_SLOT = 6
DESCRIPTORS_BESIDE = 128


def run(config: WorkerConfig, reread: Callable[[], WorkerConfig]) -> int:
    """Run a worker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError.

    On SIGHUP `reread` gives the configuration anew.
    """
    with contextlib.suppress(RuntimeError):  # without a stderr
        faulthandler.enable()  # of what it hung in, when the watchdog of systemd ends it
    reset_signals()
    failpoint.warn(log)
    if config.run_as is None:
        linux.clear_ambient_capabilities()
    raise_open_files(config.concurrency)
    if not PROC.exists():
        log.warning(
            "procfs=unavailable: what a task leaves behind in another session is neither found nor ended; mount /proc"
        )
    name = worker_name(config.name)
    isolation = Isolation.make(config, name)
    dirs = isolation.dirs if isolation is not None else None
    cgroup = Cgroup.make(name)
    notifier = Notifier.of(os.environ, os.getpid())  # before the guard, which has nothing to say
    try:
        guard = Reaper(name, MAX_CONCURRENCY, str(cgroup.path) if cgroup else "", str(dirs.path) if dirs else "")
    except OSError as error:
        if cgroup is not None:
            cgroup.close()
        notifier.close()
        raise ConfigurationError(f"the worker cannot start a process here: {error}") from None
    if cgroup is not None:
        cgroup.enter()
    if dirs is not None:
        dirs.remove = guard.remove
        dirs.remove_abandoned()
    worker = Worker(config, name, guard, isolation)
    try:
        asyncio.run(_serve(worker, notifier, config, reread))
    except ConfigurationError:
        _leave(guard, cgroup)
        raise
    finally:
        notifier.close()
    if not worker.abandoned:  # else the end of this process has the guard kill what is left
        _leave(guard, cgroup)
    return 0


def _leave(guard: Reaper, cgroup: Cgroup | None) -> None:
    if cgroup is not None:
        cgroup.close()
    guard.close()


async def _serve(worker: Worker, notifier: Notifier, config: WorkerConfig, reread: Callable[[], WorkerConfig]) -> None:
    loop = asyncio.get_running_loop()

    def apply(config: WorkerConfig) -> None:
        logs.setup("worker", config.log_level, config.log_path, log_format=config.log_format)
        raise_open_files(config.concurrency)
        worker.reconfigure(config)

    def started() -> None:
        notifier.start(status=lambda: worker.status() + reload.note, alive=lambda: True)
        reload.start(notifier.reloading, notifier.reloaded)

    def stopping() -> None:
        reload.stop()
        notifier.stopping()

    worker.reload = reload = Reload(config, reread, apply)
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    openfiles.watch(loop, log)
    try:
        await worker.serve(started, stopping)
    finally:
        # One more in the last moments, when the loop no longer takes it, would have the exit look like a crash.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def worker_name(base: str | None) -> str:
    """Unlike any other: Redis takes what is recorded under one name and not held by it for lost claims of it."""
    label = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in base or socket.gethostname())
    return f"{label[:100] or 'worker'}.{os.getpid()}.{os.urandom(3).hex()}"


def raise_open_files(slots: int) -> None:
    """Make room for the pipes of all slots. Not more than needed: what we run inherits the limit."""
    wanted = slots * DESCRIPTORS_PER_SLOT + DESCRIPTORS_BESIDE
    limit = openfiles.raise_limit(wanted)
    if limit < wanted:
        log.warning("descriptors=short limit=%d wanted=%d: lower concurrency, or raise LimitNOFILE", limit, wanted)


def reset_signals() -> None:
    """Undo what the parent ignored or blocked: what is run inherits it, and without SIGCHLD every status reads 0."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
