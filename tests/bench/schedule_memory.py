"""What many scheduled tasks cost the broker, and how soon a restarted broker fires on time.

    python -m tests.bench.schedule_memory [--tasks 100000]

The scenario `schedule` for kingtask by itself, on the server that the tests use.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench import contestants, probe, run
from tests.bench.scenarios import schedule
from tests.bench.sizes import FULL
from tests.bench.stage import STORED, BenchmarkPaths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kingtask-bench-") as directory:
        setting = BenchmarkPaths(Path(directory) / "probe", {})
        probe.build(setting.probe)
        sizes = replace(FULL, scheduled=options.tasks)
        row = run.measure(0, schedule.SCENARIO, contestants.ALL["kingtask"], STORED, sizes, setting)
    if row.error:
        raise SystemExit(1)
    found = row.figures
    stored = found["Redis bytes per task"]
    print(f"scheduled {found['tasks']:,.0f} at {found['scheduled /s']:,.0f} /s, {stored:.0f} bytes each in Redis")
    print(f"broker RSS grew by {found['broker RSS growth MB']:.1f} MB")
    print(f"starts meanwhile: {found['late p50 ms']:.1f} ms late at the median, {found['late max ms']:.1f} at most;")
    print(f"the earliest {found['late min ms']:.1f} ms after its instant")
    print(f"restarted broker: on time {found['restart: on time after s']:.2f} s after it was started")


if __name__ == "__main__":
    main()
