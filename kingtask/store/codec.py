"""How a task lies in Redis, and back: plan, spec and attempt records to values (fields: see kingtask.lua). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from kingtask.clock import duration_ms, start_ms
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.task import TaskSpec
from kingtask.wire import pack, pack_raw, unpack_raw

STDERR_TAIL_BYTES = 1024
MESSAGE_BYTES = 512


class Execution(NamedTuple):
    """What the worker needs of a spec."""

    args: tuple[str, ...]
    stdin: bytes
    env: dict[str, str]
    time_limit_ms: int
    """0: the worker's default."""
    stderr: str
    """fail, keep, or '' for the worker's default."""
    tags: tuple[str, ...]


class Plan(NamedTuple):
    """What the functions read of a task, in this order; 0 stands for what the request did not say."""

    name: str
    start_ms: int = 0
    retry_ms: Sequence[int] = ()
    queue: str = ""
    """Empty: default."""
    priority: int = 5
    delay_ms: int = 0
    keep_ms: int = 0
    expires_ms: int = 0
    fail_if_lost: int = 0


_DEFAULTS = Plan("")


def pack_plan(spec: TaskSpec) -> bytes:
    """Without what is default at the end: most plans are a name and a retry list, or not even that."""
    times = (spec.start_at, spec.delay_s, spec.keep_result_s or 0.0, spec.expires_at or 0.0)
    rest = (spec.name, spec.queue, spec.priority, spec.retry, spec.on_lost)
    # Tasks to be started now come with few different plans; each instant makes a plan of its own.
    return _plan(times, rest) if times[0] or times[3] else _usual_plan(times, rest)


def _plan(times: tuple[float, float, float, float], rest: tuple[str, str, int, tuple[float, ...], str]) -> bytes:
    start_s, delay_s, keep_s, expires_s = times
    name, queue, priority, retry, on_lost = rest
    plan = Plan(
        name,
        start_ms(start_s),
        tuple(duration_ms(interval) for interval in retry),
        "" if queue == "default" else queue,
        priority,
        duration_ms(delay_s),
        duration_ms(keep_s),
        start_ms(expires_s),
        1 if on_lost == "fail" else 0,
    )
    length = len(plan)
    while plan[length - 1] == _DEFAULTS[length - 1]:
        length -= 1
    return pack_raw(plan[:length])


def unpack_plan(packed: bytes) -> Plan:
    plan = Plan(*unpack_raw(packed))
    return plan._replace(name=plan.name.decode(), queue=plan.queue.decode() if plan.queue else "")  # type: ignore[attr-defined]


_usual_plan = lru_cache(maxsize=256)(_plan)


def pack_spec(spec: TaskSpec) -> bytes:
    """What only the worker reads; defaults at the end are left out, so that equal requests are equal bytes."""
    limit_ms = duration_ms(spec.time_limit_s) if spec.time_limit_s else 0
    env = dict(sorted(spec.env.items())) if spec.env else {}  # a map has no order
    fields = [spec.args, spec.stdin, env, limit_ms, spec.stderr or "", spec.tags]
    while fields and not fields[-1]:
        del fields[-1]
    return pack(fields)


def unpack_spec(packed: bytes) -> Execution:
    fields = unpack_raw(packed)
    args, stdin, env, limit_ms, stderr, tags = fields + [[], b"", {}, 0, b"", []][len(fields) :]
    return Execution(
        tuple(arg.decode() for arg in args),
        stdin,
        {name.decode(): value.decode() for name, value in env.items()},
        limit_ms,
        stderr.decode() if stderr else "",
        tuple(tag.decode() for tag in tags),
    )


def pack_attempt(
    number: int,
    worker: str,
    started_ms: int,
    ended_ms: int,
    reason: str,
    exit_code: int | None = None,
    signal: int | None = None,
    message: str = "",
    stderr: bytes = b"",
) -> bytes:
    """The record of an ended attempt, bounded: the tail of stderr and of the message."""
    return pack_raw(
        (
            number,
            worker,
            started_ms,
            ended_ms,
            reason,
            -1 if exit_code is None else exit_code,
            -1 if signal is None else signal,
            message.encode("utf-8", "backslashreplace")[-MESSAGE_BYTES:],  # a path may hold surrogates
            stderr[-STDERR_TAIL_BYTES:],
        )
    )


