"""What an adapter provides, and the task itself. Standard library only: it is imported in every peer's environment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REDIS = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379/0")
"""An empty server that nobody else uses."""

PROBE = os.environ.get("BENCH_PROBE", "/nonexistent")
"""The program that every task runs: it prints CLOCK_REALTIME in nanoseconds at the start of its main()."""

SLOTS = 4
"""Tasks at a time, of all contestants."""

ARGV = [PROBE, "12", "45"]


class ContestantAdapter:
    """One contestant, as its client sees it. Any method may be a coroutine; what it cannot do stays None."""

    config = ""
    """Every setting that is not the default, for the table."""
    packages: Sequence[str] = ()
    """Distributions whose versions the table shows."""

    prepare: Any = staticmethod(lambda argv: argv)
    """(argv): what `submit` takes; made before the clock starts."""
    prepare_many: Any = staticmethod(lambda argvs: argvs)
    submit: Any = None
    """(prepared): submit one task; return a handle once it is stored."""
    submit_many: Any = None
    """(prepared): submit them in as few round trips as the product offers."""
    submit_at: Any = None
    """(argv, epoch seconds): submit one task for an instant; return a handle."""
    submit_at_many: Any = None
    """(argvs, epoch seconds): likewise, a millisecond apart, or all for that instant where that is all it can do."""
    at_once = 1_000
    """Tasks in one call of it."""
    pipelined: Any = None
    """(n): submit n single tasks, many on their way at a time; return the seconds from the first to the last reply."""
    wait: Any = None
    """(handle): wait for the end of the task; return its standard output."""
    finished: Any = None
    """(n): how many tasks have ended, the least that shows it; n is how many were submitted since `finished(0)`."""

    def servers(self) -> list[list[str]]:
        """Commands of the processes that submitting needs."""
        return []

    def workers(self) -> list[list[str]]:
        """Commands of the processes that run SLOTS tasks at a time, and of a scheduler if there is one apart."""
        return []

    def open(self) -> Any:
        """Connect."""


def execute(argv: list[str]) -> str:
    """Run a program the way a blocking task of Python does."""
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout


async def execute_async(argv: list[str]) -> str:
    """Run a program the way a coroutine does."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(err.decode())
    return out.decode()


def script(name: str, *arguments: str) -> list[str]:
    """The command of a program that was installed beside this interpreter."""
    return [str(Path(sys.executable).parent / name), *arguments]
