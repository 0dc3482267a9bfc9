"""One running program, watched from its start until nothing of it is left.

    running ──exit seen──▶ draining ──pipes at their end──▶ gone
                              │ DRAIN_S                       ▲
                              └─▶ all killed ───SETTLE_S──────┘

The exit status decides, not the pipes: a background process that inherited them cannot hold the slot. The leader is
reaped only after its group was killed, for until then its number cannot be given to another group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable
from functools import partial

from kingtask import procfs
from kingtask.worker.exec.capture import Capture
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.spawn import Spawned
from kingtask.worker.reap import reaper_process
from kingtask.worker.reap.orphans import Orphans

log = logging.getLogger("kingtask.worker")

READ_BYTES = 65_536
"""What a pipe holds by default: one read empties it."""
DRAIN_READS = 32
"""Bound of one non-blocking drain, against writers that never pause; twice what a pipe can hold at most."""
DRAIN_S = 0.2
"""After the exit, for what background processes still write."""
SETTLE_S = 0.1
"""After everything of the attempt was killed: a pipe still open then is held by a process out of reach."""
FIRST_PAUSE_S = 0.002
LAST_PAUSE_S = 1.0
"""Between looks whether an end that was seen can be taken, doubled each time: a tracer is told first (ptrace(2))."""
INSIST_S = 1.0
LAST_INSIST_S = 60.0
"""After KILL, until it is told that there is no end yet; doubled each time."""


class Process:
    """Calls `on_end(self)` once, in the loop, when the process is gone and its output complete."""

    __slots__ = (
        "_children",
        "_grace",
        "_loop",
        "_on_end",
        "_pidfd",
        "_pipes",
        "_popen",
        "_watch",
        "escaped",
        "exited_s",
        "left_behind",
        "peak_bytes",
        "returncode",
        "stderr",
        "stdout",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watch: EpollSet,
        children: Orphans,
        spawned: Spawned,
        keep_bytes: int,
        on_end: Callable[[Process], None],
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._children = children
        self._popen = spawned.popen
        self._pidfd = spawned.pidfd
        self._on_end = on_end
        self._grace: asyncio.TimerHandle | None = None
        self.exited_s: float | None = None
        """When the exit was seen, on the loop's clock; the rest is about what it left behind."""
        self.stdout = Capture(keep_bytes)
        self.stderr = Capture(keep_bytes)
        self._pipes = {spawned.stdout: self.stdout, spawned.stderr: self.stderr}
        self.returncode = 0
        """Once ended: as subprocess has it, −n for signal n."""
        self.peak_bytes = 0
        """Once ended: the most memory that it, or one that it waited for, had at a time (getrusage(2))."""
        self.left_behind = False
        """Once ended: True if a process that it had started still held its output and was cut off."""
        self.escaped = False
        """Once ended: True if such a process had also left the group and could not be killed with it."""
        watch.add(spawned.pidfd, self._exited)
        watch.add(spawned.stdout, partial(self._read, spawned.stdout))
        watch.add(spawned.stderr, partial(self._read, spawned.stderr))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def has_exited(self) -> bool:
        """True also if that was not seen yet: the loop may have been elsewhere when it happened."""
        if self.exited_s is not None:
            return True
        poll = select.poll()  # as the loop will see it: waitid(2) also tells of a stop, of one that it is to trace
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def stop(self, grace_s: float) -> None:
        """End the whole group: TERM, and KILL after the grace. Calling it again may only shorten the grace."""
        if self.exited_s is not None:
            return
        if grace_s <= 0:
            self._cancel_grace()
            self._kill()
            return
        if self._grace is None:
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # a stopped process takes TERM only once it goes on
        elif self._grace.when() <= self._loop.time() + grace_s:
            return
        else:
            self._grace.cancel()
        self._grace = self._loop.call_later(grace_s, self._kill)

    def _kill(self) -> None:
        self._kill_group()
        self._grace = self._loop.call_later(INSIST_S, self._insist, INSIST_S)

    def _insist(self, pause_s: float) -> None:
        """It sleeps in the kernel, or something traces it: its own descendants could, from outside of its group."""
        leader = self._popen.pid
        log.warning("attempt=not_gone pid=%d: KILL has not ended it (ps says D: in the kernel, t: traced)", leader)
        reaper_process.kill_all(procfs.descendants([leader]))
        pause_s = min(2 * pause_s, LAST_INSIST_S)
        self._grace = self._loop.call_later(pause_s, self._insist, pause_s)

    def _exited(self) -> None:
        self.exited_s = self._loop.time()
        self._watch.remove(self._pidfd)
        self._cancel_grace()
        self._drain()
        if self._pipes:
            self._grace = self._loop.call_later(DRAIN_S, self._cut_off)
        else:
            self._end()

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._pipes[fd].feed(data)
            return
        self._close(fd)
        if self.exited_s is not None and not self._pipes:
            self._end()

    def _drain(self) -> None:
        for fd, capture in list(self._pipes.items()):
            with contextlib.suppress(BlockingIOError):
                for _ in range(DRAIN_READS):
                    data = os.read(fd, READ_BYTES)
                    if not data:
                        self._close(fd)
                        break
                    capture.feed(data)

    def _cut_off(self) -> None:
        self.left_behind = True
        self._kill_group()
        self._children.end(self._popen.pid)
        self._grace = self._loop.call_later(SETTLE_S, self._give_up)

    def _give_up(self) -> None:
        self.escaped = True
        for fd in list(self._pipes):
            self._close(fd)
        self._end()

    def _end(self, pause_s: float = FIRST_PAUSE_S) -> None:
        self._cancel_grace()
        self._kill_group()
        pid = self._popen.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if pause_s == FIRST_PAUSE_S:
                log.warning("attempt=traced pid=%d: it has ended; waiting until its tracer has taken note of it", pid)
            self._children.end(pid)  # a tracer that it had started is killed, wherever it went
            self._grace = self._loop.call_later(pause_s, self._end, min(2 * pause_s, LAST_PAUSE_S))
            return
        self._children.remove(pid)
        _, status, usage = os.wait4(pid, os.WNOHANG)
        self._children.scan()
        self.returncode = self._popen.returncode = os.waitstatus_to_exitcode(status)
        self.peak_bytes = usage.ru_maxrss * 1024
        os.close(self._pidfd)
        on_end, self._on_end = self._on_end, _nothing
        on_end(self)

    def _close(self, fd: int) -> None:
        del self._pipes[fd]
        self._watch.remove(fd)
        os.close(fd)

    def _cancel_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _kill_group(self) -> None:
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        # EPERM: nothing in the group may be signalled (all of it runs as another user); there is nothing more to do.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)


def _nothing(process: Process) -> None:
    pass
