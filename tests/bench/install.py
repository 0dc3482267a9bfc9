"""The peers' environments: made on demand in a cache directory outside of the repository, found again by later runs.

A requirements file's content is part of the directory's name, so that a change of versions makes a new one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALLED = "installed"
"""The file that says that an installation came to its end."""
PATIENCE_S = 600


class Missing(Exception):
    """This peer cannot be measured here, and why."""


def cache() -> Path:
    """KINGTASK_BENCH_CACHE, else a directory in the user's cache."""
    chosen = os.environ.get("KINGTASK_BENCH_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(home) / "kingtask-bench"


def peer(name: str) -> Path:
    """The directory in which the peer is installed; installs it first if need be. Raises Missing."""
    javascript = REQUIREMENTS / f"{name}.json"
    pins = javascript if javascript.exists() else REQUIREMENTS / f"{name}.txt"
    place = cache() / f"{name}-{sha256(pins.read_bytes()).hexdigest()[:12]}"
    if not (place / INSTALLED).exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if pins is javascript:
            shutil.copy(pins, place / "package.json")
            _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(place)])
        else:
            _run([sys.executable, "-m", "venv", str(place)])
            _run([str(python_of(place)), "-m", "pip", "install", "--quiet", "-r", str(pins)])
        (place / INSTALLED).touch()
    return place


def python_of(place: Path) -> Path:
    return place / "bin" / "python"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines() or [""]
        raise Missing(f"{' '.join(command[:4])} …: {lines[-1]}")
