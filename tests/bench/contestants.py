"""Who takes part: kingtask, the floors and the peers, and how the process of each one's client is started."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench import install

ADAPTERS = Path(__file__).parent / "adapters"


@dataclass(frozen=True)
class Contestant:
    name: str
    kind: Literal["kingtask", "floor", "peer"]
    module: str
    """Of `adapters`."""

    def command(self, places: Mapping[str, Path]) -> list[str]:
        """Of its client's process; `places` are the installed peers."""
        if self.name == "bullmq":
            return ["node", str(ADAPTERS / "bullmq.js"), "client"]
        python = str(install.python_of(places[self.name])) if self.kind == "peer" else sys.executable
        return [python, "-m", "tests.bench.adapters.serve", self.module]


def _all(kind: Literal["kingtask", "floor", "peer"], *names: str) -> dict[str, Contestant]:
    return {name: Contestant(name, kind, name.replace("-", "_")) for name in names}


KINGTASK = _all("kingtask", "kingtask", "kingtask-async")
FLOORS = {"list": Contestant("list", "floor", "bare_list"), **_all("floor", "echo", "function", "hops", "spawn")}
PEERS = _all("peer", "celery", "huey", "dramatiq", "saq", "bullmq")
ALL = {**FLOORS, **KINGTASK, **PEERS}
"""In the order of the tables' rows."""
