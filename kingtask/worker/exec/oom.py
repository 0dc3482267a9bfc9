"""Counts the processes that the kernel killed for want of memory in the worker's cgroup (`memory.events`)."""

from __future__ import annotations

from pathlib import Path


class OomKills:
    """The count of a cgroup and all below it; of its parent if the cgroup has no count of its own."""

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
