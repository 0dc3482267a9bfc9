"""Forked children for tests, and what a process has open."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
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
            gc.freeze()  # what the parent left is not to be collected here
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE_S))
            told = story()
            status = 0 if told == expected else 1
            print(told, file=sys.stderr)
        except BaseException:  # noqa: BLE001 (the child must not go on with its parent's tests)
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def leaves_something(story: Callable[[], object]) -> str:
    """What a story, told for the second time, leaves open in this process: "" if nothing."""
    for _ in range(2):
        before = _belongings()
        story()
        gc.collect()
        after = _settled(before)
    return f"descriptors and threads before: {before}, after: {after}" if _grown(before, after) else ""


def _settled(before: tuple[int, int]) -> tuple[int, int]:
    """What there is once no more than `before`, or after a while: a joined thread leaves the kernel a little later."""
    deadline = time.monotonic() + PATIENCE_S / 10
    after = _belongings()
    while _grown(before, after) and time.monotonic() < deadline:
        after = _belongings()
    return after


def _grown(before: tuple[int, int], after: tuple[int, int]) -> bool:
    return any(now > then for now, then in zip(after, before, strict=True))


def _belongings() -> tuple[int, int]:
    """How many descriptors and threads this process has, those of ZeroMQ included."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
