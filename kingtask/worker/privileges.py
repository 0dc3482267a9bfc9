"""What this process may do, as the kernel sees it (capabilities(7))."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4  # prctl(2)

BITS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}


def missing(names: Iterable[str]) -> list[str]:
    """Those of the capabilities that this process does not have, as `CAP_…`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return [f"CAP_{name}" for name in names if not effective >> BITS[name] & 1]


def keep_to_itself() -> None:
    """Let nothing that this process starts have its capabilities, unless it is root.

    A unit may give them for `run_as`; where there is none, what runs as this process's own user would get them.
    """
    ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
