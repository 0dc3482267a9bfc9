"""The worker as a process: what it needs of its host, then a Worker from start to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

from kingtask import failpoint, openfiles
from kingtask.config import WorkerConfig
from kingtask.errors import ConfigurationError
from kingtask.worker.cgroup import Cgroup
from kingtask.worker.guard import Guard
from kingtask.worker.worker import Worker

log = logging.getLogger("kingtask.worker")

DESCRIPTORS_PER_SLOT = 6
DESCRIPTORS_BESIDE = 128


def run(config: WorkerConfig) -> int:
    """Run a worker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError."""
    reset_signals()
    failpoint.warn(log)
    raise_open_files(config.concurrency)
    name = worker_name(config.name)
    cgroup = Cgroup.make(name)
    guard = Guard(name, config.concurrency, str(cgroup.path) if cgroup else "")
    if cgroup is not None:
        cgroup.enter()
    worker = Worker(config, name, guard)
    try:
        asyncio.run(_serve(worker))
    except ConfigurationError:
        _leave(guard, cgroup)
        raise
    if not worker.abandoned:  # else the end of this process has the guard kill what is left
        _leave(guard, cgroup)
    return 0


def _leave(guard: Guard, cgroup: Cgroup | None) -> None:
    if cgroup is not None:
        cgroup.close()
    guard.close()


async def _serve(worker: Worker) -> None:
    openfiles.watch(asyncio.get_running_loop(), log)
    await worker.serve()


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
