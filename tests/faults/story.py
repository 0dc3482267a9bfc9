"""A history by task: what was asked, told, executed and kept of each id, as little as the judgement needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Generic, TypeVar

import msgspec

from kingtask.states import TERMINAL
from tests.faults.history import (
    LEDGER,
    Asked,
    ClockSample,
    Execution,
    Exit,
    Fault,
    Final,
    Key,
    Op,
    Ping,
    Reading,
    Record,
    Residue,
    RunRecord,
    Sample,
    read,
    read_ledger,
    read_run,
)

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Lines(Generic[R]):
    """The records of files, read again each time they are iterated over."""

    paths: tuple[Path, ...]
    kind: type[R]

    def __iter__(self) -> Iterator[R]:
        for path in self.paths:
            yield from read(path, self.kind)


@dataclass(frozen=True, slots=True)
class ExecutionLog:
    path: Path

    def __iter__(self) -> Iterator[Execution]:
        return read_ledger(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that a run left behind; in a file or in memory."""

    run: RunRecord
    ops: Iterable[Op]
    executions: Iterable[Execution]
    faults: Iterable[Fault] = ()
    clock: Iterable[ClockSample] = ()
    pings: Iterable[Ping] = ()
    samples: Iterable[Sample] = ()
    exits: Iterable[Exit] = ()
    residue: Iterable[Residue] = ()
    dump: Iterable[Key] = ()
    finals: Iterable[Final] = ()


def load(directory: Path) -> History:
    """A run's files."""

    def lines(kind: type[R], pattern: str) -> Lines[R]:
        return Lines(tuple(sorted(directory.glob(pattern))), kind)

    return History(
        run=read_run(directory),
        ops=lines(Op, "client-*.jsonl"),
        executions=ExecutionLog(directory / LEDGER),
        faults=lines(Fault, "faults.jsonl"),
        clock=lines(ClockSample, "clock.jsonl"),
        pings=lines(Ping, "pings.jsonl"),
        samples=lines(Sample, "samples.jsonl"),
        exits=lines(Exit, "exits.jsonl"),
        residue=lines(Residue, "residue.jsonl"),
        dump=lines(Key, "dump.jsonl"),
        finals=lines(Final, "final.jsonl"),
    )


@dataclass(slots=True)
class Ran:
    """One execution, as the ledger tells it."""

    attempt: int
    pid: int
    worker: str
    start_ns: int
    args: str
    stdin: str
    end_ns: int | None = None
    """None: it wrote none; it was killed at some time."""
    exit: int = 0
    out: str = ""
    err: str = ""


@dataclass(slots=True)
class TaskHistory:
    id: str
    sent: int = 0
    """Submits and requeues."""
    refused: int = 0
    """Of them, answered with stored: no."""
    created: int = 0
    """Answers that said so, at a promised level."""
    contents: list[Asked] = field(default_factory=list)
    """The different things that were asked for under this id."""
    told: list[Asked] = field(default_factory=list)
    """Those of them that were acknowledged: more than one breaks I6."""
    conflict: bool = False
    origin: str = ""
    ack: str = ""
    """Level of the first good answer, '' if there was none."""
    acked_ns: int = 0
    acked_by: str = ""
    acked_op: int = 0
    cancelled_ns: int = 0
    """When a client was told so."""
    outcomes: list[Reading] = field(default_factory=list)
    """Different readings of an ended task: more than one breaks I3."""
    read_ns: int = 0
    """When the first of them had been read."""
    alive_ns: int = 0
    """When the last reading that was not one was asked for, likewise `missing_ns` for one that found no task."""
    missing_ns: int = 0
    last: Reading | None = None
    """The last of what was read after the drain."""
    gone: bool = False
    """After the drain there was no such task."""
    finals: int = 0
    runs: list[Ran] = field(default_factory=list)

    @property
    def acked(self) -> bool:
        return bool(self.ack)

    @property
    def asked(self) -> Asked | None:
        """What the task is; None if nobody asked, or if different things were asked and none acknowledged."""
        if self.told:
            return self.told[0]
        return self.contents[0] if len(self.contents) == 1 else None

    @property
    def outcome(self) -> Reading | None:
        """As it stands in the end, if the task has ended."""
        return self.outcomes[-1] if self.outcomes else None


class Damaged(Exception):
    """The history contradicts itself: nothing can be said from it."""


