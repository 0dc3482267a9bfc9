"""Passes 1, 2 and 4: the replies to clients about a task, against what happened to it (I1, I2, I3, I6, I7)."""

from __future__ import annotations

from itertools import pairwise

from kingtask.states import TERMINAL, State
from tests.faults.history import Reading, digest
from tests.faults.story import TaskHistory
from tests.faults.view import CheckContext

EDGE = 0.1
"""Part of a client's calls that counts as the beginning of its work, and as its end."""
NOTHING = digest(b"")


def judge_replies(view: CheckContext, story: TaskHistory, last_op: dict[str, int]) -> None:
    """`last_op`: by client, the number of its last call."""
    if story.sent == 0:
        _unasked(view, story)
    elif story.acked:
        _acked(view, story, last_op)
    elif story.refused == story.sent:
        _refused(view, story)
    elif story.last or story.runs:
        view.report.counts["recovered"] += 1
    _idempotent(view, story)
    _readings(view, story)


def _unasked(view: CheckContext, story: TaskHistory) -> None:
    if story.last or story.runs:
        view.report.counts["unexpected"] += 1
        what = "was executed" if story.runs else "is stored"
        view.report.found("I2", f"{story.id} {what}, but nobody asked for it")


def _refused(view: CheckContext, story: TaskHistory) -> None:
    if story.runs or story.last:
        what = "was executed" if story.runs else "is stored"
        view.report.found("I7", f"{story.id} {what}, but every answer said that nothing was stored")
    else:
        view.report.counts["refused"] += 1


def _acked(view: CheckContext, story: TaskHistory, last_op: dict[str, int]) -> None:
    view.report.counts["acknowledged"] += 1
    if story.ack not in view.rules.acks:
        view.report.found("I1", f"{story.id} was acknowledged as {story.ack!r}")
    problem = _loss(view, story)
    if not problem:
        return
    if story.ack not in view.rules.promised:
        view.report.counts["unpromised"] += 1
        return
    view.report.counts["lost"] += 1
    during = view.windows.names(story.acked_ns, story.acked_ns)
    view.report.lost_during.update(during or ["no fault"])
    part = story.acked_op / last_op[story.acked_by]
    where = "prefix" if part < EDGE else "suffix" if part > 1 - EDGE else "middle"
    view.report.lost_at[where] += 1
    view.report.found("I1", f"{story.id}, acknowledged as {story.ack} during {during or 'no fault'}: {problem}")


def _loss(view: CheckContext, story: TaskHistory) -> str:
    """How an acknowledged task was lost; '' if it was not."""
    if story.gone:
        return "there is no such task"
    if story.missing_ns > story.acked_ns:
        return "a client was told that there is no such task"
    if story.last is None:
        return ""
    if story.last.state not in TERMINAL:
        # With a drain that was not reached, it may still end: then nothing can be said.
        return f"still {story.last.state} after the drain" if view.run.drained_ns else ""
    if view.steady and story.last.created_ms > view.clock.latest_us(story.acked_ns) / 1000 + 1:
        return "its record is younger than its acknowledgement: it was lost, and stored again"
    return ""


def _idempotent(view: CheckContext, story: TaskHistory) -> None:
    if len(story.told) > 1:
        view.report.found("I6", f"{story.id}: different tasks were acknowledged under this id")
    if story.conflict and len(story.contents) == 1:
        view.report.found("I6", f"{story.id}: the same submit, sent again, was refused as another")
    if story.created > 1:
        view.report.found("I6", f"{story.id} was created {story.created} times")


def _readings(view: CheckContext, story: TaskHistory) -> None:
    outcomes = story.outcomes
    changed = any(not _same(view, a, b) for a, b in pairwise(outcomes))
    back = bool(story.read_ns) and max(story.alive_ns, story.missing_ns) > story.read_ns
    if view.rules.forgets:
        view.report.counts["undone"] += changed or back
        return
    if changed:
        told = " and as ".join(f"{r.state} {r.reason} (attempt {r.attempt}, {r.finished_ms})" for r in outcomes)
        view.report.found("I3", f"{story.id} was read as {told}")
    if back:
        view.report.found("I3", f"{story.id} had ended, and was read as something else afterwards")
    if story.cancelled_ns and story.outcome is not None and story.outcome.state != State.CANCELLED:
        view.report.found("I3", f"{story.id} is {story.outcome.state}, but was cancelled while it waited")


def _same(view: CheckContext, a: Reading, b: Reading) -> bool:
    """Equal, but for outputs that were dropped if the rules say that they may be."""
    if not view.rules.drops_outputs:
        return False  # different readings only are kept
    outputs = ("stdout", "stderr")
    mine, yours = (tuple(getattr(r, f) for f in r.__struct_fields__ if f not in outputs) for r in (a, b))
    return mine == yours and all(NOTHING in (x, y) or x == y for x, y in ((a.stdout, b.stdout), (a.stderr, b.stderr)))
