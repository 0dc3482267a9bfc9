"""The run itself: each round takes each scenario on both kinds of server, the contestants in turn in random order."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.contestants import Contestant
from tests.bench.measure import Figures
from tests.bench.scenarios.base import Scenario
from tests.bench.sizes import Sizes
from tests.bench.stage import BenchmarkPaths, ContestantStack, Durability, Failed


@dataclass(kw_only=True)
class Measurement:
    """One contestant through one scenario, once."""

    round: int
    scenario: str
    durability: str
    contestant: str
    figures: Figures = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    load1: float = 0.0
    """The load average just before."""
    config: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        told = self.error or ", ".join(f"{name} {value:,.4g}" for name, value in self.figures.items())
        return f"[{self.round + 1}] {self.scenario} ({self.durability}) {self.contestant}, {self.seconds:.1f} s: {told}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def collect(
    scenarios: Iterable[Scenario],
    contestants: Sequence[Contestant],
    durabilities: Sequence[Durability],
    rounds: int,
    sizes: Sizes,
    setting: BenchmarkPaths,
) -> Iterable[Measurement]:
    """Give each row when it has been measured."""
    for nth in range(rounds):
        for scenario in scenarios:
            for durability in durabilities:
                present = [one for one in contestants if scenario.takes_part(one, durability, nth)]
                for contestant in random.sample(present, len(present)):
                    yield measure(nth, scenario, contestant, durability, sizes, setting)


def measure(
    nth: int, scenario: Scenario, contestant: Contestant, durability: Durability, sizes: Sizes, setting: BenchmarkPaths
) -> Measurement:
    """One contestant through one scenario; a failure of it is told in the row, and ends nothing else."""
    row = Measurement(round=nth, scenario=scenario.name, durability=str(durability), contestant=contestant.name)
    row.load1 = os.getloadavg()[0]
    start = time.perf_counter()
    try:
        with ContestantStack(contestant, durability, setting) as stage:
            row.config, row.versions = stage.client.hello["config"], stage.client.hello["versions"]
            figures = scenario.measure(stage, sizes)
            stage.check()
            row.figures = figures
    except (Failed, AssertionError, RuntimeError, OSError) as error:
        row.error = str(error).strip() or repr(error)
    row.seconds = time.perf_counter() - start
    print(row, file=sys.stderr, flush=True)
    return row
