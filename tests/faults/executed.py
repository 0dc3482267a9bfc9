"""Passes 3, 5 and 7: what ran, against what was asked and what is recorded (I1, I3–I6, I8–I10, I15)."""

from __future__ import annotations

from itertools import pairwise

from kingtask.states import State
from tests.faults.history import Asked, Reading, Tried
from tests.faults.story import Ran, TaskHistory
from tests.faults.view import CheckContext

LISTED = 72
"""Attempts that a record keeps."""
BY_ITSELF = frozenset({"", "exit", "stderr", "no_retry"})
"""Reasons of attempts whose program ran to its own end."""
UNCOUNTED = frozenset({"", "lost", "released"})
"""Reasons that are no failures."""
FINAL = frozenset({"no_retry", "interrupted", "lost"})
"""Reasons for which a task fails although its list has intervals left."""


def judge_runs(view: CheckContext, story: TaskHistory) -> None:
    story.runs.sort(key=lambda ran: ran.start_ns)
    view.report.counts["executions"] += len(story.runs)
    record, asked = story.outcome or story.last, story.asked
    _repeats(view, story)
    _as_asked(view, story, asked)
    if record is None:
        return
    tried = {attempt.number: attempt for attempt in record.attempts}
    _known(view, story, record, tried)
    _overlaps(view, story, tried)
    if asked is None:
        return
    _numbers(view, story, record)
    _counted(view, story, record, asked)
    _losses(view, story, record, asked)
    _on_time(view, story, record, asked)
    if asked.name not in view.rules.silent:
        _recorded(view, story, record)
        _output(view, story, record)
    failures = sum(attempt.reason not in UNCOUNTED for attempt in record.attempts)
    succeeded = record.state == State.SUCCEEDED
    view.report.counts["duplicated"] += max(0, len(story.runs) - max(1, failures + succeeded))


# ── the ledger by itself, and against the record ────────────────────────────────────────────────────────────────────


def _once(story: TaskHistory) -> bool:
    return story.asked is not None and story.asked.on_lost == "fail"


def _repeats(view: CheckContext, story: TaskHistory) -> None:
    seen = set()
    for ran in story.runs:
        if ran.attempt in seen and not (view.rules.forgets and not _once(story)):
            broken = "I5" if _once(story) else "I6"
            view.report.found(broken, f"{story.id}: attempt {ran.attempt} was executed more than once")
        seen.add(ran.attempt)


def _as_asked(view: CheckContext, story: TaskHistory, asked: Asked | None) -> None:
    if asked is None:
        return
    for ran in story.runs:
        if (ran.args and ran.args != asked.args) or (ran.stdin and ran.stdin != asked.stdin):
            view.report.found("I15", f"{story.id}: attempt {ran.attempt} found other arguments than were submitted")
    if story.last is not None and story.last.args != asked.args:
        view.report.found("I15", f"{story.id}: the record has other arguments than were submitted")


def _known(view: CheckContext, story: TaskHistory, record: Reading, tried: dict[int, Tried]) -> None:
    """Each execution has its attempt in the record, under the worker that ran it."""
    ended = story.outcome is not None
    for ran in story.runs:
        attempt = tried.get(ran.attempt)
        if attempt is None:
            if ended and len(tried) < LISTED and not view.rules.forgets:
                view.report.found("I4", f"{story.id}: attempt {ran.attempt} was executed, the record lacks it")
        elif ran.worker and attempt.worker != ran.worker and not view.rules.forgets:
            view.report.found("I4", f"{story.id}: attempt {ran.attempt} ran on {ran.worker}, not on {attempt.worker}")
        elif attempt.reason == "lost" and ran.end_ns is not None:
            view.report.counts["stale_refused"] += 1
        if ended and view.steady and view.clock.earliest_us(ran.start_ns) > (record.finished_ms + 1) * 1000:
            _after_its_end(view, story, record, ran, attempt)


def _after_its_end(view: CheckContext, story: TaskHistory, record: Reading, ran: Ran, attempt: Tried | None) -> None:
    """Only a worker that was cut off between claim and spawn, and whose attempt was given away, may start so late."""
    lost = attempt if attempt is not None and attempt.reason == "lost" else None
    excused = lost is not None and view.faulty(lost.started_ms, record.finished_ms)
    if not excused and not (view.rules.forgets and not _once(story)):
        view.report.found("I3", f"{story.id} was executed (attempt {ran.attempt}) after it was {record.state}")


