"""A second process that outlives a killed worker just long enough to kill what the worker was running.

It is forked before the loop starts, in a session of its own, deaf to what stops the worker. Both share a table of the
process groups that run now, one number a slot: writing it costs no system call and wakes nobody. Between them is a pipe
of which only the worker has the writing end, so its end means that the worker is gone, however it went; then every
group in the table gets KILL.

The table does not know of a child that was started in the worker's last moments, nor of a process that left its group.
Those are found by their environment, which says which worker, task and attempt they belong to.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import signal
import time
from pathlib import Path

from kingtask.worker.environment import ATTEMPT_MARK, TASK_MARK, WORKER_MARK

log = logging.getLogger("kingtask.worker")

QUIT = b"quit\n"
PASSES = 3
"""Looks through /proc until this many in a row found nothing: a child may be on its way to its exec."""
MAX_PASSES = 100
PAUSE_S = 0.02


class Groups:
    """The process groups that run now, at most `slots`, in memory shared with the guard."""

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, 4 * slots)  # anonymous: what is forked sees the same
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

    def kill(self) -> None:
        for group in self._table:
            if group > 0:
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGKILL)


class Guard:
    """The worker's end of it. Forks: make it before any thread or loop."""

    def __init__(self, worker: str, groups: Groups) -> None:
        self.groups = groups
        reading, self._pipe = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _child(reading, groups, worker)
        os.close(reading)
        os.set_blocking(self._pipe, False)
        self._lost = False

    def sweep(self, task_id: str, number: int) -> None:
        """Have everything killed that belongs to this attempt, whatever group or session it is in. Does not wait."""
        self._tell(f"{task_id} {number}\n".encode())

    def check(self) -> bool:
        """False, and an error in the log, if the guard is gone."""
        if not self._lost:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                    return True
            self._lost = True
            log.error("guard=lost: if this worker is killed, what it runs goes on unattended; restart it when you can")
        return False

    def close(self) -> None:
        """Let the guard go without killing anything: the worker ended in order."""
        if self.check():
            self._tell(QUIT)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        os.close(self._pipe)

    def _tell(self, message: bytes) -> None:
        if self._lost:
            return
        try:
            os.write(self._pipe, message)
        except OSError as error:  # it is gone, or stopped with its pipe full: then it must not wake up and kill later
            log.warning("guard=deaf error=%r", str(error))
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _child(reading: int, groups: Groups, worker: str) -> None:
    """The guard's whole life; never returns."""
    try:
        gc.disable()  # a collection would copy the pages shared with the worker
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        _keep_only(reading)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("kingtask-guard")
        _watch(reading, groups, worker)
    finally:
        os._exit(0)


def _keep_only(fd: int) -> None:
    """Close every descriptor but this one; the standard three become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, fd)
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(fd + 1, limit if limit > 0 else 1_048_576)


def _watch(reading: int, groups: Groups, worker: str) -> None:
    mark = f"{WORKER_MARK}={worker}".encode()
    buffer = b""
    while data := os.read(reading, 4096):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line + b"\n" == QUIT:
                return
            task_id, number = line.split(b" ")
            kill_marked(mark, TASK_MARK.encode() + b"=" + task_id, ATTEMPT_MARK.encode() + b"=" + number)
    groups.kill()
    kill_marked(mark)


def kill_marked(*marks: bytes) -> int:
    """KILL every process that was started with all these `NAME=value` in its environment; returns how many."""
    killed = quiet = 0
    for _ in range(MAX_PASSES):
        found = sum(_kill_if_marked(int(name), marks) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
        killed += found
        quiet = 0 if found else quiet + 1
        if quiet == PASSES:
            break
        time.sleep(PAUSE_S)
    return killed


def _kill_if_marked(pid: int, marks: tuple[bytes, ...]) -> bool:
    try:
        pidfd = os.pidfd_open(pid)  # taken first, so that the signal cannot reach a later process with this number
    except OSError:
        return False
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if not all(mark in environment for mark in marks):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:  # gone meanwhile, or another user's
        return False
    else:
        return True
    finally:
        os.close(pidfd)
