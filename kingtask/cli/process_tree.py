"""Child processes that start in order, stop in reverse order, and never outlive this process.

Each child asks the kernel for SIGKILL at its parent's death (PR_SET_PDEATHSIG, prctl(2)), so even `kill -9` of this
process leaves nothing behind. Each has a process group of its own: Ctrl-C in the terminal reaches this process only,
which then stops them in the right order. Spawn from the main thread: the death signal is tied to the spawning thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Self

from kingtask import linux
from kingtask.clock import monotonic_s

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KILLED_WITHIN_S = 10.0


class ProcessEnded(Exception):
    """A child ended without a request to stop."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}")
        self.status = status


class Stopped(Exception):
    """A signal asked this process to stop."""


class Tree(ExitStack):
    """Children and other resources; at its end each child stops, and each resource is released, in reverse order.

    Inside, the stop signals and SIGCHLD are blocked: they wait until `watch` or the stop of a child takes them. Enter
    it before this process starts a thread, which would take them instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        # nohup ignores one, and a shell ignores some for its background jobs
        self._stop_signals = {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        self._outer_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def __enter__(self) -> Self:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # one that is ignored would never be sent
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._stop_signals, signal.SIGCHLD})
        self.callback(signal.pthread_sigmask, signal.SIG_SETMASK, self._outer_mask)
        self.callback(self._discard_stop_signals)
        return self

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        stop_s: float,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        """Start a child; `output` takes its stdout and stderr instead of ours.

        At the end it gets SIGTERM, then SIGKILL after `stop_s` or at a further stop signal.
        """
        parent = os.getpid()

        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._outer_mask)
            linux.set_death_signal(signal.SIGKILL)
            if os.getppid() != parent:  # the parent died before the line above
                os.kill(os.getpid(), signal.SIGKILL)

        self._children[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=env,
            process_group=0,
            preexec_fn=prepare,  # noqa: PLW1509 - no thread runs yet, and nothing is allocated in the child
        )
        self.callback(self._stop, self._children[name], stop_s)

    def watch(self, timeout_s: float) -> None:
        """Wait for an event for at most `timeout_s`. Raises ProcessEnded if a child ended, Stopped after a signal."""
        if self._stop_signal_within(timeout_s):
            raise Stopped
        for name, process in self._children.items():
            if process.poll() is not None:
                raise ProcessEnded(name, process.returncode)

    def _stop(self, process: subprocess.Popen[bytes], stop_s: float) -> None:
        process.terminate()
        deadline = monotonic_s() + stop_s
        while process.poll() is None:
            if self._stop_signal_within(deadline - monotonic_s()) or monotonic_s() > deadline:
                process.kill()
                process.wait(KILLED_WITHIN_S)

    def _stop_signal_within(self, timeout_s: float) -> bool:
        """Wait for a stop signal or the end of a child; return whether it was a stop signal."""
        received = signal.sigtimedwait({*self._stop_signals, signal.SIGCHLD}, max(0.0, timeout_s))
        return received is not None and received.si_signo != signal.SIGCHLD

    def _discard_stop_signals(self) -> None:
        while signal.sigtimedwait(self._stop_signals, 0):
            pass