def _overlaps(view: CheckContext, story: TaskHistory, tried: dict[int, Tried]) -> None:
    """Two executions overlap, or stand in the wrong order, only if the earlier attempt's lease could not be renewed."""
    for j, later in enumerate(story.runs):
        for earlier in story.runs[:j]:
            together = earlier.end_ns is not None and earlier.end_ns > later.start_ns
            if not together and earlier.attempt <= later.attempt:
                continue
            view.report.counts["overlaps"] += 1
            first = tried.get(min(earlier.attempt, later.attempt))
            lost = view.rules.forgets or (first is not None and first.reason == "lost")
            from_ns = view.clock.about_ns(first.started_ms) if first and view.clock else earlier.start_ns
            if not (lost and view.windows.any(min(from_ns, earlier.start_ns), later.start_ns)):
                both = f"attempts {earlier.attempt} and {later.attempt}"
                view.report.found("I10", f"{story.id}: {both} overlap, and no fault kept a lease from being renewed")


# ── the record by itself, and against what was asked ────────────────────────────────────────────────────────────────


def _numbers(view: CheckContext, story: TaskHistory, record: Reading) -> None:
    """Attempts are numbered one by one, each ends before the next begins, and only the last one can succeed."""
    attempts = record.attempts
    numbers = [attempt.number for attempt in attempts]
    if story.outcome is not None and len(attempts) < LISTED and numbers != list(range(1, record.attempt + 1)):
        view.report.found("I4", f"{story.id}: the record lists attempts {numbers} of {record.attempt}")
    for a, b in pairwise(attempts):
        if a.ended_ms > b.started_ms and not view.rules.steps_clock:
            view.report.found("I4", f"{story.id}: attempt {a.number} was recorded after the claim of {b.number}")
        if a.reason == "":
            view.report.found("I3", f"{story.id}: attempt {a.number} succeeded, and another followed")
    last = attempts[-1].reason if attempts else None
    if record.state == State.SUCCEEDED and last != "":
        view.report.found("I4", f"{story.id} succeeded, but its last attempt has the reason {last!r}")
    if record.state in (State.FAILED, State.CANCELLED) and last == "":
        view.report.found("I4", f"{story.id} is {record.state}, but its last attempt succeeded")


def _counted(view: CheckContext, story: TaskHistory, record: Reading, asked: Asked) -> None:
    reasons = [attempt.reason for attempt in record.attempts]
    failures = sum(reason not in UNCOUNTED for reason in reasons)
    lost = reasons.count("lost")
    if failures > 1 + len(asked.retry_ms):
        view.report.found("I9", f"{story.id} failed {failures} times, with {len(asked.retry_ms)} intervals")
    if lost > view.run.max_lost:
        view.report.found("I9", f"{story.id} was lost {lost} times; max_lost is {view.run.max_lost}")
    if record.state != State.FAILED or not reasons:
        return
    if reasons[-1] not in FINAL and failures <= len(asked.retry_ms):
        view.report.found("I9", f"{story.id} has failed after {failures} of {1 + len(asked.retry_ms)} attempts")
    if reasons[-1] == "lost" and asked.on_lost != "fail" and lost < view.run.max_lost:
        view.report.found("I9", f"{story.id} has failed after being lost {lost} times; max_lost is {view.run.max_lost}")


def _losses(view: CheckContext, story: TaskHistory, record: Reading, asked: Asked) -> None:
    ran = {run.attempt for run in story.runs}
    for i, attempt in enumerate(record.attempts):
        followed = i + 1 < len(record.attempts)
        if asked.on_lost == "fail" and followed and attempt.reason in ("lost", "interrupted"):
            view.report.found("I5", f"{story.id}: attempt {attempt.number} was {attempt.reason}, and another followed")
        if asked.on_lost == "fail" and attempt.reason == "released" and attempt.number in ran:
            view.report.found("I5", f"{story.id}: attempt {attempt.number} was handed back after it ran")
        if attempt.reason != "lost":
            continue
        if attempt.ended_ms - attempt.started_ms < view.run.lease_ms:
            view.report.found("I10", f"{story.id}: attempt {attempt.number} was given away before its lease could end")
        if not view.rules.loses_anytime and not view.faulty(attempt.started_ms, attempt.ended_ms):
            view.report.found("I10", f"{story.id}: attempt {attempt.number} was lost, and no fault was active")


