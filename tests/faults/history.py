"""What a run under faults leaves behind: files in one directory, written by its processes, read by the checker.

    run.json        RunRecord    what was run, and how it ended
    client-*.jsonl  Op           one file per client process: each call's beginning, and its end if it had one
    faults.jsonl    Fault        when each fault began and stopped
    ledger          Execution    text, written by the executables: the truth about what was executed
    clock.jsonl     ClockSample  Redis TIME beside the monotonic clock
    pings.jsonl     Ping         a client that only pings
    samples.jsonl   Sample       memory and descriptors of brokers and workers
    exits.jsonl     Exit         brokers and workers that ended
    residue.jsonl   Residue      what was left over when all attempts had ended
    dump.jsonl      Key          every key of Redis after the drain
    final.jsonl     Final        every id asked for through the API after the drain, and once more after that

All times `*_ns` are CLOCK_MONOTONIC, which is one for all processes of a machine; `*_ms` are epoch milliseconds of
Redis's clock. A line is written with one write(2) to a file opened with O_APPEND. A process that was killed may leave
half a line at the end of its file, which is not read; one that is started again writes another file.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any, Literal, Self, TypeVar

import msgspec

from kingtask.clock import duration_ms, start_ms
from kingtask.errors import KingtaskError
from kingtask.result import Result
from kingtask.task import TaskSpec

LEDGER = "ledger"

Function = Literal["submit", "result", "cancel", "requeue"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One line of a file."""


def digest(content: bytes) -> str:
    """Identify bytes: CRC-32 in hex, `:`, their number. Easily computed in C, too."""
    return f"{zlib.crc32(content):08x}:{len(content)}"


def args_digest(args: Iterable[str | bytes]) -> str:
    """Identify arguments as an executable finds them: each followed by NUL, without argv[0]."""
    return digest(b"".join((arg.encode() if isinstance(arg, str) else arg) + b"\0" for arg in args))


# ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Asked(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a submit asked for; equal if and only if the requests were."""

    name: str
    args: str = args_digest(())
    stdin: str = digest(b"")
    queue: str = "default"
    start_ms: int = 0
    delay_ms: int = 0
    retry_ms: tuple[int, ...] = ()
    expires_ms: int = 0
    time_limit_ms: int = 0
    on_lost: str = "retry"
    stderr: str = ""

    @classmethod
    def of(cls, spec: TaskSpec) -> Self:
        return cls(
            name=spec.name,
            args=args_digest(spec.args),
            stdin=digest(spec.stdin),
            queue=spec.queue,
            start_ms=start_ms(spec.start_at),
            delay_ms=duration_ms(spec.delay_s),
            retry_ms=tuple(duration_ms(interval) for interval in spec.retry),
            expires_ms=start_ms(spec.expires_at or 0.0),
            time_limit_ms=duration_ms(spec.time_limit_s or 0.0),
            on_lost=spec.on_lost,
            stderr=spec.stderr or "",
        )


