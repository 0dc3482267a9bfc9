"""The fault cases: `python -m tests.faults list | run CASE | matrix --short | matrix --long`.

The exit status is 0 only if every verdict is `valid`, or the case was skipped because this machine does not permit it,
which is said aloud. A control runs the product broken on purpose: its verdict must be `caught`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import msgspec
import zmq

from tests.faults.cases import CASES
from tests.faults.checker import check
from tests.faults.layout import Skipped
from tests.faults.play import Case, play
from tests.faults.report import COUNTS, SHOWN
from tests.faults.story import load
from tests.servers import binary

LINES = tuple(COUNTS)
JOBS = 3
"""Cases at once; most of the time of one is waiting."""
CASE_TIMEOUT_S = 900.0
GOOD = frozenset({"valid", "caught", "skipped"})


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a case."""

    case: str
    verdict: str
    seconds: float
    counts: dict[str, int]
    faults: int
    late_ms: dict[str, float] = {}
    """How late starts were: percentiles of those without a fault meanwhile."""
    told: str
    """Everything that there is to say."""


def run(case: Case, *, seed: int, seconds: float, keep: Path | None = None) -> Outcome:
    """Play a case and judge it. What a bad run left is kept, whether asked or not."""
    began_s = monotonic()
    directory = Path(tempfile.mkdtemp(prefix=f"kingtask-{case.name}-")) if keep is None else keep
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rules.json").write_bytes(msgspec.json.encode(case.rules))
    try:
        stage = play(case, seed=seed, seconds=seconds, directory=directory)
    except Skipped as reason:
        return _outcome(case, "skipped", began_s, f"SKIPPED: {reason}")
    report = check(load(directory), case.rules)
    verdict: str = "invalid" if stage.complaints else report.verdict
    if case.caught_by:
        verdict = "caught" if case.caught_by & set(report.totals) else "missed"
    told = [f"{case.name}: {case.what} (seed {seed}, {seconds:g} s)", "", str(report), ""]
    told += [f"complaint: {text}" for text in stage.complaints[:SHOWN]]
    told += ["faults:", *(f"  {line}" for line in stage.timeline), f"verdict of the case: {verdict}"]
    if verdict in GOOD and keep is None:
        shutil.rmtree(directory)
    else:
        told.append(f"its history is in {directory}")
    outcome = _outcome(case, verdict, began_s, "\n".join(told))
    counts, faults = dict(report.counts), len(stage.timeline)
    return msgspec.structs.replace(outcome, counts=counts, faults=faults, late_ms=report.late_ms(False))


def _outcome(case: Case, verdict: str, began_s: float, told: str) -> Outcome:
    seconds = round(monotonic() - began_s, 1)
    return Outcome(case=case.name, verdict=verdict, seconds=seconds, counts={}, faults=0, told=told)


# ── many cases ──────────────────────────────────────────────────────────────────────────────────────────────────────