def _on_time(view: CheckContext, story: TaskHistory, record: Reading, asked: Asked) -> None:
    """Follow due instants through the attempts: none starts before, by Redis's clock and by the ledger."""
    if record.attempts and record.attempts[0].number != 1:
        return  # earlier failures are not listed any more
    due_ms = asked.start_ms or (record.created_ms + asked.delay_ms if asked.delay_ms else 0)
    waits_from_ms = max(due_ms, record.created_ms)
    ran = {run.attempt: run for run in story.runs}
    failures = 0
    for attempt in record.attempts:
        run = ran.get(attempt.number)
        early = attempt.started_ms < due_ms
        if run is not None and view.clock:
            early |= view.clock.latest_us(run.start_ns) < due_ms * 1000
            _late(view, run, waits_from_ms)
        if early:
            view.report.counts["early"] += 1
            view.report.found("I8", f"{story.id}: attempt {attempt.number} began before {due_ms}")
        if asked.expires_ms and attempt.started_ms >= asked.expires_ms:
            view.report.found("I8", f"{story.id}: attempt {attempt.number} began after expires_at")
        if attempt.reason not in UNCOUNTED:
            if failures < len(asked.retry_ms) and not view.rules.steps_clock:
                due_ms = attempt.ended_ms + asked.retry_ms[failures]
            failures += 1
        waits_from_ms = max(attempt.ended_ms, due_ms)
    if record.state == State.EXPIRED and not 0 < asked.expires_ms <= record.finished_ms:
        view.report.found("I8", f"{story.id} expired at {record.finished_ms}, not after {asked.expires_ms}")


def _late(view: CheckContext, run: Ran, due_ms: int) -> None:
    late_ms = (view.clock.earliest_us(run.start_ns) + view.clock.latest_us(run.start_ns)) / 2000 - due_ms
    from_ns = run.start_ns - max(0, round(late_ms * 1e6))
    view.report.lateness_ms[view.windows.any(from_ns, run.start_ns)].append(late_ms)


# ── ends and outputs ────────────────────────────────────────────────────────────────────────────────────────────────


def _recorded(view: CheckContext, story: TaskHistory, record: Reading) -> None:
    """What is recorded of an attempt is what the ledger tells of it."""
    for attempt in record.attempts:
        if attempt.reason not in BY_ITSELF:
            continue
        runs = _runs_of(story, attempt)
        if not runs:
            view.report.found("I1", f"{story.id}: attempt {attempt.number} is recorded, but was not executed")
        elif attempt.reason == "" and all(run.end_ns is None for run in runs):
            view.report.found("I15", f"{story.id}: attempt {attempt.number} is a success, but did not come to its end")
        elif all(run.end_ns is not None and run.exit != (attempt.exit_code or 0) for run in runs):
            code = attempt.exit_code
            view.report.found("I15", f"{story.id}: attempt {attempt.number} ended with {runs[0].exit}, not with {code}")


def _output(view: CheckContext, story: TaskHistory, record: Reading) -> None:
    """The outputs of an ended task are those of its last attempt."""
    last = record.attempts[-1] if record.attempts and story.outcome is not None else None
    if last is None or last.reason not in BY_ITSELF:
        return
    runs = _runs_of(story, last)
    for stream, kept, size in (("out", record.stdout, record.stdout_size), ("err", record.stderr, record.stderr_size)):
        wrote = [getattr(run, stream) for run in runs if getattr(run, stream)]
        if not wrote or any(_kept(view, kept, size, digest) for digest in wrote):
            continue
        others = [run.attempt for run in story.runs if getattr(run, stream) == kept and run.attempt != last.number]
        if others:
            view.report.found("I4", f"{story.id}: std{stream} is that of attempt {others[0]}, not of {last.number}")
        else:
            view.report.found("I15", f"{story.id}: std{stream} is not what attempt {last.number} wrote")


def _kept(view: CheckContext, kept: str, size: int, wrote: str) -> bool:
    """Compare digests; of an output that may have been cut or dropped, only the size."""
    wrote_size = _size(wrote)
    if size != wrote_size:
        return False
    if _size(kept) == size:
        return kept == wrote
    return _size(kept) < size and (size > view.rules.kept_bytes or (_size(kept) == 0 and view.rules.drops_outputs))


def _size(digest: str) -> int:
    return int(digest.rpartition(":")[2] or 0)


def _runs_of(story: TaskHistory, attempt: Tried) -> list[Ran]:
    runs = [run for run in story.runs if run.attempt == attempt.number]
    return [run for run in runs if run.worker == attempt.worker] or runs