class Tried(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An ended attempt, as the task's record tells it."""

    number: int
    worker: str
    started_ms: int
    ended_ms: int
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None


class Reading(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A task's record as a client read it."""

    state: str
    created_ms: int
    due_ms: int
    args: str
    reason: str = ""
    attempt: int = 0
    worker: str = ""
    finished_ms: int = 0
    stdout: str = ""
    """Digest of what is kept."""
    stderr: str = ""
    stdout_size: int = 0
    """As the record says, of what was really written."""
    stderr_size: int = 0
    origin: str = ""
    attempts: tuple[Tried, ...] = ()

    @classmethod
    def of(cls, result: Result) -> Self:
        return cls(
            state=result.state.value,
            created_ms=_ms(result.created_at),
            due_ms=_ms(result.due_at),
            args=args_digest(result.args),
            reason=result.reason,
            attempt=result.attempt,
            worker=result.worker or "",
            finished_ms=_ms(result.finished_at or 0.0),
            stdout=digest(result.stdout),
            stderr=digest(result.stderr),
            stdout_size=result.stdout_size,
            stderr_size=result.stderr_size,
            origin=result.origin or "",
            attempts=tuple(
                Tried(
                    number=attempt.number,
                    worker=attempt.worker,
                    started_ms=_ms(attempt.started_at),
                    ended_ms=_ms(attempt.ended_at),
                    reason=attempt.reason,
                    exit_code=attempt.exit_code,
                    signal=attempt.signal,
                )
                for attempt in result.attempts
            ),
        )


class Op(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The beginning (`invoke`) or the end of one call of a client.

    `ok`: a good reply. `fail`: surely nothing was done (`stored` is `no`). `info`: it may have been. A call without an
    end was cut off with its client, and counts as `info`.
    """

    proc: str
    op: int
    """Pairs the end of a call with its beginning; counted by the client."""
    mono_ns: int
    type: Literal["invoke", "ok", "fail", "info"]
    f: Function
    id: str
    asked: Asked | None = None
    """With the invoke of a submit."""
    origin: str = ""
    """With the invoke of a requeue, whose `id` is that of the new task."""
    outcome: str = ""
    """With ok: created, exists, cancelled, cancelling."""
    ack: str = ""
    """With the ok of a submit: the level that the reply names."""
    reading: Reading | None = None
    """With the ok of a result."""
    code: str = ""
    """With fail and info: the wire code, or the exception's name where there was no reply."""
    stored: str = ""


class Journal:
    """A file of one process, line by line."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def write(self, record: Record) -> None:
        os.write(self._fd, msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class HistoryRecorder:
    """Writes the history of one client. Any number of calls may be under way."""

    def __init__(self, directory: Path, proc: str) -> None:
        self._proc = proc
        self._journal = Journal(directory / f"client-{proc}.jsonl")
        self._open: dict[int, tuple[Function, str]] = {}
        self._last = 0

    def invoke(self, f: Function, task_id: str, *, spec: TaskSpec | None = None, origin: str = "") -> int:
        """Note that a call begins, before anything is sent; returns its number."""
        self._last += 1
        self._open[self._last] = f, task_id
        self._write(self._last, "invoke", f, task_id, asked=None if spec is None else Asked.of(spec), origin=origin)
        return self._last

    def ok(self, op: int, *, outcome: str = "", ack: str = "", result: Result | None = None) -> None:
        reading = None if result is None else Reading.of(result)
        self._write(op, "ok", *self._open.pop(op), outcome=outcome, ack=ack, reading=reading)

    def error(self, op: int, error: KingtaskError) -> None:
        """What the client raised. What does not say that nothing was stored may have been."""
        stored = getattr(error, "stored", "unknown")
        code = getattr(error, "code", type(error).__name__)
        self._write(op, "fail" if stored == "no" else "info", *self._open.pop(op), code=code, stored=stored)

    def close(self) -> None:
        self._journal.close()

    def _write(self, op: int, kind: Any, f: Function, task_id: str, **more: Any) -> None:
        self._journal.write(Op(proc=self._proc, op=op, mono_ns=monotonic_ns(), type=kind, f=f, id=task_id, **more))


# ── executables ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Execution(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A line of the ledger: an attempt started, or was about to end by itself.

    Text, fields parted by a blank: `id attempt event mono_ns pid`, then any of `name=value` as below. An executable
    that is killed writes no `end`. What it prints should name the id, the attempt and the pid, so that the outputs of
    two attempts differ; with `out` in its `end`, the checker knows whose output was recorded.
    """

    id: str
    attempt: int
    event: Literal["start", "end"]
    mono_ns: int
    pid: int
    worker: str = ""
    """KINGTASK_WORKER. Attempt and worker stand for the fence, whose token an executable does not see."""
    args: str = ""
    """With start: args_digest of what it found."""
    stdin: str = ""
    """With start: digest of what it read."""
    exit: int = 0
    """With end: the status with which it is about to exit."""
    out: str = ""
    """With end: digest of what it wrote to stdout."""
    err: str = ""


def ledger_line(execution: Execution) -> str:
    fields = msgspec.structs.asdict(execution)
    first = [str(fields.pop(name)) for name in ("id", "attempt", "event", "mono_ns", "pid")]
    return " ".join(first + [f"{name}={value}" for name, value in fields.items() if value not in ("", 0)]) + "\n"


def read_ledger(path: Path) -> Iterator[Execution]:
    """Raises ValueError on a line that no executable writes; half a line at the end is left out."""
    for line in _lines(path):
        fields = line.decode().split(" ")
        named = dict(field.split("=", 1) for field in fields[5:])
        first = dict(zip(("id", "attempt", "event", "mono_ns", "pid"), fields, strict=False))
        yield msgspec.convert({**first, **named}, Execution, strict=False)


# ── the rig ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was run, and how it ended."""

    case: str
    seed: int = 0
    namespace: str = "kingtask"
    lease_ms: int = 15_000
    max_lost: int = 3
    planned_faults: int = 0
    """How many `start` events of faults.jsonl there should be."""
    healed_ns: int = 0
    """When the last fault had been taken back and every process was there; 0: never."""
    drained_ns: int = 0
    """When nothing was scheduled, ready or running any more; 0: that was not reached in time."""
    notes: dict[str, str] = {}
    """For people: versions, sizes."""


class Fault(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A fault begins or has been taken back. One that takes no time (kill -9) stops when what it hit is back."""

    fault: str
    """Its kind and what it hits: `kill broker 1`."""
    event: Literal["start", "stop"]
    mono_ns: int
    n: int = 0
    """Pairs a stop with its start; counted by the rig, so that faults may overlap."""


class ClockSample(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Redis TIME, asked for between two looks at the monotonic clock; take the quickest of a few, once a second."""

    mono_ns: int
    """The middle of the two."""
    redis_us: int
    width_ns: int
    """Between the two: the error is at most half of it."""


class Ping(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    mono_ns: int
    """When it was sent."""
    broker: str
    took_ns: int | None = None
    """None: no answer at all (the client gave up)."""
    expected: bool = True
    """False: the broker is down, stopped or cut off from this client by the fault itself."""


class Sample(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    mono_ns: int
    proc: str
    """`broker 1`: the same name after a restart, another pid."""
    pid: int
    rss_bytes: int
    fds: int


class Exit(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    mono_ns: int
    proc: str
    status: int
    """As subprocess tells it: negative for a signal."""
    wanted: bool = False
    """The rig ended it, or gave it a configuration that it must refuse."""
    said: str = ""
    """The end of its log, if it was not wanted."""


class Residue(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Something that should be gone: a child process, zombie, control group, temporary directory."""

    mono_ns: int
    kind: Literal["process", "zombie", "cgroup", "directory", "descriptor"]
    what: str


class Key(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A key of Redis."""

    key: str
    """Without the namespace's prefix; whole if it lacks that."""
    type: str
    ttl_ms: int
    """As PTTL tells it: -1 for none."""
    size: int = 0
    """Elements."""
    members: dict[str, str] | None = None
    """Of each sorted set member to score, of `held:*`, `counts:*` and `meta` field to value. Not of hashes of tasks."""


class Final(Record, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What the API tells of an id."""

    mono_ns: int
    id: str
    reading: Reading | None = None
    """None: there is no such task."""
    code: str = ""
    """An error other than not_found: nothing is known."""


# ── reading and writing files ───────────────────────────────────────────────────────────────────────────────────────

R = TypeVar("R", bound=Record)


def read(path: Path, kind: type[R]) -> Iterator[R]:
    """The records of a file, none if it is missing. Raises msgspec.DecodeError on a line that is none."""
    decoder = msgspec.json.Decoder(kind)
    for line in _lines(path):
        yield decoder.decode(line)


def write(path: Path, records: Iterable[Record]) -> None:
    """Append, many at once: for what one process writes when all is over."""
    with path.open("ab") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def read_run(directory: Path) -> RunRecord:
    return msgspec.json.decode((directory / "run.json").read_bytes(), type=RunRecord)


def write_run(directory: Path, run: RunRecord) -> None:
    (directory / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