def unpack_attempt(packed: bytes) -> Attempt:
    number, worker, started_ms, ended_ms, reason, exit_code, signal, message, stderr = unpack_raw(packed)
    return Attempt(
        number=number,
        worker=worker.decode(),
        started_at=started_ms / 1000,
        ended_at=ended_ms / 1000,
        reason=reason.decode(),
        exit_code=None if exit_code < 0 else exit_code,
        signal=None if signal < 0 else signal,
        message=message.decode("utf-8", "replace"),
        stderr_tail=stderr,
    )


def result_of(task_id: str, fields: dict[str, bytes], due_ms: int) -> Result:
    """A task's hash as a Result; `due_ms` is its score in the schedule, 0 if it is not there."""
    plan = unpack_plan(fields["p"])
    spec = unpack_spec(fields["s"])
    state = State(fields["t"].decode())
    created_ms = int(fields["c"])
    attempts = sorted(
        (unpack_attempt(packed) for name, packed in fields.items() if name.startswith("attempt:")),
        key=lambda attempt: attempt.number,
    )
    running = state is State.RUNNING
    return Result(
        id=task_id,
        name=plan.name,
        queue=plan.queue or "default",
        priority=plan.priority,
        state=state,
        created_at=created_ms / 1000,
        due_at=(due_ms or int(fields.get("due", plan.start_ms or created_ms))) / 1000,
        args=spec.args,
        tags=spec.tags,
        origin=_text(fields.get("origin")),
        reason=_text(fields.get("reason")) or "",
        cancelling="cancel" in fields,
        worker=_text(fields.get("worker")) if running else None,
        attempt=int(fields.get("attempt", 0)),
        started_at=int(fields["claimed"]) / 1000 if "claimed" in fields else None,
        finished_at=int(fields["finished"]) / 1000 if "finished" in fields else None,
        stdout=fields.get("out", b""),
        stderr=fields.get("err", b""),
        stdout_size=int(fields.get("out_size", 0)),
        stderr_size=int(fields.get("err_size", 0)),
        dropped="dropped" in fields,
        attempts=tuple(attempts),
    )


class Page(NamedTuple):
    tasks: list[Result]
    """Without arguments, outputs and attempts."""
    cursor: tuple[str, int] | None
    """Where the next page begins: `first` and `rest` of calls.list_tasks; None at the end."""


def page_of(reply: Any) -> Page:
    score, rest, done, rows = reply
    return Page([_row(row) for row in rows], None if done else (score.decode(), rest))


def _row(row: list[Any]) -> Result:
    task_id, score, packed, created, due, attempt, worker, reason, origin, state = row
    plan = unpack_plan(packed)
    kind = State(state.decode())
    at_ms = int(float(score))
    created_ms = int(created)
    return Result(
        id=task_id.decode(),
        name=plan.name,
        queue=plan.queue or "default",
        priority=plan.priority,
        state=kind,
        created_at=created_ms / 1000,
        due_at=(at_ms if kind is State.SCHEDULED else int(due or plan.start_ms or created_ms)) / 1000,
        attempt=int(attempt or 0),
        worker=worker.decode() or None if kind is State.RUNNING else None,
        reason=reason.decode(),
        origin=origin.decode() or None,
        finished_at=at_ms / 1000 if kind not in (State.SCHEDULED, State.READY, State.RUNNING) else None,
    )


