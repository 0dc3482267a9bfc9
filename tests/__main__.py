"""Everything that a change must pass, in one command: `python -m tests [arguments of pytest]`.

Linters and types first, since they take seconds; they all run, and then the tests, whatever failed before. The tests
run in one process more than there are cores, for much of their time is waiting. The exit status is 0 only if nothing
failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

TOP = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent

CHECKS = {
    "style": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "layers": [str(SCRIPTS / "lint-imports"), "--no-logo"],
}
"""They take their settings, and what to look at, from pyproject.toml."""


def main(arguments: list[str]) -> int:
    """Run all checks, then pytest with `arguments`; print what failed. Returns the exit status."""
    failed = [name for name, command in CHECKS.items() if not _passes(name, command)]
    shared_out = ["-n", str(len(os.sched_getaffinity(0)) + 1), "--dist", "worksteal"]
    tests = subprocess.run([sys.executable, "-m", "pytest", *shared_out, *arguments], cwd=TOP, check=False)
    if tests.returncode:
        failed.append("tests")
    print(
        f"failed: {', '.join(failed)}" if failed else "style, format, types, layers and tests: all passed", flush=True
    )
    return 1 if failed else 0


def _passes(name: str, command: list[str]) -> bool:
    """Run one check; show what it says only if it fails."""
    started_s = monotonic()
    done = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    verdict = "failed" if done.returncode else "ok"
    print(f"{name:8}{verdict:8}{monotonic() - started_s:5.1f} s", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
