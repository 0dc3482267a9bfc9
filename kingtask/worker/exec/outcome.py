"""Decides whether an attempt succeeded and, if not, why. Pure."""

from __future__ import annotations

import re
import signal
from typing import Literal, NamedTuple

from kingtask.result import SHOWN_BYTES

NO_RETRY_STATUS = 100
"""Exit status by which an executable declares its failure permanent."""
NEARLY = 0.75
"""Part of the address space that counts as all of it: no program fills the rest."""
OUT_OF_MEMORY_TEXT = re.compile(
    rb"MemoryError|OutOfMemoryError|out of memory|cannot allocate memory|std::bad_alloc|memory exhausted"
    rb"|failed to map segment|allocation failed",
    re.IGNORECASE,
)
MIB = 1_048_576
ONCE = "with on_lost: fail it may not be started again"

Stop = Literal["time_limit", "cancelled", "released", "interrupted", "fenced"]
"""Why the worker itself stopped an attempt."""


class AttemptOutcome(NamedTuple):
    verdict: Literal["succeeded", "failed", "final"]
    """As the function library takes it; `final` is a failure that is not retried."""
    reason: str
    message: str


def judge(
    returncode: int, stderr: bytes, stderr_size: int, *, keep_stderr: bool, stopped: Stop | None, limit_s: float
) -> AttemptOutcome:
    """`returncode` as in subprocess (−n: killed by signal n); `stderr` is what was kept of `stderr_size` bytes.

    Success is status 0 and an empty stderr, unless the task keeps its stderr. An attempt that the worker stopped has
    failed for that reason, whatever its exit status.
    """
    match stopped:
        case "time_limit":
            return AttemptOutcome("failed", "time_limit", f"ran longer than its limit of {limit_s:g} s")
        case "cancelled":
            return AttemptOutcome("failed", "cancelled", "")
        case "interrupted":
            return AttemptOutcome("final", "interrupted", f"its worker was stopped; {ONCE}")
        case "fenced":  # recorded only if a failover of Redis forgot that the lease was lost
            return AttemptOutcome("final", "lost", f"its lease was given away; {ONCE}")
    if returncode < 0:
        return AttemptOutcome("failed", "signal", f"killed by {signal_name(-returncode)}")
    if returncode == NO_RETRY_STATUS:
        message = "" if stderr_size else f"exit status {NO_RETRY_STATUS}: not to be retried"
        return AttemptOutcome("final", "no_retry", message)
    if returncode:
        return AttemptOutcome("failed", "exit", "" if stderr_size else f"exit status {returncode}, nothing on stderr")
    if stderr_size and not keep_stderr:
        shown = stderr[-SHOWN_BYTES:].decode("utf-8", "replace").strip()
        message = (
            "exit status 0, but it wrote to stderr, which counts as a failure unless the task is submitted with"
            f" stderr: keep (--stderr keep): {shown}"
        )
        return AttemptOutcome("failed", "stderr", message)
    return AttemptOutcome("succeeded", "", "")


def explain_memory(
    outcome: AttemptOutcome, stderr: bytes, *, oom_killed: bool, limit: int | None, peak_bytes: int, own_bytes: int
) -> AttemptOutcome:
    """Give a failure by `exit` or `signal` the reason `out_of_memory` if there is evidence for it.

    The evidence is one of three: `oom_killed`, a kill by the kernel; under a limit, the program's own words on stderr;
    under a limit, a death by signal with nearly all of the limit in use (`peak_bytes`, ru_maxrss). The kernel counts
    into the last what the worker had at the start (`own_bytes`), so only a larger peak counts.
    """
    if oom_killed:
        message = f"{outcome.message}: the kernel had no memory left for it, and killed it"
        return outcome._replace(reason="out_of_memory", message=message)
    if limit is None:
        return outcome
    known = peak_bytes > own_bytes
    full = outcome.reason == "signal" and known and peak_bytes >= NEARLY * limit
    if not full and not OUT_OF_MEMORY_TEXT.search(stderr):
        return outcome
    used = f", it used {peak_bytes / MIB:,.0f} MiB" if known else ""
    text = f"its processes may have {limit / MIB:,.0f} MiB each (limits.memory){used}"
    return outcome._replace(reason="out_of_memory", message=f"{outcome.message}; {text}" if outcome.message else text)


def signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:  # real-time signals between RTMIN and RTMAX have no name
        return f"signal {number}"