def matrix(cases: list[Case], *, long: bool, seed: int, jobs: int, report: Path | None) -> int:
    """Each case in a process of its own, some at once; those that measure time after the others, one by one."""
    began_s = monotonic()
    outcomes: list[Outcome] = []

    def one(case: Case) -> None:
        outcome = _in_a_process(case, long=long, seed=seed)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if outcome.verdict not in GOOD:
            print(outcome.told, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [case for case in cases if not case.alone]))
    for case in cases:
        if case.alone:
            one(case)
    total: Counter[str] = Counter()
    for outcome in outcomes:
        if not CASES[outcome.case].caught_by:  # what a broken product loses is no loss
            total.update(outcome.counts)
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    print(f"\n{len(outcomes)} cases in {monotonic() - began_s:.0f} s: ", end="")
    print(", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common()))
    print(", ".join(f"{name} {total[name]:,}" for name in LINES))
    for outcome in outcomes:
        if outcome.verdict == "skipped":
            print(f"{outcome.case} {outcome.told}")
    if report is not None:
        report.write_text(_page(outcomes, total, seed))
    return 0 if set(verdicts) <= GOOD else 1


def _in_a_process(case: Case, *, long: bool, seed: int) -> Outcome:
    seconds = case.long_seconds if long else case.seconds
    command = [sys.executable, "-m", "tests.faults", "run", case.name, "--seed", str(seed), "--json"]
    began_s = monotonic()
    try:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            capture_output=True,
            text=True,
            timeout=CASE_TIMEOUT_S,
            check=False,
        )
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Outcome)
    except msgspec.DecodeError:
        return _outcome(case, "broken", began_s, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    except subprocess.TimeoutExpired as error:
        return _outcome(case, "broken", began_s, f"not ended after {CASE_TIMEOUT_S:g} s\n{error.stderr!r}")


def _line(outcome: Outcome) -> str:
    counts = " ".join(f"{name}={outcome.counts.get(name, 0)}" for name in LINES)
    return f"{outcome.case:6}{outcome.verdict:9}{outcome.seconds:6.1f} s  faults={outcome.faults} {counts}"


def _page(outcomes: list[Outcome], total: Counter[str], seed: int) -> str:
    """For RESULTS.md."""
    columns = ("submits", "acknowledged", "lost", "duplicated", "stale_refused", "early", "unknown")
    lines = [
        "# Results of the fault cases",
        "",
        f"`python -m tests.faults matrix --long --seed {seed}`, {datetime.now(UTC):%Y-%m-%d}, at commit {_commit()}.",
        f"{_told([binary(), '--version'])}; Python {platform.python_version()}, ZeroMQ {zmq.zmq_version()};",
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB of memory.",
        "",
        *(f"- {name.replace('_', ' ')}: {COUNTS[name]}" for name in columns),
        "- late: ms by which starts were late that no fault delayed: median, 99th percentile (in all: the worst case)",
        "",
        f"| case | what happens | verdict | s | faults | {' | '.join(columns).replace('_', ' ')} | late |",
        "|---|---|---|---|---|" + "---|" * (len(columns) + 1),
    ]
    for outcome in sorted(outcomes, key=lambda each: each.case):
        figures = " | ".join(f"{outcome.counts.get(name, 0):,}" for name in columns)
        row = [outcome.case, CASES[outcome.case].what, outcome.verdict, f"{outcome.seconds:.0f}", f"{outcome.faults}"]
        lines.append(f"| {' | '.join(row)} | {figures} | {_late([outcome])} |")
    figures = " | ".join(f"{total[name]:,}" for name in columns)
    faults = sum(outcome.faults for outcome in outcomes)
    sound = [outcome for outcome in outcomes if not CASES[outcome.case].caught_by]
    lines.append(f"| all | without the controls | | | {faults:,} | {figures} | {_late(sound)} |")
    skipped = [f"{outcome.case}: {outcome.told}" for outcome in outcomes if outcome.verdict == "skipped"]
    return "\n".join([*lines, "", *skipped])


def _late(outcomes: list[Outcome]) -> str:
    known = [outcome.late_ms for outcome in outcomes if outcome.late_ms]
    return ", ".join(f"{max(late[name] for late in known):,.0f}" for name in ("p50", "p99")) if known else ""


def _told(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _commit() -> str:
    changed = _told(["git", "status", "--porcelain", "--untracked-files=no"])
    return (_told(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown") + (" with changes" if changed else "")


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the cases")
    single = commands.add_parser("run", help="run one case")
    single.add_argument("case", choices=sorted(CASES))
    single.add_argument("--seed", type=int, default=1)
    single.add_argument("--seconds", type=float)
    single.add_argument("--repeat", type=int, default=1, metavar="N", help="N times, each with the next seed")
    single.add_argument("--keep", type=Path, metavar="DIR", help="leave the history there")
    single.add_argument("--json", action="store_true", help="the outcome as one line")
    many = commands.add_parser("matrix", help="run many cases")
    size = many.add_mutually_exclusive_group(required=True)
    size.add_argument("--short", action="store_true", help="what a change is held to, about twelve minutes")
    size.add_argument("--long", action="store_true", help="all cases, at length")
    many.add_argument("--seed", type=int, default=1)
    many.add_argument("--jobs", type=int, default=JOBS, help="cases at once")
    many.add_argument("--report", type=Path, metavar="FILE", help="write the results as a page")
    many.add_argument("--only", nargs="*", metavar="CASE", help="of these cases")
    given = parser.parse_args(arguments)
    if given.command == "list":
        for case in CASES.values():
            print(f"{case.name:6}{'short' if case.short else 'long':7}{case.what}")
        return 0
    if given.command == "matrix":
        cases = [case for case in CASES.values() if given.long or case.short]
        cases = [case for case in cases if not given.only or case.name in given.only]
        return matrix(cases, long=given.long, seed=given.seed, jobs=given.jobs, report=given.report)
    case = CASES[given.case]
    outcomes = []
    for seed in range(given.seed, given.seed + given.repeat):
        outcome = run(case, seed=seed, seconds=given.seconds or case.seconds, keep=given.keep)
        print(msgspec.json.encode(outcome).decode() if given.json else outcome.told, flush=True)
        outcomes.append(outcome)
    if given.repeat > 1:
        told = Counter(outcome.verdict for outcome in outcomes)
        print(f"{given.repeat} times: " + ", ".join(f"{number} {verdict}" for verdict, number in told.most_common()))
    return 0 if {outcome.verdict for outcome in outcomes} <= GOOD else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
