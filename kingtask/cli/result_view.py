"""Output of `wait` and `submit --wait` for one task, and its exit status."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from kingtask.cli import console
from kingtask.cli.exit import Exit
from kingtask.errors import ResultTimeout

if TYPE_CHECKING:
    from kingtask.client import Client
    from kingtask.result import Result

SIGNALLED = 128
"""A shell's exit status for a program that a signal ended: 128 + its number."""


def wait_for(client: Client, task_id: str, timeout_s: float) -> Result:
    """Return the task once it has ended, or in its present state after `timeout_s` (may be infinite)."""
    try:
        return client.wait(task_id, None if timeout_s == math.inf else timeout_s)
    except ResultTimeout:
        return client.get(task_id)


def show(result: Result, *, as_json: bool, propagate: bool) -> int:
    """Write the task's stdout and stderr unchanged, or a line of JSON; return the exit status.

    A line on stderr describes a failure, and the state of a task that has not ended.
    """
    if as_json:
        console.write_json(console.result_fields(result))
    else:
        console.write(sys.stdout, result.stdout)
        if result.stderr:
            console.write(sys.stderr, result.stderr)
        if result.dropped:
            console.note(f"kingtask: the output was dropped to make room for later ones ({_sizes(result)})")
        elif result.truncated:
            console.note(f"kingtask: the output was too long; its beginning and end are kept ({_sizes(result)})")
        if not result.success:
            console.note(f"kingtask: {console.visible(result.describe())}")
    return status_of(result, propagate=propagate)


def status_of(result: Result, *, propagate: bool = False) -> int:
    """Return the exit status for a task; with `propagate` the task's own, if that is a failure."""
    if not result.ended:
        return Exit.PENDING
    if result.success:
        return Exit.OK
    if propagate and result.signal:
        return SIGNALLED + result.signal
    return (propagate and result.exit_code) or Exit.TASK_FAILED


def _sizes(result: Result) -> str:
    outputs = (
        ("stdout", result.stdout, result.stdout_size, result.stdout_cut),
        ("stderr", result.stderr, result.stderr_size, result.stderr_cut),
    )
    return ", ".join(
        f"{name} had {size:,} bytes"
        if result.dropped
        else f"{name} {len(kept):,} of {size:,} bytes, the gap behind the first {cut:,}"
        for name, kept, size, cut in outputs
        if cut is not None
    )
