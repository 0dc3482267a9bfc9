"""The worker's side of its reaper: a second process that outlives a killed worker and kills what it was running.

The reaper has a session of its own, ignores the signals that stop a worker, and waits for the end of a pipe to which
only the worker can write. It is a shell of 1 MB that executes `reaper_process` when there is something to do; with
scratch directories it is `reaper_process` from the start. Worker and reaper share a table of the running process
groups, one number a slot: a write takes no system call and wakes nobody.

The table misses a child that was started in the worker's last moments, and a process that left its group. The reaper
finds those as descendants of the groups, or by their environment, which names the worker.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import subprocess
import sys
from pathlib import Path

import kingtask.worker.reap
from kingtask import procfs
from kingtask.event import Event
from kingtask.worker.environment import WORKER_MARK
from kingtask.worker.reap import reaper_process

log = logging.getLogger("kingtask.worker")

SHELL = "/bin/sh"
WAIT = f"""
trap '' INT TERM HUP QUIT USR1 USR2
printf {reaper_process.NAME} > /proc/self/comm
read -r order && exit
exec "$@"
"""
IMPORTED = (kingtask, kingtask.worker, kingtask.worker.reap, reaper_process, procfs)  # by the reaper process
QUIT_S = 2.0
"""For the reaper to end; it needs a millisecond, unless it is stopped."""


class Groups:
    """The running process groups, at most `slots`, in memory that another process can read."""

    def __init__(self, slots: int) -> None:
        self.fd = os.memfd_create("kingtask-groups", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 4 * slots)
        self._memory = mmap.mmap(self.fd, 4 * slots)
        self._table = memoryview(self._memory).cast("i")
        self._free = list(range(slots))

    def add(self, group: int) -> int:
        """Return the index of the group, for `remove`."""
        index = self._free.pop()
        self._table[index] = group
        return index

    def remove(self, index: int) -> None:
        """Call this before the group's leader is reaped: after that the number may be another group's."""
        self._table[index] = 0
        self._free.append(index)

    def close(self) -> None:
        self._table.release()
        self._memory.close()
        os.close(self.fd)


class Reaper:
    """A running reaper process. `close` ends it without a kill; the worker's death without `close` starts the kill."""

    def __init__(self, worker: str, slots: int, cgroup: str = "", scratch: str = "") -> None:
        """`cgroup`: the worker's, killed with it; `scratch`: the directory that is removed with it. Raises OSError."""
        self._arguments = (f"{WORKER_MARK}={worker}", cgroup, scratch)
        self._unusable = False
        self.groups = Groups(slots)
        # Keep the reading end, too: a replacement of a lost reaper reads from it.
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writing, False)
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> subprocess.Popen[bytes]:
        mark, cgroup, scratch = self._arguments
        package = str(Path(reaper_process.__file__).parents[3])
        python = (sys.executable, "-I", "-S", "-B", "-c", reaper_process.START, package)
        command = [*python, mark, str(self.groups.fd), cgroup, scratch]
        if not scratch and os.access(SHELL, os.X_OK):
            command = [SHELL, "-c", WAIT, reaper_process.NAME, *command]
        return subprocess.Popen(
            command,
            stdin=self._reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self.groups.fd,),
            start_new_session=True,
        )

    def check(self) -> None:
        """Replace a lost reaper; log a missing file of its program once. Call this every few seconds."""
        files = [sys.executable, *(str(module.__file__) for module in IMPORTED)]
        missing = next((path for path in files if not os.access(path, os.R_OK)), "")
        if missing and not self._unusable:
            log.error(Event("reaper=unusable", "restart this worker, or what it runs may outlive it", missing=missing))
        self._unusable = missing != ""
        status = self._process.poll()
        if status is not None:
            log.error(Event("reaper=lost", "starting another", status=status))
            try:
                self._process = self._start()
            except OSError as error:  # out of processes or memory; the next check tries again
                log.warning(Event("reaper=missing", "trying again", error=str(error)))

    def remove(self, path: str) -> None:
        """Have the reaper remove this tree in the background, at the worker's end if the pipe is full."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, os.fsencode(path) + b"\0")

    def close(self) -> None:
        """End the reaper; it kills nothing."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, b"\0\n")  # the NUL for the program, the newline for the shell
        try:
            self._process.wait(QUIT_S)
        except subprocess.TimeoutExpired:  # it is stopped, and must not continue later at the end of the pipe
            self._process.kill()
            self._process.wait()
        os.close(self._writing)
        os.close(self._reading)
        self.groups.close()
