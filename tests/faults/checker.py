"""Judge a run under faults: `check` a history in memory, or `python -m tests.faults.checker DIRECTORY`.

Every pass looks at one task at a time, or at one series; nothing is compared with everything, so a run of half a
million calls takes seconds. The passes stand in `replies.py` (the replies to clients), `executed.py` (what ran),
`stored.py` (what lies in Redis) and `processes.py` (brokers, workers, what is left over).
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.faults.executed import judge_runs
from tests.faults.processes import judge_processes
from tests.faults.replies import judge_replies
from tests.faults.report import CheckReport
from tests.faults.rules import Rules
from tests.faults.stored import judge_dump
from tests.faults.story import Damaged, History, Stories, load
from tests.faults.timeline import RedisClock, Windows
from tests.faults.view import CheckContext

APPLIED = 0.8
"""Part of the planned faults that must have been applied."""


def check(history: History, rules: Rules | None = None) -> CheckReport:
    """Verdict, breaches and counts of a run."""
    report = CheckReport(rules or Rules())
    try:
        stories = Stories(history, report.rules.promised)
        windows, clock = Windows(history.faults), RedisClock(history.clock)
    except (Damaged, ValueError) as error:  # msgspec's errors are ValueErrors
        report.doubt(f"the history cannot be read: {error}")
        return report
    view = CheckContext(run=history.run, rules=report.rules, report=report, windows=windows, clock=clock)
    for story in stories.by_id.values():
        judge_replies(view, story, stories.last_op)
        judge_runs(view, story)
    judge_dump(view, stories.by_id, history.dump)
    judge_processes(view, history)
    _judge_drain(view, stories)
    report.counts["submits"], report.counts["unknown"] = stories.submits, stories.unknown
    _doubt(view, stories)
    return report


def _judge_drain(view: CheckContext, stories: Stories) -> None:
    """I12: the time from the last fault, or from the last instant that was asked for, to the end of the last task."""
    run = view.run
    if not (run.healed_ns and run.drained_ns):
        return
    retries = longest = latest = 0
    for story in stories.by_id.values():
        if story.asked is not None:
            retries = max(retries, sum(story.asked.retry_ms))
            latest = max(latest, story.asked.start_ms)
        for ran in story.runs:
            if ran.end_ns and ran.end_ns - ran.start_ns > longest:
                longest = ran.end_ns - ran.start_ns
    from_ns = max(run.healed_ns, stories.last_ns, view.clock.about_ns(latest) if latest and view.clock else 0)
    allowed_ms = run.lease_ms + retries + longest / 1e6 + view.rules.drain_extra_ms
    took_ms = (run.drained_ns - from_ns) / 1e6
    if took_ms > allowed_ms:
        view.report.found("I12", f"drained after {took_ms / 1000:.1f} s, not within {allowed_ms / 1000:.1f} s")


def _doubt(view: CheckContext, stories: Stories) -> None:
    """Say why nothing can be said, if so."""
    report, run = view.report, view.run
    if not report.counts["acknowledged"]:
        report.doubt("nothing was acknowledged")
    if view.rules.needs_faults and not view.windows.any(stories.first_ns, stories.last_ns):
        report.doubt("no fault was active while clients were at work")
    if not run.drained_ns:
        report.doubt("the drain was not reached")
    if len(view.windows) < APPLIED * run.planned_faults:
        report.doubt(f"only {len(view.windows)} of {run.planned_faults} planned faults were applied")
    if not view.clock:
        report.doubt("no samples of Redis's clock")
    unasked = sum(1 for story in stories.by_id.values() if story.acked and not story.finals)
    if unasked:
        report.doubt(f"{unasked} acknowledged tasks were not asked for after the drain")


def main(arguments: list[str]) -> int:
    """Print what there is to say of a run's directory, by the rules in it, if any; 0 only if it is valid."""
    directory = Path(arguments[0])
    path = directory / "rules.json"
    report = check(load(directory), msgspec.json.decode(path.read_bytes(), type=Rules) if path.exists() else None)
    print(report)
    return 0 if report.verdict == "valid" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
