"""All processes below this worker: those that it started, and those that became its children when their parent ended.

The worker is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): a process whose parent ends becomes its child, whatever
session, group and environment it has made for itself. So one number says whether an attempt left anything behind: the
worker has as many children as attempts run, and the guard. To ask takes 2 µs. The number of a child is not given to
another process before the worker has reaped it, so that no signal can go astray.

An orphan may be a helper of an attempt that still runs; its environment or its session says of which. One that hides
both belongs to an attempt that ran when it was started: it is killed once none of these runs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from dataclasses import dataclass

from kingtask.worker.environment import ATTEMPT_MARK, TASK_MARK, WORKER_MARK
from kingtask.worker.reap.reaper import Groups, Reaper

log = logging.getLogger("kingtask.worker")

PR_SET_CHILD_SUBREAPER = 36
LIST_BYTES = 4_096
"""What one read of the list gives at most (a page); an answer shorter than that by one number was the last."""
FIRST_PAUSE_S = 0.002
"""Between killing orphans and looking whether they are gone and left others; doubled each time up to LAST_PAUSE_S."""
LAST_PAUSE_S = 1.0
START_CODE, ENV_START, ENV_END = 23, 47, 48
"""Places in what `_stat` gives: addresses. execve(2) sets the first as the last of them; it is 0 until then."""
LAST_PASSES = 250
"""When the worker ends."""


@dataclass(slots=True, eq=False)
class _Leader:
    """The first process of an attempt."""

    place: int
    task_id: str
    number: int
    over: bool = False


class Orphans:
    """Process groups are entered into `groups`, for the guard."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: str, groups: Groups, uids: frozenset[int] = frozenset()
    ) -> None:
        """`uids`: of users that attempts run as and the worker does not: an orphan of theirs belongs to an attempt."""
        self._loop = loop
        self._uids = uids
        self._worker = worker
        self._groups = groups
        self._guard: Reaper | None = None
        self._leaders: dict[int, _Leader] = {}
        self._list = -1
        self._alone = False
        self._owners: dict[int, _Leader] = {}
        """Of orphans that were seen and left alone."""
        self._spared: set[int] = set()
        self._chase: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S

    def adopt(self, guard: Reaper) -> None:
        """Become the parent of orphans, and kill those that attempts leave.

        Orphans that say nothing of where they belong are left alone if they may be others': in a process that has other
        children from before its exec, or is the first of a container.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:  # unknown to this kernel, or refused by its jailer
            why = os.strerror(ctypes.get_errno())
            log.warning("orphans=lost error=%r: what leaves its session may outlive its attempt", why)
            return
        with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
            self._list = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        self._guard = guard
        self._alone = os.getpid() != 1 and self._listed() == [guard.pid]

    def close(self) -> None:
        """Have nothing left, unless attempts run: those are the guard's."""
        for _ in range(LAST_PASSES):
            self.look()
            if self._leaders or self._chase is None:
                break
            time.sleep(FIRST_PAUSE_S)
        if self._chase is not None:
            self._chase.cancel()
        if self._list >= 0:
            os.close(self._list)
            self._list = -1
        self._guard = None

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, pid: int, task_id: str, number: int) -> None:
        """An attempt's first process, which is the leader of its group, has been started."""
        self._leaders[pid] = _Leader(self._groups.add(pid), task_id, number)

    def over(self, pid: int) -> None:
        """It has ended, though nobody reaped it yet: what else is left of the attempt is to be killed."""
        self._leaders[pid].over = True
        self.look()

    def remove(self, pid: int) -> None:
        """To be called before it is reaped, and `look` after that."""
        leader = self._leaders.pop(pid)
        leader.over = True
        self._groups.remove(leader.place)

    # ── orphans ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Reap orphans that have ended and kill those whose attempt is over. To be called now and then, too."""
        if self._guard is None:
            return
        if self._list >= 0 and self._chase is None:
            listed = os.pread(self._list, LIST_BYTES, 0)
            if listed.count(b" ") == len(self._leaders) + 1:
                return
        self._sort([pid for pid in self._listed() if pid not in self._leaders and pid != self._guard.pid])

    def _listed(self) -> list[int]:
        if self._list < 0:
            return children_by_search()
        found = part = os.pread(self._list, LIST_BYTES, 0)
        while len(part) > LIST_BYTES - 16:
            part = os.pread(self._list, LIST_BYTES, len(found))
            found += part
        return [int(pid) for pid in found.split()]

    def _sort(self, orphans: list[int]) -> None:
        left = [pid for pid in orphans if not _reaped(pid)]
        self._owners = {pid: self._owners[pid] for pid in left if pid in self._owners}
        self._spared.intersection_update(left)
        again = False
        for pid in left:
            try:
                again |= pid not in self._spared and self._is_left_behind(pid) and self._kill(pid)
            except OSError:  # it ends at this moment, and is to be reaped; or it becomes another program
                again = True
        if self._chase is not None:
            self._chase.cancel()
            self._chase = None
        if again:
            self._chase = self._loop.call_later(self._pause_s, self.look)
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        else:
            self._pause_s = FIRST_PAUSE_S

    def _is_left_behind(self, pid: int) -> bool:
        owner = self._owners.get(pid)
        if owner is None:
            session, started = _facts(pid)
            marks = _environment(pid)
            if f"{WORKER_MARK}={self._worker}".encode() in marks:
                owner = next((one for one in self._leaders.values() if _marked(marks, one)), None)
                if owner is None:
                    return True
            elif session in self._leaders:
                owner = self._leaders[session]
            elif self._alone or _uid(pid) in self._uids:
                running = [leader for leader, one in self._leaders.items() if not one.over]
                return not any(_facts(leader)[1] <= started for leader in running)
            else:
                return False
            self._owners[pid] = owner
        return owner.over

    def _kill(self, pid: int) -> bool:
        if self._pause_s == FIRST_PAUSE_S:
            log.warning("orphan=killed pid=%d name=%r: its attempt is over", pid, _name(pid))
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            log.warning("orphan=left pid=%d name=%r: it runs as another user", pid, _name(pid))
            self._spared.add(pid)
            return False
        return True


