"""Whether an attempt succeeded, and if not, why: the one place that decides. Pure."""

from __future__ import annotations

import signal
from typing import Literal, NamedTuple

NO_RETRY_STATUS = 100
"""An executable ends with it to say: trying again is of no use."""
SHOWN_BYTES = 200
"""Of stderr in a message; the attempt's record has a longer tail."""

Stop = Literal["time_limit", "cancelled", "released", "interrupted", "fenced"]
"""Why the worker itself stopped an attempt."""


class AttemptOutcome(NamedTuple):
    verdict: Literal["succeeded", "failed", "final"]
    """`final`: failed, not to be retried."""
    reason: str
    message: str


def judge(
    returncode: int, stderr: bytes, stderr_size: int, *, keep_stderr: bool, stopped: Stop | None, limit_s: float
) -> AttemptOutcome:
    """`returncode` as subprocess has it (−n: killed by signal n); `stderr` is what was kept of `stderr_size` bytes.

    Success is status 0 and nothing on stderr, unless the task keeps its stderr. An attempt that the worker stopped has
    failed for that reason, whatever its last words.
    """
    match stopped:
        case "time_limit":
            return AttemptOutcome("failed", "time_limit", f"ran longer than its limit of {limit_s:g} s")
        case "cancelled":
            return AttemptOutcome("failed", "cancelled", "")
        case "interrupted":
            return AttemptOutcome(
                "final", "interrupted", "its worker was stopped; with on_lost: fail it may not be started again"
            )
        case "fenced":  # heard of only where a failover has forgotten that it was lost
            return AttemptOutcome(
                "final", "lost", "its lease was given away; with on_lost: fail it may not be started again"
            )
    if returncode < 0:
        return AttemptOutcome("failed", "signal", f"killed by {signal_name(-returncode)}")
    if returncode == NO_RETRY_STATUS:
        return AttemptOutcome(
            "final", "no_retry", "" if stderr_size else f"exit status {NO_RETRY_STATUS}: not to be retried"
        )
    if returncode:
        return AttemptOutcome("failed", "exit", "" if stderr_size else f"exit status {returncode}, nothing on stderr")
    if stderr_size and not keep_stderr:
        shown = stderr[-SHOWN_BYTES:].decode("utf-8", "replace").strip()
        return AttemptOutcome(
            "failed",
            "stderr",
            f"exit status 0, but it wrote to stderr, which counts as a failure unless the task is submitted with"
            f" stderr: keep (--stderr keep): {shown}",
        )
    return AttemptOutcome("succeeded", "", "")


def signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({number})"
    except ValueError:  # real-time signals between RTMIN and RTMAX have no name
        return f"signal {number}"
