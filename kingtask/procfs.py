"""Processes as /proc shows them (proc(5)).

The worker's reaper process imports this module without site-packages and must start fast: standard library only, and
no pathlib (2 MB). A process may end while it is read: each function that takes a pid raises OSError then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

STATE, PARENT, SESSION, STARTED, CODE_START, ENV_START, ENV_END = 0, 1, 3, 19, 23, 47, 48
"""Places in what `stat` returns."""


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def children() -> list[int]:
    """The children of this process, found among all processes."""
    own = os.getpid()
    return [pid for pid, (parent, _) in _parents_and_starts().items() if parent == own]


def descendants(leaders: Sequence[int]) -> dict[int, int]:
    """Every process below these, with its start in clock ticks."""
    table = _parents_and_starts()
    below: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        below.setdefault(parent, []).append(pid)
    found: dict[int, int] = {}
    pending = list(leaders)
    while pending:
        for pid in below.get(pending.pop(), ()):
            found[pid] = table[pid][1]
            pending.append(pid)
    return found


def stat(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) behind the name, which may hold any bytes: state, parent, group, session, …"""
    return _read(pid, "stat").rpartition(b")")[2].split()


def parent_and_start(pid: int) -> tuple[int, int]:
    """The start is in clock ticks since the boot: pid and start together name one process for good."""
    fields = stat(pid)
    return int(fields[PARENT]), int(fields[STARTED])


def session_and_start(pid: int) -> tuple[int, int]:
    fields = stat(pid)
    return int(fields[SESSION]), int(fields[STARTED])


def real_uid(pid: int) -> int:
    """The real user (proc_pid_status(5)): a setuid program changes the effective one only."""
    return next(int(line.split()[1]) for line in _read(pid, "status").splitlines() if line.startswith(b"Uid:"))


def environment(pid: int) -> list[bytes]:
    """The `NAME=value` pairs with which a process was started; none if it is another user's or erased them.

    Raises BlockingIOError in the middle of its execve(2), when they are not known: the kernel sets the start of the
    code as the last of the addresses, and it is 0 until then.
    """
    try:
        text = _read(pid, "environ")
    except PermissionError:
        return []
    if not text:
        fields = stat(pid)
        if fields[CODE_START] == b"0" or fields[ENV_START] != fields[ENV_END]:
            raise BlockingIOError(f"process {pid} is in its execve")
    return text.split(b"\0")


def name(pid: int) -> str:
    """For people; empty if the process is gone."""
    with contextlib.suppress(OSError):
        return _read(pid, "comm").removesuffix(b"\n").decode("utf-8", "backslashreplace")
    return ""


def set_own_name(text: str) -> None:
    """Set the name that ps and top show, if that is possible."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:  # noqa: PTH123
        file.write(text)


def _parents_and_starts() -> dict[int, tuple[int, int]]:
    found = {}
    for pid in processes():
        with contextlib.suppress(OSError):  # it is gone
            found[pid] = parent_and_start(pid)
    return found


def _read(pid: int, file_name: str) -> bytes:
    with open(f"/proc/{pid}/{file_name}", "rb") as file:  # noqa: PTH123
        return file.read()
