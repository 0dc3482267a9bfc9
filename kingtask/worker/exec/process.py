"""One running program, from its start until nothing of it is left.

    running ──exit seen──▶ draining ──pipes at their end──▶ gone
                              │ DRAIN_S                       ▲
                              └─▶ all killed ───SETTLE_S──────┘

The exit frees the slot, not the end of the pipes: a background process that inherited the pipes cannot hold the slot.
The leader is reaped only after its group was killed: until then the kernel gives the number to no other group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kingtask import procfs
from kingtask.clock import Backoff
from kingtask.event import Event
from kingtask.worker.exec.capture import Capture
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.spawn import Spawned
from kingtask.worker.reap import reaper_process
from kingtask.worker.reap.cgroup import OomKills
from kingtask.worker.reap.orphans import Orphans

log = logging.getLogger("kingtask.worker")

READ_BYTES = 65_536
"""The default capacity of a pipe: one read empties it."""
DRAIN_READS = 32
"""Bound of one non-blocking drain, against writers that never pause; twice the largest capacity of a pipe."""
DRAIN_S = 0.2
"""After the exit: how long background processes may still write."""
SETTLE_S = 0.1
"""After everything of the attempt was killed: a pipe still open then is held by a process out of reach."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 1.0
"""Between tries to reap a process that has exited; doubled each time. Its tracer is notified first (ptrace(2))."""
INSIST_S, LONGEST_INSIST_S = 1.0, 60.0
"""After KILL: the time until a process that still runs is logged and killed again; doubled each time."""


@dataclass(frozen=True, slots=True)
class Host:
    """The descriptors, clock and counters that the attempts of a worker share."""

    loop: asyncio.AbstractEventLoop
    epoll: EpollSet
    orphans: Orphans
    null: int
    """A descriptor of /dev/null, the standard input of a task without one."""
    oom_kills: OomKills
    now_ms: Callable[[], int]
    """Redis's clock."""


class Process:
    """Calls `on_end(self)` once, in the loop, when the process is gone and its output complete."""

    def __init__(self, host: Host, spawned: Spawned, keep_bytes: int, on_end: Callable[[Process], None]) -> None:
        self._host = host
        self._popen = spawned.popen
        self._pidfd = spawned.pidfd
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None
        self.exited_s: float | None = None
        """When the exit was seen, on the loop's clock."""
        self.stdout = Capture(keep_bytes)
        self.stderr = Capture(keep_bytes)
        self._pipes = {spawned.stdout: self.stdout, spawned.stderr: self.stderr}
        self.returncode = 0
        """Once ended: as in subprocess, −n for signal n."""
        self.peak_bytes = 0
        """Once ended: the most memory that it, or a child that it waited for, used at a time (getrusage(2))."""
        self.left_behind = False
        """Once ended: True if a process that it started still held its output and was killed."""
        self.escaped = False
        """Once ended: True if such a process kept the output open in spite of the kill."""
        host.epoll.add(spawned.pidfd, self._exited)
        for fd in self._pipes:
            host.epoll.add(fd, partial(self._readable, fd))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def has_exited(self) -> bool:
        """True also for an exit that the loop has not handled yet."""
        if self.exited_s is not None:
            return True
        poll = select.poll()  # as the loop will see it; waitid(2) would also report a stop of a traced process
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def stop(self, grace_s: float) -> None:
        """End the whole group: TERM, and KILL after the grace. A second call can only shorten the grace."""
        if self.exited_s is not None:
            return
        if grace_s <= 0:
            self._cancel_timer()
            self._kill()
            return
        if self._timer is None:
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process handles TERM only once it continues
        elif self._timer.when() <= self._host.loop.time() + grace_s:
            return
        self._cancel_timer()
        self._timer = self._host.loop.call_later(grace_s, self._kill)

    def _kill(self, pause: Backoff | None = None) -> None:
        if pause is None:
            self._signal_group(signal.SIGKILL)
            pause = Backoff(INSIST_S, LONGEST_INSIST_S)
        else:  # KILL its descendants: one that left the group may trace it; else it sleeps in the kernel
            words = "KILL has not ended it (ps says D: in the kernel, t: traced)"
            log.warning(Event("attempt=not_gone", words, pid=self._popen.pid))
            reaper_process.kill_all(procfs.descendants([self._popen.pid]))
        self._timer = self._host.loop.call_later(pause.next(), self._kill, pause)

    def _exited(self) -> None:
        self.exited_s = self._host.loop.time()
        self._host.epoll.remove(self._pidfd)
        self._cancel_timer()
        for fd in list(self._pipes):
            self._read(fd, DRAIN_READS)
        if self._pipes:
            self._timer = self._host.loop.call_later(DRAIN_S, self._cut_off)
        else:
            self._end()

    def _readable(self, fd: int) -> None:
        self._read(fd, 1)
        if self.exited_s is not None and not self._pipes:
            self._end()

    def _read(self, fd: int, times: int) -> None:
        try:
            for _ in range(times):
                data = os.read(fd, READ_BYTES)
                if not data:
                    self._close(fd)
                    break
                self._pipes[fd].feed(data)
        except BlockingIOError:
            pass

    def _cut_off(self) -> None:
        self.left_behind = True
        self._signal_group(signal.SIGKILL)
        self._host.orphans.end(self._popen.pid)
        self._timer = self._host.loop.call_later(SETTLE_S, self._give_up)

    def _give_up(self) -> None:
        self.escaped = True
        for fd in list(self._pipes):
            self._close(fd)
        self._end()

    def _end(self, pause: Backoff | None = None) -> None:
        self._cancel_timer()
        self._signal_group(signal.SIGKILL)
        pid = self._popen.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if pause is None:
                log.warning(Event("attempt=traced", "it has exited; waiting for its tracer", pid=pid))
                pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._host.orphans.end(pid)  # kills a tracer that the attempt itself started
            self._timer = self._host.loop.call_later(pause.next(), self._end, pause)
            return
        self._host.orphans.remove(pid)
        _, status, usage = os.wait4(pid, os.WNOHANG)
        self._host.orphans.scan()
        self.returncode = self._popen.returncode = os.waitstatus_to_exitcode(status)
        self.peak_bytes = usage.ru_maxrss * 1024
        os.close(self._pidfd)
        on_end = self._on_end
        del self._on_end  # it refers to the attempt, which refers to this process
        on_end(self)

    def _close(self, fd: int) -> None:
        del self._pipes[fd]
        self._host.epoll.remove(fd)
        os.close(fd)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _signal_group(self, number: signal.Signals) -> None:
        # EPERM: every process of the group runs as another user; nothing more can be done.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)
