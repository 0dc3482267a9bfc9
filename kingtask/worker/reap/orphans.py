"""Finds and kills the processes that attempts leave behind, whatever session, group or environment they chose.

The worker is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): when the parent of a process below it ends, the worker
becomes the parent. So the number of its children shows whether anything was left behind: without orphans the worker has
one child for each running attempt, and the reaper process. Counting takes 2 µs. The kernel does not reuse the pid of a
child before the worker has waited for it, so no signal can hit another process.

An orphan may be a helper of a running attempt: its environment or its session names the attempt. An orphan that hides
both may belong to any attempt that ran when the orphan was started, and is killed once none of these attempts runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass

from kingtask import linux, procfs
from kingtask.clock import Backoff
from kingtask.event import Event
from kingtask.worker.environment import ATTEMPT_MARK, TASK_MARK, WORKER_MARK
from kingtask.worker.reap.reaper import Groups, Reaper

log = logging.getLogger("kingtask.worker")

LIST_BYTES = 4_096
"""One read of the list of children gives at most a page; one that is shorter by a pid or more was the last."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 1.0
"""Between a kill and the next scan, which reaps the killed process and finds its children; doubled each time."""
LAST_SCANS = 250
"""At the end of the worker, FIRST_PAUSE_S apart."""


@dataclass(slots=True, eq=False)
class _Leader:
    """The first process of an attempt."""

    index: int
    task_id: str
    number: int
    over: bool = False


class Orphans:
    """Also enters each attempt's process group into `groups`, for the reaper."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: str, groups: Groups, uids: frozenset[int] = frozenset()
    ) -> None:
        """`uids`: users of attempts only, not of the worker: an orphan with such a user belongs to an attempt."""
        self._loop = loop
        self._uids = uids
        self._mark = f"{WORKER_MARK}={worker}".encode()
        self._groups = groups
        self._reaper: Reaper | None = None
        self._leaders: dict[int, _Leader] = {}
        self._list = -1
        self._alone = False
        # Of orphans that were examined and not killed: the attempt that they belong to, and those of other users.
        self._owners: dict[int, _Leader] = {}
        self._spared: set[int] = set()
        self._rescan: asyncio.TimerHandle | None = None
        self._pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)

    def adopt(self, reaper: Reaper) -> None:
        """Become the parent of orphans; from now on `scan` kills those whose attempt is over.

        Orphans that hide their attempt are spared if they may be somebody else's: in a process that has other children
        from before its exec, or is the first process of a container.
        """
        try:
            linux.become_subreaper()
        except OSError as error:  # an old kernel, or a sandbox that refuses it
            log.warning(Event("orphans=lost", "what leaves its session may outlive its attempt", error=error.strerror))
            return
        with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
            self._list = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        self._reaper = reaper
        self._alone = os.getpid() != 1 and self._children() == [reaper.pid]

    def close(self) -> None:
        """Kill every orphan; while attempts still run, that is left to the reaper. Blocks for at most 0.5 s."""
        for _ in range(LAST_SCANS):
            self.scan()
            if self._leaders or self._rescan is None:
                break
            time.sleep(FIRST_PAUSE_S)
        if self._rescan is not None:
            self._rescan.cancel()
        if self._list >= 0:
            os.close(self._list)
            self._list = -1
        self._reaper = None

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, pid: int, task_id: str, number: int) -> None:
        """Register the first process of an attempt, the leader of its group."""
        self._leaders[pid] = _Leader(self._groups.add(pid), task_id, number)

    def end(self, pid: int) -> None:
        """Kill what is left of the attempt: its leader has exited, though it is not reaped yet."""
        self._leaders[pid].over = True
        self.scan()

    def remove(self, pid: int) -> None:
        """Call this before the leader is reaped, and `scan` after that."""
        leader = self._leaders.pop(pid)
        leader.over = True
        self._groups.remove(leader.index)

    # ── orphans ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def scan(self) -> None:
        """Reap orphans that have exited, and kill those whose attempt is over. Call this every `period`, too."""
        if self._reaper is None:
            return
        if self._list >= 0 and self._rescan is None:
            listed = os.pread(self._list, LIST_BYTES, 0)
            if listed.count(b" ") == len(self._leaders) + 1:
                return
        orphans = [pid for pid in self._children() if pid not in self._leaders and pid != self._reaper.pid]
        left = [pid for pid in orphans if not _reaped(pid)]
        self._owners = {pid: self._owners[pid] for pid in left if pid in self._owners}
        self._spared.intersection_update(left)
        again = False
        for pid in left:
            try:
                again |= pid not in self._spared and self._is_left_behind(pid) and self._kill(pid)
            except OSError:  # it is exiting, or in its execve
                again = True
        if self._rescan is not None:
            self._rescan.cancel()
            self._rescan = None
        if again:
            self._rescan = self._loop.call_later(self._pause.next(), self.scan)
        else:
            self._pause.reset()

    def _children(self) -> list[int]:
        if self._list < 0:
            return procfs.children()
        found = part = os.pread(self._list, LIST_BYTES, 0)
        while len(part) > LIST_BYTES - 16:
            part = os.pread(self._list, LIST_BYTES, len(found))
            found += part
        return [int(pid) for pid in found.split()]

    def _is_left_behind(self, pid: int) -> bool:
        owner = self._owners.get(pid)
        if owner is None:
            session, started = procfs.session_and_start(pid)
            environment = procfs.environment(pid)
            if self._mark in environment:
                owner = next((leader for leader in self._leaders.values() if _names(environment, leader)), None)
                if owner is None:
                    return True
            elif session in self._leaders:
                owner = self._leaders[session]
            elif self._alone or procfs.real_uid(pid) in self._uids:
                running = [pid for pid, leader in self._leaders.items() if not leader.over]
                return not any(procfs.session_and_start(leader)[1] <= started for leader in running)
            else:
                return False
            self._owners[pid] = owner
        return owner.over

    def _kill(self, pid: int) -> bool:
        if self._pause.is_fresh:
            log.warning(Event("orphan=killed", "its attempt is over", pid=pid, name=procfs.name(pid)))
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            log.warning(Event("orphan=left", "it runs as another user", pid=pid, name=procfs.name(pid)))
            self._spared.add(pid)
            return False
        return True


def _reaped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _names(environment: list[bytes], leader: _Leader) -> bool:
    task_id, number = f"{TASK_MARK}={leader.task_id}".encode(), f"{ATTEMPT_MARK}={leader.number}".encode()
    return task_id in environment and number in environment
