"""A cgroup for the worker and all that it runs, where the host lets it make one: nothing leaves it, and it dies as one.

The guard stands outside and kills it when the worker is gone; should both be killed, the next worker does. A cgroup is
taken while somebody holds the lock on its directory, which the kernel lets go with its owner.

There is none for each attempt. To move a process into a cgroup takes a grace period of the kernel unless others were
moved just before (measured: 15 ms, else 14 µs), more than a brief task runs; to be born there takes clone3(2), which
Python does not offer. What an attempt leaves behind is found without (`children`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from typing import Self

from kingtask.worker.reap import reaper_process

log = logging.getLogger("kingtask.worker")

PREFIX = "kingtask."
TRIES = 10
SYSTEMD = Path("/run/systemd/system")
"""Exists where systemd runs, to which all cgroups belong that it has not delegated (`Delegate=yes`)."""


class Cgroup:
    """One below the cgroup that this process was in; what is started inherits it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, worker: str) -> Self | None:
        """None if there are no cgroups of version 2 here, or none was delegated to this process."""
        own = own_cgroup()
        if own is None or not is_delegated(own):
            return None
        try:
            remove_abandoned(own)
            for name in (worker, *(f"{worker}.{again}" for again in range(TRIES))):
                path = own / f"{PREFIX}{name}"
                path.mkdir()
                lock = _locked(path)
                if lock is not None and path.exists():
                    break
                if lock is not None:  # another worker, starting too, took it for abandoned before it was locked
                    os.close(lock)
            else:
                return None
            if not (path / reaper_process.CGROUP_KILL).exists():  # Linux 5.14
                os.close(lock)
                path.rmdir()
                return None
            made = cls(path, lock)
        except OSError as error:
            log.info("cgroup=none error=%r", str(error))
            return None
        return made

    def enter(self) -> None:
        """To be called when the guard has been started, which is to stay outside."""
        try:
            (self.path / "cgroup.procs").write_text("0")
        except OSError as error:  # threaded, frozen, or of another owner
            log.info("cgroup=none error=%r", str(error))
        else:
            log.info("cgroup=entered path=%s", self.path)

    def close(self) -> None:
        """Go back to where this process came from, and leave nothing there."""
        with contextlib.suppress(OSError):
            (self.path.parent / "cgroup.procs").write_text("0")
            reaper_process.end_cgroup(str(self.path))
        os.close(self._lock)


def own_cgroup() -> Path | None:
    """The directory of this process's cgroup of version 2 (cgroups(7)); a hybrid system has one, too."""
    try:
        names = os.fsdecode(Path("/proc/self/cgroup").read_bytes()).splitlines()
        mounts = [line.split(" - ", 1) for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()]
    except OSError:
        return None
    name = next((line.removeprefix("0::") for line in names if line.startswith("0::")), None)
    for place, kind in mounts:
        root, mount_point = place.split(" ")[3:5]
        if name is not None and kind.startswith("cgroup2 ") and (root == "/" or f"{name}/".startswith(f"{root}/")):
            return Path(mount_point) / name.removeprefix("" if root == "/" else root).lstrip("/")
    return None


def is_delegated(path: Path) -> bool:
    """True if this process may make cgroups there, and nobody else minds: systemd says what it has given away."""
    if not all(os.access(place, os.W_OK) for place in (path, path / "cgroup.procs")):
        return False
    if not SYSTEMD.exists():
        return True
    for name in ("user.delegate", "trusted.delegate"):  # the former since systemd 251, the latter for root only
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def remove_abandoned(own: Path) -> None:
    """End what the workers left that were killed together with their guards."""
    for path in own.glob(f"{PREFIX}*"):
        lock = _locked(path)
        if lock is not None:
            log.warning("cgroup=abandoned path=%s: its worker is gone; killing what is left in it", path)
            reaper_process.end_cgroup(str(path))
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that locks it; None if somebody else has the lock, or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
