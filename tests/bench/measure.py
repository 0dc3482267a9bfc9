"""Numbers about processes and about samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

Figures = dict[str, float]


def percentiles(samples: Sequence[float], what: str, wanted: Sequence[int] = (50, 95, 99)) -> Figures:
    """Seconds as milliseconds, by the nearest rank; 0 and 100 are the least and the most."""
    ordered = sorted(samples)
    names = {0: "min", 100: "max"}
    return {
        f"{what} {names.get(p, f'p{p}')} ms": 1000 * ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in wanted
    }


def tree(pids: Iterable[int]) -> list[int]:
    """The processes and all their descendants."""
    found = list(pids)
    for pid in found:
        for thread in _threads(pid):
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def rss_mb(pids: Iterable[int]) -> float:
    """Resident memory of the processes and their descendants."""
    total = 0
    for pid in tree(pids):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """What their threads, and their descendants', have run so far; to the nanosecond, unlike utime and stime."""
    total = 0
    for pid in tree(pids):
        for thread in _threads(pid):
            with contextlib.suppress(OSError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