def children_by_search() -> list[int]:
    """The children of this process, found among all processes."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            with contextlib.suppress(OSError):
                if int(_stat(int(name))[1]) == os.getpid():
                    found.append(int(name))
    return found


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _marked(environment: list[bytes], leader: _Leader) -> bool:
    return (
        f"{TASK_MARK}={leader.task_id}".encode() in environment
        and f"{ATTEMPT_MARK}={leader.number}".encode() in environment
    )


def _stat(pid: int) -> list[bytes]:
    """proc_pid_stat(5), from the third field: state, ppid, pgrp, session, …"""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as in guardian.py
        return file.read().rpartition(b")")[2].split()


def _facts(pid: int) -> tuple[int, int]:
    """Its session, and when it was started, in clock ticks."""
    stat = _stat(pid)
    return int(stat[3]), int(stat[19])


def _uid(pid: int) -> int:
    """Its real user (proc_pid_status(5)): who becomes another by a setuid program is still told by it."""
    with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(b"Uid:"))


def _environment(pid: int) -> list[bytes]:
    """What it was started with; nothing if it is another user's, or hides it.

    In the middle of its execve(2) it has none yet, and is not known: BlockingIOError.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            text = file.read()
    except PermissionError:
        return []
    if not text:
        stat = _stat(pid)
        if stat[START_CODE] == b"0" or stat[ENV_START] != stat[ENV_END]:
            raise BlockingIOError(f"process {pid} is becoming another program")
    return text.split(b"\0")


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:  # noqa: PTH123
            return file.read().removesuffix(b"\n").decode("utf-8", "backslashreplace")  # it may have any bytes
    except OSError:
        return ""
