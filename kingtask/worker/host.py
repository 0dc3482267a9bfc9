"""Prepares the host for a worker, then runs it: signals, open files, cgroup, reaper, isolation."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from kingtask import daemon, linux
from kingtask.config import WorkerConfig
from kingtask.config.settings import MAX_CONCURRENCY
from kingtask.errors import ConfigurationError
from kingtask.systemd import Notifier
from kingtask.worker.reap.cgroup import Cgroup
from kingtask.worker.reap.reaper import Reaper
from kingtask.worker.sandbox import scratch
from kingtask.worker.sandbox.isolate import Isolation
from kingtask.worker.worker import Worker, raise_open_files

log = logging.getLogger("kingtask.worker")


def run(config: WorkerConfig, reread: Callable[[], WorkerConfig]) -> int:
    """Run a worker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError.

    On SIGHUP `reread` returns the new configuration.
    """
    reset_signals()
    daemon.prepare(log)
    if config.run_as is None:  # a unit may give capabilities for run_as; without it attempts would inherit them
        linux.clear_ambient_capabilities()
    raise_open_files(config.concurrency)
    if not Path("/proc/self").exists():
        log.warning(
            "procfs=unavailable: what a task leaves behind in another session is neither found nor ended; mount /proc"
        )
    name = daemon.instance_name(config.name)
    notifier = Notifier.of(os.environ, os.getpid())  # before the reaper starts: its variables are not for others
    directory = "" if config.private_dir is None else str(scratch.directory_of(config.private_dir, name))
    cgroup, reaper = Cgroup.make(name), None
    try:
        try:
            reaper = Reaper(name, MAX_CONCURRENCY, str(cgroup.path) if cgroup else "", directory)
        except OSError as error:
            raise ConfigurationError(f"the worker cannot start a process here: {error}") from None
        isolation = Isolation.make(config, name, reaper.remove)
        if cgroup is not None:
            cgroup.enter()
        abandoned = asyncio.run(_serve(config, name, reaper, isolation, reread, notifier))
    except ConfigurationError:
        _leave(cgroup, reaper)
        raise
    finally:
        notifier.close()
    if not abandoned:  # else the end of this process makes the reaper kill them
        _leave(cgroup, reaper)
    return 0


async def _serve(
    config: WorkerConfig,
    name: str,
    reaper: Reaper,
    isolation: Isolation | None,
    reread: Callable[[], WorkerConfig],
    notifier: Notifier,
) -> int:
    """Return how many processes have not ended although they were killed."""
    worker = Worker(config, name, reaper, isolation, reread)
    async with daemon.running(worker, notifier, log, worker.signalled):
        await worker.done
    log.info("worker=stopped name=%s", name)
    return worker.abandoned


def _leave(cgroup: Cgroup | None, reaper: Reaper | None) -> None:
    if cgroup is not None:
        cgroup.close()
    if reaper is not None:
        reaper.close()


def reset_signals() -> None:
    """Undo what the parent ignored or blocked: programs inherit it, and without SIGCHLD every exit status reads 0."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
