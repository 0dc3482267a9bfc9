"""Prepares the host for a worker, then runs it: signals, open files, cgroup, reaper, isolation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from kingtask import daemon, linux
from kingtask.config import WorkerConfig
from kingtask.config.settings import MAX_CONCURRENCY
from kingtask.errors import ConfigurationError
from kingtask.event import Event
from kingtask.systemd import Notifier
from kingtask.worker.reap.cgroup import Cgroup
from kingtask.worker.reap.reaper import Reaper
from kingtask.worker.sandbox import scratch
from kingtask.worker.sandbox.isolate import Isolation
from kingtask.worker.worker import Worker, raise_open_files

log = logging.getLogger("kingtask.worker")


def run(config: WorkerConfig, reread: Callable[[], WorkerConfig], file: str) -> int:
    """Run a worker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError.

    On SIGHUP `reread` returns the new configuration in `file`.
    """
    # Undo what the parent ignored or blocked: programs inherit it, and without SIGCHLD every exit status reads 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    daemon.prepare(log)
    if config.run_as is None:  # a unit may give capabilities for run_as; without it attempts would inherit them
        linux.clear_ambient_capabilities()
    raise_open_files(config.concurrency)
    if not Path("/proc/self").exists():
        words = "what a task leaves behind in another session is neither found nor ended; mount /proc"
        log.warning(Event("procfs=unavailable", words))
    name = daemon.instance_name(config.name)
    notifier = Notifier.of(os.environ, os.getpid())  # before the reaper starts: its variables are not for others
    directory = "" if config.private_dir is None else str(scratch.directory_of(config.private_dir, name))
    cgroup = Cgroup.make(name)
    leave = contextlib.ExitStack()  # not a context manager: after a crash the reaper has to kill what is left
    if cgroup is not None:
        leave.callback(cgroup.close)

    async def serve(reaper: Reaper) -> bool:
        worker = Worker(config, name, reaper, isolation, reread, file)
        async with daemon.running(worker, worker.reload, notifier, log, worker.signalled):
            await worker.done
        log.info(Event("worker=stopped", name=name))
        return worker.has_abandoned

    try:
        try:
            reaper = Reaper(name, MAX_CONCURRENCY, str(cgroup.path) if cgroup else "", directory)
        except OSError as error:
            raise ConfigurationError(f"the worker cannot start a process here: {error}") from None
        leave.callback(reaper.close)
        isolation = Isolation.make(config, name, reaper.remove)
        if cgroup is not None:
            cgroup.enter()
        abandoned = asyncio.run(serve(reaper))
    except ConfigurationError:
        leave.close()
        raise
    finally:
        notifier.close()
    if not abandoned:  # else the end of this process makes the reaper kill them
        leave.close()
    return 0
