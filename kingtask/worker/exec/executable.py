"""Finds the file of a task's name: NAME under the first directory of `bin_path` that has it.

Directories are resolved for every attempt, so `bin_path` may be a link that a deployment switches (`current`). The
resolved file must lie under one of the directories: `..`, absolute names and links that lead out are refused. This
guards against names and forgotten links, not against users who can write to `bin_path`: they decide what is run.

The path that is executed may by then name another file than the one that was checked. A held descriptor cannot be
executed instead: the kernel gives a script its path, and `ps` would show the descriptor's number as the name of a
program. So `leads_out` checks the path again right after the start.
"""

# Once per attempt, and os.path costs a third of what pathlib does (15 µs against 45 µs):
# ruff: noqa: PTH112, PTH114, PTH115

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from typing import Literal

from kingtask.task import NAME_PATTERN

SHORTAGE = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""The host is out of processes, descriptors or memory: not the task's fault."""

_NAME = re.compile(NAME_PATTERN)


class Unusable(Exception):
    """The task cannot be started. `reason` becomes the reason of the failed attempt; `final`: it is not retried."""

    def __init__(self, reason: str, message: str, verdict: Literal["failed", "final"] = "failed") -> None:
        super().__init__(message)
        self.reason = reason
        self.verdict: Literal["failed", "final"] = verdict


class Shortage(Exception):
    """The host cannot start a process now; the attempt is released."""


def find(name: str, directories: Sequence[str]) -> str:
    """Return the path to execute. Raises Unusable (`missing`, `not_executable`) or Shortage."""
    if not _NAME.match(name):
        raise Unusable("not_executable", f"{name[:200]!r} is not the name of an executable under bin_path")
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            root = os.path.realpath(directory, strict=True)
            path = f"{root}/{name}"
            real, entry = _stat(path, name)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):
                raise Unusable("missing", f"{path} is a link to nothing") from None
            continue
        except OSError as error:
            if error.errno in SHORTAGE:
                raise Shortage(error.strerror) from None
            raise Unusable("not_executable", f"cannot look up {name} in {directory}: {error.strerror}") from None
        if not _lies_below(real, root, directories):
            raise Unusable("not_executable", f"{name} leads out of bin_path, to {real}")
        if not stat.S_ISREG(entry.st_mode):
            kind = "a directory" if stat.S_ISDIR(entry.st_mode) else "not a regular file"
            raise Unusable("not_executable", f"{path} is {kind}")
        if entry.st_mode & (stat.S_ISUID | stat.S_ISGID):
            raise Unusable("not_executable", f"{path} runs as another user (setuid); the worker could not stop it")
        if not os.access(path, os.X_OK):
            raise Unusable("not_executable", f"{path} may not be executed by this worker: chmod +x?")
        return path
    listed = ", ".join(f"{d} (no such directory)" if not os.path.isdir(d) else d for d in directories)
    raise Unusable("missing", f"no {name} in bin_path: {listed}")


def leads_out(path: str, name: str, directories: Sequence[str]) -> bool:
    """True if a path that `find` returned leads out of bin_path by now."""
    try:
        return not _lies_below(_stat(path, name)[0], path.removesuffix(f"/{name}"), directories)
    except OSError:  # it is gone: nothing that leads out
        return False


def _stat(path: str, name: str) -> tuple[str, os.stat_result]:
    """The real path of a file and its stat, both of the same file."""
    if "/" not in name and not stat.S_ISLNK((entry := os.lstat(path)).st_mode):
        return path, entry
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)


def _lies_below(real: str, root: str, directories: Sequence[str]) -> bool:
    return real.startswith(f"{root.rstrip('/')}/") or any(
        real.startswith(f"{os.path.realpath(directory).rstrip('/')}/") for directory in directories
    )
