"""Scratch directories: one for each attempt, in a directory of the worker that is removed with the worker.

    private_dir/kingtask.WORKER/N      mode 0700, owned by the attempt's user

The worker creates the directories of its attempts, and removes the empty ones. The reaper, a process beside the worker,
removes the others in the background, one after another, with rm(1): rm descends by descriptors, so it follows no link
even if names are exchanged meanwhile, handles any depth, and stays on one file system. When the worker is gone, its
reaper also removes the directory of the worker. If worker and reaper were killed, the next worker with the same
private_dir removes it. A worker's directory is in use while a process
holds the lock on it; the kernel releases the lock with its owner.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from kingtask import linux
from kingtask.config.sandbox_settings import UnixIdentity
from kingtask.event import Event
from kingtask.worker.exec.executable import Shortage

log = logging.getLogger("kingtask.worker")

PREFIX = "kingtask."


def directory_of(base: str, worker: str) -> Path:
    """The directory that holds the scratch directories of this worker."""
    return Path(base) / f"{PREFIX}{worker}"


class ScratchDirs:
    """The scratch directories of one worker. `remove` removes a tree in the background."""

    def __init__(self, base: str, worker: str, remove: Callable[[str], None]) -> None:
        """Raises OSError."""
        self.path = directory_of(base, worker)
        self.path.mkdir(mode=0o700)
        self.path.chmod(0o711)  # in spite of the umask: other users may enter, but not list their neighbours
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._numbers = itertools.count(1)
        self._remove = remove

    def make(self, identity: UnixIdentity | None) -> str:
        """Create a directory for an attempt. Raises Shortage."""
        path = f"{self.path}/{next(self._numbers)}"
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102 - pathlib costs a third more
            if identity is not None:
                os.chown(path, identity.uid, identity.gid)
        except OSError as error:
            raise Shortage(f"private_dir {self.path.parent}: {error.strerror}") from None
        return path

    def release(self, path: str) -> None:
        """Remove the directory of an ended attempt: at once if it is empty, else in the background."""
        try:
            os.rmdir(path)  # noqa: PTH106
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._remove(path)

    def remove_abandoned(self) -> None:
        """Remove the directories of workers that were killed together with their reapers."""
        for path in self.path.parent.glob(f"{PREFIX}*"):
            if (lock := linux.lock_directory(path)) is not None:
                os.close(lock)
                log.warning(Event("private_dir=abandoned", "its worker is gone; removing it", path=path))
                self._remove(str(path))
