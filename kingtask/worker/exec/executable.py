"""Which file a task's name means: NAME under the first directory of `bin_path` that has it.

Directories are resolved for every attempt, so `bin_path` may be a link that a deployment turns over (`current`). What a
name resolves to must lie under one of the directories; `..`, absolute names and links that lead out are refused. The
check guards against names and forgotten links, not against those who can write to `bin_path`: they decide what is run.

What is executed is a path, which may name another file by then than the one that was looked at. To execute a held
descriptor would not do: a script is given its path by the kernel, and a program would have the descriptor's number for
a name in `ps`. So the path is looked at again right after the start (`leads_out`).
"""

# Once per attempt, and os.path costs a third of what pathlib does (15 µs against 45 µs):
# ruff: noqa: PTH112, PTH114, PTH115

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence

from kingtask.task import NAME_PATTERN

SHORTAGE = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""This host is out of processes, descriptors or memory: no fault of the task."""

_NAME = re.compile(NAME_PATTERN)


class Unusable(Exception):
    """There is no such executable, or it may not be run. `reason` is that of the failed attempt."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Shortage(Exception):
    """The host cannot start a process now; the attempt is given back."""


def find(name: str, directories: Sequence[str]) -> str:
    """The path to execute. Raises Unusable (`missing`, `not_executable`) with a message for people, or Shortage."""
    if not _NAME.match(name):
        raise Unusable("not_executable", f"{name[:200]!r} is not the name of an executable under bin_path")
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            root = os.path.realpath(directory, strict=True)
            path = f"{root}/{name}"
            real, entry = _look(path, name)
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
            raise Unusable("not_executable", f"{path} runs as another user (setuid), whom the worker could not stop")
        if not os.access(path, os.X_OK):
            raise Unusable("not_executable", f"{path} may not be executed by this worker: chmod +x?")
        return path
    listed = ", ".join(f"{d} (no such directory)" if not os.path.isdir(d) else d for d in directories)
    raise Unusable("missing", f"no {name} in bin_path: {listed}")


def leads_out(path: str, name: str, directories: Sequence[str]) -> bool:
    """True if what stands at a path that `find` gave has been exchanged for something outside of bin_path."""
    try:
        return not _lies_below(_look(path, name)[0], path.removesuffix(f"/{name}"), directories)
    except OSError:  # gone, which is no harm
        return False


def _look(path: str, name: str) -> tuple[str, os.stat_result]:
    """The real path of what stands there, and its kind: both of one and the same file."""
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
