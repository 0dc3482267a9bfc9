"""Whether an attempt failed for want of memory, as far as that can be known.

There are three witnesses. The kernel counts the processes that it killed in a cgroup (`memory.events`), here those of
the worker's. A program that got no more under its limit mostly says so on stderr. One that does not, and is ended by a
signal, had nearly all of it (`ru_maxrss`); the kernel counts there, too, what the worker had when it started it, so
that only what is more than that says something.
"""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path

from kingtask.worker.exec.outcome import AttemptOutcome
from kingtask.worker.reap.cgroup import own_cgroup

REASON = "out_of_memory"
NEARLY = 0.75
"""Of the limit of its address space, part of which no program fills."""
SAID = re.compile(
    rb"MemoryError|OutOfMemoryError|out of memory|cannot allocate memory|std::bad_alloc|memory exhausted"
    rb"|failed to map segment|allocation failed",
    re.IGNORECASE,
)
MIB = 1_048_576


class KilledForMemory:
    """The count of a cgroup and all below it, or of the next one above: the worker's may have no count of its own."""

    def __init__(self, cgroup: Path | None) -> None:
        places = () if cgroup is None else (cgroup, cgroup.parent)
        files = (place / "memory.events" for place in places)
        self._file = next((file for file in files if file.exists()), None)
        self._seen = self._count()

    @classmethod
    def here(cls) -> KilledForMemory:
        return cls(own_cgroup())

    def again(self) -> bool:
        """True if there were some since the last time."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        if self._file is None:
            return 0
        try:
            fields = self._file.read_text().split()
        except OSError:  # it was moved
            return self._seen
        return int(fields[fields.index("oom_kill") + 1]) if "oom_kill" in fields else 0


def explained(
    verdict: AttemptOutcome, returncode: int, stderr: bytes, peak_bytes: int, limit: int | None, killed: KilledForMemory
) -> AttemptOutcome:
    """The verdict on one that failed by `exit` or `signal`: with the reason `out_of_memory` if that is why."""
    if returncode == -signal.SIGKILL and killed.again():
        return verdict._replace(
            reason=REASON, message=f"{verdict.message}: the kernel had no memory left for it, and killed it"
        )
    if limit is None:
        return verdict
    own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    known = peak_bytes > own_bytes
    full = returncode < 0 and known and peak_bytes >= NEARLY * limit
    if not full and not SAID.search(stderr):
        return verdict
    used = f", it used {peak_bytes / MIB:,.0f} MiB" if known else ""
    text = f"its processes may have {limit / MIB:,.0f} MiB each (limits.memory){used}"
    return verdict._replace(reason=REASON, message=f"{verdict.message}; {text}" if verdict.message else text)
