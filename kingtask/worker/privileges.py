"""What this process may do, as the kernel sees it (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

BITS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}


def missing(names: Iterable[str]) -> list[str]:
    """Those of the capabilities that this process does not have, as `CAP_…`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return [f"CAP_{name}" for name in names if not effective >> BITS[name] & 1]
