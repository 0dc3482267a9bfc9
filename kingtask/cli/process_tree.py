"""Child processes that start in order, stop in reverse order, and never outlive this process.

Each child asks the kernel for SIGKILL at its parent's death (PR_SET_PDEATHSIG, prctl(2)), so even `kill -9` of this
process leaves nothing behind. Each has a process group of its own: Ctrl-C in the terminal reaches this process only,
which then stops them in the right order. Spawn from the main thread: the death signal is tied to the spawning thread.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO

from kingtask import linux
from kingtask.clock import monotonic_s

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILLED_WITHIN_S = 10.0


class ProcessEnded(Exception):
    """A child ended without a request to stop."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}")
        self.name = name
        self.status = status


class Stopped(Exception):
    """A signal asked this process to stop."""


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    pidfd: int
    stop_s: float
    """Bound of the time between SIGTERM and SIGKILL."""


class Tree:
    """A context manager for the main thread: inside it handles the stop signals; at its end it stops the children."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = socket.socketpair()
        self._signals = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Tree:
        for end in (self._wake_r, self._wake_w):
            end.setblocking(False)
        self._selector.register(self._wake_r, selectors.EVENT_READ, None)
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it, and a shell for its background jobs
                self._previous[number] = signal.signal(number, self._note_signal)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.stop()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(-1)
            self._selector.close()
            self._wake_r.close()
            self._wake_w.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        stop_s: float,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> int:
        """Start a child and return its process id; `output` takes its stdout and stderr instead of ours."""
        parent = os.getpid()

        def tie_to_parent() -> None:
            linux.set_death_signal(signal.SIGKILL)
            if os.getppid() != parent:  # the parent died before the line above
                os.kill(os.getpid(), signal.SIGKILL)

        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=env,
            process_group=0,
            preexec_fn=tie_to_parent,  # noqa: PLW1509 - no thread runs yet, and nothing is allocated in the child
        )
        child = Child(name, process, os.pidfd_open(process.pid), stop_s)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        self._children.append(child)
        return process.pid

    def watch(self, timeout_s: float | None) -> None:
        """Wait for an event for at most `timeout_s`. Raises ProcessEnded if a child ended, Stopped after a signal."""
        for key, _ in self._selector.select(timeout_s) if not self._signals else ():
            if key.data is None:
                self._drain_wakeups()
            else:
                raise ProcessEnded(key.data.name, key.data.process.wait())
        if self._signals:
            raise Stopped

    def stop(self) -> None:
        """Stop the children, last started first: SIGTERM, then SIGKILL after `stop_s` or at a second stop signal."""
        while self._children:
            child = self._children.pop()
            self._selector.unregister(child.pidfd)
            _send(child, signal.SIGTERM)
            if not self._ended_within(child, child.stop_s):
                _send(child, signal.SIGKILL)
                child.process.wait(KILLED_WITHIN_S)
            child.process.wait()
            os.close(child.pidfd)

    def _ended_within(self, child: Child, timeout_s: float) -> bool:
        seen, deadline = self._signals, monotonic_s() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(child.pidfd, selectors.EVENT_READ)
            selector.register(self._wake_r, selectors.EVENT_READ)
            while (left := deadline - monotonic_s()) > 0 and self._signals == seen:
                for key, _ in selector.select(left):
                    if key.fd == child.pidfd:
                        return True
                    self._drain_wakeups()
        return False

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _drain_wakeups(self) -> None:
        with suppress(BlockingIOError):
            while self._wake_r.recv(4096):
                pass


def _send(child: Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(child.pidfd, number)