class Stories:
    """All tasks of a history."""

    def __init__(self, history: History, promised: frozenset[str]) -> None:
        self.by_id: dict[str, TaskHistory] = {}
        self.submits = 0
        self.unknown = 0
        self.first_ns = self.last_ns = 0
        """When the first call began, and when the last began or ended."""
        self.last_op: dict[str, int] = {}
        """By client: number of its last call."""
        self._promised = promised
        self._calls(history.ops)
        for story in self.by_id.values():
            again = self._again(story.origin) if story.origin else None
            if again is not None:
                story.contents = [again]
        self._executions(history.executions)
        self._finals(history.finals)

    def _story(self, task_id: str) -> TaskHistory:
        story = self.by_id.get(task_id)
        if story is None:
            story = self.by_id[task_id] = TaskHistory(task_id)
        return story

    def _again(self, origin: str) -> Asked | None:
        """A requeued task is the same as its origin, to be run now."""
        seen = set()
        while origin not in seen:
            seen.add(origin)
            old = self.by_id.get(origin)
            if old is None:
                return None
            if not old.origin:
                return old.asked and msgspec.structs.replace(old.asked, start_ms=0, delay_ms=0, expires_ms=0)
            origin = old.origin
        return None

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _calls(self, ops: Iterable[Op]) -> None:
        open_: dict[tuple[str, int], Op] = {}
        for op in ops:
            key = op.proc, op.op
            if op.mono_ns < self.first_ns or not self.first_ns:
                self.first_ns = op.mono_ns
            self.last_ns = max(self.last_ns, op.mono_ns)
            if op.type == "invoke":
                if key in open_:
                    raise Damaged(f"call {op.op} of {op.proc} began twice")
                open_[key] = op
                self.last_op[op.proc] = max(self.last_op.get(op.proc, 0), op.op)
            elif key not in open_:
                raise Damaged(f"call {op.op} of {op.proc} ended without a beginning")
            else:
                self._call(open_.pop(key), op)
        for invoke in open_.values():
            self._call(invoke, None)

    def _call(self, invoke: Op, end: Op | None) -> None:
        story = self._story(invoke.id)
        if end is None or end.type == "info":
            self.unknown += 1
        if invoke.f in ("submit", "requeue"):
            self.submits += 1
            self._asked(story, invoke, end)
        elif end is not None and invoke.f == "cancel" and end.outcome == "cancelled":
            story.cancelled_ns = min(story.cancelled_ns or end.mono_ns, end.mono_ns)
        elif end is not None and end.reading is not None:
            self._read(story, end.reading, invoke.mono_ns, end.mono_ns)
        elif end is not None and end.code == "not_found":
            story.missing_ns = max(story.missing_ns, invoke.mono_ns)

    def _asked(self, story: TaskHistory, invoke: Op, end: Op | None) -> None:
        story.sent += 1
        story.origin = story.origin or invoke.origin
        if invoke.asked is not None and invoke.asked not in story.contents:
            story.contents.append(invoke.asked)
        if end is None:
            return
        if end.type == "fail":
            story.refused += 1
            story.conflict |= end.code == "id_conflict"
        elif end.type == "ok":
            story.created += end.outcome == "created" and end.ack in self._promised
            if invoke.asked is not None and invoke.asked not in story.told:
                story.told.append(invoke.asked)
            if not story.acked or end.mono_ns < story.acked_ns:
                story.ack, story.acked_ns = intern(end.ack or "stored"), end.mono_ns
                story.acked_by, story.acked_op = intern(invoke.proc), invoke.op

    @staticmethod
    def _read(story: TaskHistory, reading: Reading, from_ns: int, to_ns: int) -> None:
        if reading.state not in TERMINAL:
            story.alive_ns = max(story.alive_ns, from_ns)
            return
        story.read_ns = min(story.read_ns or to_ns, to_ns)
        if reading not in story.outcomes:
            story.outcomes.append(reading)

    # ── executables, and what is left ───────────────────────────────────────────────────────────────────────────────

    def _executions(self, executions: Iterable[Execution]) -> None:
        open_: dict[tuple[str, int, int], Ran] = {}
        for line in executions:
            key = line.id, line.attempt, line.pid
            if line.event == "start":
                ran = Ran(line.attempt, line.pid, intern(line.worker), line.mono_ns, line.args, line.stdin)
                self._story(line.id).runs.append(ran)
                open_[key] = ran
            elif key not in open_:
                raise Damaged(f"{line.id}: attempt {line.attempt} of pid {line.pid} ended without a beginning")
            else:
                ran = open_.pop(key)
                ran.end_ns, ran.exit, ran.out, ran.err = line.mono_ns, line.exit, line.out, line.err

    def _finals(self, finals: Iterable[Final]) -> None:
        for final in finals:
            story = self._story(final.id)
            if final.code:
                continue
            story.finals += 1
            story.gone = final.reading is None
            story.last = final.reading
            if final.reading is None:
                story.missing_ns = max(story.missing_ns, final.mono_ns)
                continue
            if final.reading in story.outcomes:  # the last one stands at the end
                story.outcomes.remove(final.reading)
                story.outcomes.append(final.reading)
            self._read(story, final.reading, final.mono_ns, final.mono_ns)
