"""A directory for each attempt, below one of the worker's, which goes with the worker.

    private_dir/kingtask.WORKER/N      0700, owned by the user that the attempt runs as

The worker only makes them, and removes those that are empty. What has something in it is removed by the guard, one
after another, with rm(1), which goes from descriptor to descriptor: it follows no link, however often names are
exchanged below it, goes as deep as there is something, and stays on one file system. Nothing waits for that. When the
worker is gone, its guard removes the rest; should both be killed, the next worker does that uses the same private_dir.
A worker's directory is in use while somebody holds the lock on it, which the kernel lets go with its owner.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from kingtask.config.sandbox_settings import UnixIdentity
from kingtask.worker.exec.executable import Shortage

log = logging.getLogger("kingtask.worker")

PREFIX = "kingtask."


class PrivateDirs:
    """Those of one worker. `remove` is to be set to what removes a tree in the background."""

    def __init__(self, base: str, worker: str) -> None:
        """Raises OSError."""
        self.path = Path(base) / f"{PREFIX}{worker}"
        self.path.mkdir(mode=0o700)
        self.path.chmod(0o711)  # whatever the umask: users pass, and see nothing of their neighbours
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._number = itertools.count(1)
        self.remove: Callable[[str], None] = lambda path: None

    def make(self, identity: UnixIdentity | None) -> str:
        """A new directory. Raises Shortage."""
        path = f"{self.path}/{next(self._number)}"
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102 - pathlib costs a third more
            if identity is not None:
                os.chown(path, identity.uid, identity.gid)
        except OSError as error:
            raise Shortage(f"private_dir {self.path.parent}: {error.strerror}") from None
        return path

    def give_up(self, path: str) -> None:
        """The attempt is over: remove it, now if it is empty."""
        try:
            os.rmdir(path)  # noqa: PTH106
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.remove(path)

    def remove_abandoned(self) -> None:
        """Remove what the workers left that were killed together with their guards."""
        for path in self.path.parent.glob(f"{PREFIX}*"):
            if path != self.path and _unlocked(path):
                log.warning("private_dir=abandoned path=%s: its worker is gone; removing it", path)
                self.remove(str(path))


def _unlocked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or no directory
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
