"""Processes as tests see them from outside, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 30.0
"""How long a condition may take on a loaded machine before a test gives up; no test measures by it."""

T = TypeVar("T")


def until(condition: Callable[[], T], what: str | Callable[[], str], patience_s: float = PATIENCE_S) -> T:
    """Wait until the condition holds and return what it gave; fails with `what` was waited for after a while."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {patience_s:g} s in vain: {told}")
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """True if the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between being found and being read
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descriptors(pid: int | None = None) -> list[int]:
    """Numbers of what a process (this one) has open."""
    return sorted(int(entry.name) for entry in Path(f"/proc/{pid or 'self'}/fd").iterdir())


def marked(mark: str) -> list[int]:
    """Processes that were started with this `NAME=value` in their environment."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if mark.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
            except OSError:
                continue
    return found


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
