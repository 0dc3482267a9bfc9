"""How a task lies in Redis, and back: plan, spec and attempt records to values (fields: see lua/00_model.lua). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from kingtask.clock import duration_ms, start_ms
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.store import keys
from kingtask.task import TaskSpec
from kingtask.wire import pack, pack_raw, unpack_raw

STDERR_TAIL_BYTES = 1024
MESSAGE_BYTES = 512


class Execution(NamedTuple):
    """The part of a spec that a worker needs."""

    args: tuple[str, ...]
    stdin: bytes
    env: dict[str, str]
    time_limit_ms: int
    """0: the worker's default."""
    stderr: str
    """fail, keep, or '' for the worker's default."""
    tags: tuple[str, ...]


class Plan(NamedTuple):
    """The part of a task that the functions read, in this order; 0 stands for an absent field."""

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
    """Pack the part that only the worker reads, without trailing defaults, so that equal requests give equal bytes."""
    limit_ms = duration_ms(spec.time_limit_s) if spec.time_limit_s else 0
    env = dict(sorted(spec.env.items())) if spec.env else {}  # a map has no order
    fields = [spec.args, spec.stdin, env, limit_ms, spec.stderr or "", spec.tags]
    while fields and not fields[-1]:
        del fields[-1]
    return pack(fields)


NO_SPEC = pack([])


def spec_in(fields: dict[str, bytes]) -> bytes:
    """Return the packed spec; an empty one if it was dropped, or a page does not have it."""
    return NO_SPEC if fields.get(keys.GIVEN) == b"0" else fields.get(keys.SPEC, NO_SPEC)


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
    code = -1 if exit_code is None else exit_code
    killed_by = -1 if signal is None else signal
    text = message.encode("utf-8", "backslashreplace")[-MESSAGE_BYTES:]  # a path may hold surrogates
    tail = stderr[-STDERR_TAIL_BYTES:]
    return pack_raw((number, worker, started_ms, ended_ms, reason, code, killed_by, text, tail))


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
    plan = unpack_plan(fields[keys.PLAN])
    spec = unpack_spec(spec_in(fields))
    state = State(fields[keys.STATE].decode())
    created_ms = int(fields[keys.CREATED])
    attempts = sorted(
        (unpack_attempt(packed) for name, packed in fields.items() if name.startswith("attempt:")),
        key=lambda attempt: attempt.number,
    )
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
        worker=_text(fields.get("worker")) if state is State.RUNNING else None,
        attempt=int(fields.get("attempt", 0)),
        started_at=int(fields["claimed"]) / 1000 if "claimed" in fields else None,
        finished_at=int(fields["finished"]) / 1000 if "finished" in fields else None,
        stdout=fields.get("out", b""),
        stderr=fields.get("err", b""),
        stdout_size=int(fields.get("out_size", 0)),
        stderr_size=int(fields.get("err_size", 0)),
        dropped="dropped" in fields,
        request_dropped=fields.get(keys.GIVEN) == b"0",
        attempts=tuple(attempts),
    )


class Page(NamedTuple):
    tasks: list[Result]
    """Without arguments, outputs and attempts."""
    cursor: tuple[str, int] | None
    """Where the next page begins: `first` and `rest` of functions.list_tasks; None at the end."""


def page_of(reply: Any) -> Page:
    score, rest, done, rows = reply
    tasks = [result_of(task_id.decode(), hash_of(fields), due_ms) for task_id, due_ms, fields in rows]
    return Page(tasks, None if done else (score.decode(), rest))


def hash_of(flat: list[Any]) -> dict[str, bytes]:
    """Return a flat reply (field, value, …) as a dict."""
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