NO_TOTAL = frozenset({"touched", "scheduled", "running"})
"""Of a queue's numbers, those that are no counts of what has happened."""


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """`totals` since the queue was first used; `rates` per second over the last one to two minutes."""

    name: str
    paused: bool
    scheduled: int
    ready: int
    running: int
    oldest_waiting_s: float
    totals: dict[str, int]
    rates: dict[str, float]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker or broker and what its heartbeat says; `seen_s` ago."""

    name: str
    seen_s: float
    facts: dict[str, Any]


class StoreStats(NamedTuple):
    queues: list[QueueStats]
    workers: list[Peer]
    brokers: list[Peer]


def stats_of(reply: Any) -> StoreStats:
    now_us, rows, workers, brokers = reply
    queues = [_queue_of(row, now_us / 1_000_000) for row in rows]
    return StoreStats(sorted(queues, key=lambda queue: queue.name), _peers(workers, now_us), _peers(brokers, now_us))


def _queue_of(row: list[Any], now_s: float) -> QueueStats:
    name, paused, ready, oldest_ms, numbers = row
    counts = _counts(numbers)
    rates = _rates(counts, _hash(numbers), now_s)
    return QueueStats(
        name=name.decode(),
        paused=bool(paused),
        scheduled=counts.pop("scheduled", 0),
        ready=ready,
        running=counts.pop("running", 0),
        oldest_waiting_s=max(0.0, now_s - oldest_ms / 1000) if oldest_ms else 0.0,
        totals={key: n for key, n in counts.items() if key != "touched"},
        rates=rates,
    )


def _rates(counts: dict[str, int], fields: dict[str, bytes], now_s: float) -> dict[str, float]:
    """What happened a second, in this minute and the one before it: the totals less what they were when that began."""
    ago = int(now_s // 60) - counts.get("touched", 0) // 60_000
    then = "before" if ago == 0 else "began" if ago == 1 else None
    if then is None:
        return {}
    totals = unpack_raw(fields[then]) if then in fields else {}
    were = {key.decode(): n for key, n in totals.items()} if totals else {}  # Lua packs an empty map as an array
    span_s = 60 + now_s % 60
    happened = {key: n - were.get(key, 0) for key, n in counts.items() if key not in NO_TOTAL}
    return {key: round(n / span_s, 3) for key, n in sorted(happened.items()) if n}


class QueueFigures(NamedTuple):
    """A queue as whoever looks often sees it: without rates."""

    name: str
    paused: bool
    ready: int
    oldest_ready_s: float
    counts: dict[str, int]
    """`scheduled` and `running` now, all others since the queue was first used."""


class QueuesPage(NamedTuple):
    now_us: int
    cursor: str
    """Where the next page begins; "0": there is none."""
    queues: list[QueueFigures]
    names: int
    """Of queues, on all pages."""
    live: int
    """Tasks that have not ended."""
    kept_bytes: int
    """Of outputs."""
    workers: int
    brokers: int


def queues_of(reply: Any) -> QueuesPage:
    now_us, cursor, rows, *totals = reply
    return QueuesPage(now_us, cursor.decode(), [_figures_of(row, now_us / 1_000_000) for row in rows], *totals)


def _figures_of(row: list[Any], now_s: float) -> QueueFigures:
    name, paused, ready, oldest_ms, counts = row
    waited_s = max(0.0, now_s - oldest_ms / 1000) if oldest_ms else 0.0
    numbers = _counts(counts)
    numbers.pop("touched", None)
    return QueueFigures(name.decode(), bool(paused), ready, waited_s, numbers)


def _counts(flat: list[Any]) -> dict[str, int]:
    """The numbers of a queue, without what they were before (`began`, `before`)."""
    return {key: int(value) for key, value in _hash(flat).items() if key not in ("began", "before")}


def _hash(flat: list[Any]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _peers(flat: list[Any], now_us: int) -> list[Peer]:
    peers = []
    for i in range(0, len(flat), 2):
        seen_ms, facts = int(flat[i + 1][:13]), msgspec.json.decode(flat[i + 1][13:] or b"{}")
        peers.append(Peer(name=flat[i].decode(), seen_s=max(0.0, now_us / 1e6 - seen_ms / 1e3), facts=facts))
    return sorted(peers, key=lambda peer: peer.name)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
