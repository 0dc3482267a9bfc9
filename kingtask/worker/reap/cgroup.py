"""A cgroup for the worker and everything it runs, where the host permits one: no process leaves it.

The reaper stays outside and kills the cgroup when the worker is gone; if both were killed, the next worker does. A
cgroup is in use while a process holds the lock on its directory; the kernel releases the lock with its owner.

Attempts have no cgroups of their own. To move a process into one takes a grace period of the kernel (measured: 15 ms,
or 14 µs just after another move), longer than a brief task runs; a start inside takes clone3(2), which Python does not
offer. `orphans` finds what an attempt leaves behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Self

from kingtask import linux
from kingtask.event import Event
from kingtask.worker.reap import reaper_process

log = logging.getLogger("kingtask.worker")

PREFIX = "kingtask."
TRIES = 10
SYSTEMD = Path("/run/systemd/system")
"""Exists where systemd runs. It owns all cgroups that it has not delegated (`Delegate=yes`)."""


class Cgroup:
    """A cgroup below the one in which this process was started; every process started in it stays in it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, worker: str) -> Self | None:
        """None if the host has no cgroups of version 2, or delegated none to this process."""
        own = own_cgroup()
        if own is None or not is_delegated(own):
            return None
        try:
            remove_abandoned(own)
            for name in (worker, *(f"{worker}.{again}" for again in range(TRIES))):
                path = own / f"{PREFIX}{name}"
                path.mkdir()
                lock = linux.lock_directory(path)
                if lock is not None and path.exists():
                    break
                if lock is not None:  # another starting worker removed it as abandoned before it was locked
                    os.close(lock)
            else:
                return None
            if not (path / reaper_process.CGROUP_KILL).exists():  # Linux 5.14
                os.close(lock)
                path.rmdir()
                return None
        except OSError as error:
            log.info(Event("cgroup=none", error=str(error)))
            return None
        return cls(path, lock)

    def enter(self) -> None:
        """Move this process in. Call this after the start of the reaper, which has to stay outside."""
        try:
            (self.path / "cgroup.procs").write_text("0")
        except OSError as error:  # threaded, frozen, or another owner's
            log.info(Event("cgroup=none", error=str(error)))
        else:
            log.info(Event("cgroup=entered", path=self.path))

    def close(self) -> None:
        """Move this process back, and remove the cgroup."""
        with contextlib.suppress(OSError):
            (self.path.parent / "cgroup.procs").write_text("0")
            reaper_process.end_cgroup(str(self.path))
        os.close(self._lock)


class OomKills:
    """Counts the processes that the kernel killed for want of memory, in a cgroup and all below it (`memory.events`).

    If the cgroup has no count of its own, the count is that of its parent.
    """

    def __init__(self, cgroup: Path | None) -> None:
        places = () if cgroup is None else (cgroup, cgroup.parent)
        files = (place / "memory.events" for place in places)
        self._file = next((file for file in files if file.exists()), None)
        self._seen = self._count()

    def increased(self) -> bool:
        """True if the kernel killed a process since the last call."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        if self._file is None:
            return 0
        try:
            fields = self._file.read_text().split()
        except OSError:  # the cgroup is gone
            return self._seen
        return int(fields[fields.index("oom_kill") + 1]) if "oom_kill" in fields else 0


def own_cgroup() -> Path | None:
    """The directory of this process's cgroup of version 2 (cgroups(7)); hybrid systems have one, too."""
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
    """True if this process may make cgroups there and systemd, where it runs, has delegated it."""
    if not all(os.access(place, os.W_OK) for place in (path, path / "cgroup.procs")):
        return False
    if not SYSTEMD.exists():
        return True
    for name in ("user.delegate", "trusted.delegate"):  # the former since systemd 251, the latter for root only
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def remove_abandoned(own: Path) -> None:
    """Kill the cgroups of workers that were killed together with their reapers."""
    for path in own.glob(f"{PREFIX}*"):
        lock = linux.lock_directory(path)
        if lock is not None:
            log.warning(Event("cgroup=abandoned", "its worker is gone; killing what is left in it", path=path))
            reaper_process.end_cgroup(str(path))
            os.close(lock)
