"""Acknowledged single submits a second of one pipelining client, beside a bare ROUTER/DEALER echo in the same run.

    python -m tests.bench.submit_rate [--rounds 5] [--submits 20000] [--ack stored|fsync]

A part of the scenario `submit` by itself, on the server that the tests use. Both sides use the same client loop and the
same message bytes; rounds alternate, the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.bench import contestants, probe, run
from tests.bench.figures import Found
from tests.bench.measure import Figures
from tests.bench.scenarios import submit
from tests.bench.scenarios.base import Scenario
from tests.bench.sizes import FULL, Sizes
from tests.bench.stage import FSYNC, STORED, BenchmarkPaths, ContestantStack

FIGURE = "pipelined /s"
NAMES = ("echo", "kingtask")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--submits", type=int, default=20_000)
    parser.add_argument("--ack", choices=("stored", "fsync"), default="stored")
    options = parser.parse_args()
    durability = FSYNC if options.ack == "fsync" else STORED

    def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
        stage.client.call("submit", n=submit.WARM, limit_s=sizes.submit_limit_s)
        return {FIGURE: submit.pipelined(stage, options.submits)}

    scenario = Scenario(name="submit", about="", contestants=NAMES, measure=measure)
    with tempfile.TemporaryDirectory(prefix="kingtask-bench-") as directory:
        setting = BenchmarkPaths(Path(directory) / "probe", {})
        probe.build(setting.probe)
        chosen = [contestants.ALL[name] for name in NAMES]
        rows = list(run.collect([scenario], chosen, [durability], options.rounds, FULL, setting))
    if any(row.error for row in rows):
        raise SystemExit(1)
    found = Found(rows)
    for name in NAMES:
        rates = found.all(name, FIGURE)
        print(f"{name:9} {found.median(name, FIGURE):9,.0f} /s  ({min(rates):,.0f} - {max(rates):,.0f})")
    ratio = (found.median("kingtask", FIGURE) or 0) / (found.median("echo", FIGURE) or 1)
    print(f"ratio     {ratio:9.2f}  (ack {durability.ack}, appendfsync {durability.appendfsync})")


if __name__ == "__main__":
    main()
