"""A second process that outlives a killed worker just long enough to kill what the worker was running (`guardian`).

It has a session of its own, is deaf to what stops the worker, and waits for the end of a pipe of which only the worker
has the writing end: a shell of 1 MB, which becomes the guardian when there is something to do. Both share a table of
the process groups that run now, one number a slot: to write it takes no system call and wakes nobody.

The table does not know of a child that was started in the worker's last moments, nor of a process that left its group.
Those are found as descendants of what is in the table, or by their environment, which names the worker.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import subprocess
import sys

from kingtask.worker.environment import WORKER_MARK
from kingtask.worker.reap import reaper_process

log = logging.getLogger("kingtask.worker")

SHELL = "/bin/sh"
WAIT = """
trap '' INT TERM HUP QUIT USR1 USR2
printf kingtask-guard > /proc/self/comm
read -r order && exit
exec "$@"
"""
QUIT_S = 2.0
"""For it to go; it needs a millisecond, unless it is stopped."""


class Groups:
    """The process groups that run now, at most `slots`, in memory that another process may read."""

    def __init__(self, slots: int) -> None:
        self.fd = os.memfd_create("kingtask-groups", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, 4 * slots)
        self._memory = mmap.mmap(self.fd, 4 * slots)
        self._table = memoryview(self._memory).cast("i")
        self._free = list(range(slots))

    def add(self, group: int) -> int:
        """Returns the group's place, for `remove`."""
        place = self._free.pop()
        self._table[place] = group
        return place

    def remove(self, place: int) -> None:
        """To be called before the group's leader is reaped: after that the number may be another group's."""
        self._table[place] = 0
        self._free.append(place)

    def close(self) -> None:
        self._table.release()
        self._memory.close()
        os.close(self.fd)


class Reaper:
    """The worker's end of it. `close` is for a worker that ends in order; else its end alone does what is needed."""

    def __init__(self, worker: str, slots: int, cgroup: str = "", private: str = "") -> None:
        """`cgroup`: of the worker, to be ended with it; `private`: the directory to be removed with it."""
        self._worker = worker
        self._cgroup = cgroup
        self._private = private
        self._helpless = False
        self.groups = Groups(slots)
        # The reading end is kept, too: for the next guard, should this one be lost.
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writing, False)
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-I", "-S", reaper_process.__file__),
            *(f"{WORKER_MARK}={self._worker}", str(self.groups.fd), self._cgroup, self._private),
        ]
        if not self._private and os.access(SHELL, os.X_OK):  # else there is something to remove after each attempt
            command = [SHELL, "-c", WAIT, "kingtask-guard", *command]
        return subprocess.Popen(
            command,
            stdin=self._reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self.groups.fd,),
            start_new_session=True,
        )

    def check(self) -> None:
        """Start another guard if this one is gone; tell if it lacks what it needs. To be called now and then."""
        missing = next((path for path in (sys.executable, reaper_process.__file__) if not os.access(path, os.R_OK)), "")
        if missing and not self._helpless:
            log.error("reaper=unusable missing=%s: restart this worker, or what it runs may outlive it", missing)
        self._helpless = missing != ""
        status = self._process.poll()
        if status is not None:
            log.error("reaper=lost status=%d: starting another", status)
            try:
                self._process = self._start()
            except OSError as error:  # this host is short of something; the next check tries again
                log.warning("reaper=missing error=%r: trying again", str(error))

    def remove(self, path: str) -> None:
        """Have it remove this tree, some time soon; at the worker's end, if it cannot keep up."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, os.fsencode(path) + b"\0")

    def close(self) -> None:
        """Let the guard go without killing anything."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writing, b"\0\n")  # for either of them
        try:
            self._process.wait(QUIT_S)
        except subprocess.TimeoutExpired:  # stopped, perhaps; it must not go on later and find the pipe at its end
            self._process.kill()
            self._process.wait()
        os.close(self._writing)
        os.close(self._reading)
        self.groups.close()
