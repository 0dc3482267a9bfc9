"""Forked children for tests, and what a process has open."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.client.responder import PATIENCE_S


def in_child(story: Callable[[], str], expected: str) -> int:
    """Run the story in a forked child, which exits with 0 if it gives what is expected; return the exit status."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE_S))
            status = 0 if story() == expected else 1
        except BaseException:  # noqa: BLE001 (the child must not go on with its parent's tests)
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def belongings() -> tuple[int, int]:
    """How many descriptors and threads this process has, those of ZeroMQ included."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
