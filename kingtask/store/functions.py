"""Every call of the function library as a value: what to send and how to read the answer. Pure.

The asyncio store sends them; tests send the same ones over a blocking client. Times are milliseconds of Redis's clock,
`now_us` is its microseconds at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.states import State
from kingtask.store import codec
from kingtask.store.codec import hash_of
from kingtask.store.stats import queues_of, stats_of
from kingtask.task import TaskSpec
from kingtask.wire import pack_raw

QueueGains = list[tuple[str, int]]


T = TypeVar("T")


class FunctionCall(NamedTuple):
    function: str
    arguments: dict[str, Any]
    decode: Callable[[Any], Any]

    def payload(self, db: int, cluster: str | None = None) -> bytes:
        """The one argument of the function; it carries the database number for the channels' names.

        With `cluster` the function does nothing, and says FOREIGN, where `meta` has another one.
        """
        guard = {} if cluster is None else {"cluster": cluster}
        return pack_raw({"db": db, **guard, **self.arguments})


class Fence(NamedTuple):
    """The fence of an attempt: the task, the attempt's number and the claim's token (16 bytes)."""

    id: str
    number: int
    token: bytes


REFUSED = frozenset({"queue_full", "too_many_queues", "too_many_tasks", "quota_exceeded"})
"""Outcomes of `submit` and `requeue` with which nothing was stored."""


class Submitted(NamedTuple):
    now_us: int
    outcomes: list[str]
    """One each: ready, scheduled, exists or conflict; or one of REFUSED."""
    ready: QueueGains
    due_ms: list[int]


class Lost(NamedTuple):
    """An attempt whose worker stopped renewing it."""

    id: str
    number: int
    queue: str
    worker: str


class Ticked(NamedTuple):
    now_us: int
    ready: QueueGains
    upcoming_ms: list[int]
    complete: bool
    more: bool
    lost: list[Lost]


class ServerTime(NamedTuple):
    now_us: int


class Claimed(NamedTuple):
    id: str
    number: int
    name: str
    spec: bytes
    queue: str
    due_ms: int
    fail_if_lost: bool
    claimed_ms: int


class Claims(NamedTuple):
    now_us: int
    tasks: list[Claimed]
    more: bool = False
    """The call ended at its bounds (200 tasks or 1 MiB), not because nothing was left: claim again at once."""


DAMAGED = "damaged"
"""Answer to an attempt that an index in Redis could not take: repeat it, after a repair of the index it succeeds."""


class Statuses(NamedTuple):
    now_us: int
    answers: list[str]


class Finished(NamedTuple):
    now_us: int
    answers: list[str]
    claims: Claims | None
    """Tasks that the same call claimed; None if it did not claim."""


class StoredTask(NamedTuple):
    now_us: int
    result: Result | None


class EndedTask(NamedTuple):
    """One attempt's end as the worker reports it. `verdict`: succeeded, failed, or final (failed, never retried)."""

    fence: Fence
    verdict: str
    reason: str
    record: bytes
    stdout: bytes
    stderr: bytes
    stdout_size: int
    stderr_size: int


CUT_BYTES = 4096
"""Outputs of `finish_cut`, which a full Redis still takes."""


class Quota(NamedTuple):
    """Whose task it is, and how many of that client's may be there that have not ended."""

    client: str
    most: int


class Prepared(msgspec.Struct, frozen=True):
    """A task as `submit` takes it, with the facts that a broker needs beside: so nobody unpacks the plan.

    A struct, since a NamedTuple takes five times as long to make.
    """

    id: str
    row: tuple[str, bytes, bytes] | tuple[str, bytes, bytes, Quota]
    """The arguments of `submit`: id, spec, plan, and the quota of a client that has one."""
    size: int
    """Bytes of spec and plan."""
    name: str
    queue: str
    immediate: bool
    """The task is ready as soon as it is stored."""


def prepare(task_id: str, spec: TaskSpec, quota: Quota | None = None) -> Prepared:
    packed, plan = codec.pack_spec(spec), codec.pack_plan(spec)
    row = (task_id, packed, plan) if quota is None else (task_id, packed, plan, quota)
    immediate = not (spec.start_at or spec.delay_s)
    return Prepared(task_id, row, len(packed) + len(plan), spec.name, spec.queue, immediate)


def submit(policy: Policy, tasks: Sequence[Prepared]) -> FunctionCall:
    return FunctionCall("submit", {**_room(policy), "tasks": [task.row for task in tasks]}, _submitted)


def requeue(policy: Policy, task_id: str, new_id: str, quota: Quota | None = None) -> FunctionCall:
    counted = {} if quota is None else {"quota": quota}
    arguments = {**_room(policy), "id": task_id, "new_id": new_id, **counted}
    return FunctionCall("requeue", arguments, lambda r: (r[0].decode(), r[1].decode()))


def tick(
    policy: Policy, broker: str, heartbeat: bytes, *, upcoming: int, window_ms: int, housekeep: bool
) -> FunctionCall:
    arguments = {
        **_keep(policy),
        "broker": broker,
        "heartbeat": heartbeat,
        "lease": policy.lease_ms,
        "max_lost": policy.max_lost,
        "max_result_bytes": policy.max_result_bytes,
        "upcoming": upcoming,
        "window": window_ms,
        "housekeep": int(housekeep),
    }
    return FunctionCall("tick", arguments, _ticked)


def claim(
    policy: Policy, worker: str, queues: Sequence[str], n: int, token: bytes, *, nth: int, again: bool = False
) -> FunctionCall:
    """`nth` counts the worker's claims; one that is sent again keeps its number and its token."""
    arguments = {
        **_keep(policy),
        "worker": worker,
        "queues": queues,
        "n": n,
        "token": token,
        "nth": nth,
        "lease": policy.lease_ms,
        "again": int(again),
    }
    return FunctionCall("claim", arguments, _claims)


def extend(
    policy: Policy,
    worker: str,
    held: Sequence[Fence],
    claims: Sequence[bytes] = (),
    heartbeat: bytes = b"",
    *,
    upto: int,
) -> FunctionCall:
    """`upto` is the number of the worker's latest claim: of later ones this call, should it come late, says nothing."""
    arguments = {
        **_keep(policy),
        "worker": worker,
        "lease": policy.lease_ms,
        "held": held,
        "claims": claims,
        "upto": upto,
        "heartbeat": heartbeat,
    }
    return FunctionCall("extend", arguments, _answers)


class ClaimRequest(NamedTuple):
    """A claim that travels with `finish`; fields as in `claim`."""

    queues: Sequence[str]
    n: int
    token: bytes
    nth: int


def finish(
    policy: Policy, worker: str, ended: Sequence[EndedTask], *, cut: bool = False, claim: ClaimRequest | None = None
) -> FunctionCall:
    rows = [(*e.fence, *e[1:]) for e in ended]
    next_ = {} if claim is None else {"lease": policy.lease_ms, "claim": claim._asdict()}
    arguments = {**_keep(policy), "worker": worker, "ended": rows, **next_}
    return FunctionCall("finish_cut" if cut else "finish", arguments, _finished)


def release(policy: Policy, worker: str, attempts: Sequence[tuple[Fence, bytes]]) -> FunctionCall:
    rows = [(*fence, packed) for fence, packed in attempts]
    return FunctionCall("release", {**_keep(policy), "worker": worker, "attempts": rows}, _answers)


def cancel(policy: Policy, task_id: str) -> FunctionCall:
    return FunctionCall("cancel", {**_keep(policy), "id": task_id}, _text)


def pause(policy: Policy, queue: str, paused: bool) -> FunctionCall:
    return FunctionCall("pause", {"queue": queue, "paused": int(paused), "max_queues": policy.max_queues}, _text)


def wait(task_id: str) -> FunctionCall:
    return FunctionCall("wait", {"id": task_id}, _text)


def get(task_id: str) -> FunctionCall:
    def decode(reply: Any) -> StoredTask:
        now_us, due_ms, fields = reply
        return StoredTask(now_us, codec.result_of(task_id, hash_of(fields), due_ms) if fields else None)

    return FunctionCall("get", {"id": task_id}, decode)


def clock() -> FunctionCall:
    """Read only the time: a better sample of Redis's clock than a write, whose reply may wait for the disk."""
    return FunctionCall("clock", {}, lambda reply: ServerTime(*reply))


def states(task_ids: Sequence[str]) -> FunctionCall:
    return FunctionCall("states", {"ids": task_ids}, lambda reply: [state.decode() for state in reply])


def list_tasks(state: State, queue: str, *, first: str, last: str, rest: int, limit: int) -> FunctionCall:
    """`first` and `last` are scores as text in reading order; `first` and `rest` (else 0) come from a page's cursor."""
    arguments = {"state": state, "queue": queue, "from": first, "to": last, "rest": rest, "limit": limit}
    return FunctionCall("list", arguments, codec.page_of)


def stats() -> FunctionCall:
    return FunctionCall("stats", {}, stats_of)


def queues(cursor: str) -> FunctionCall:
    """Some hundred of the queues; "0" begins."""
    return FunctionCall("queues", {"cursor": cursor}, queues_of)


def open_namespace(schema: int, cluster: str) -> FunctionCall:
    """Give a new namespace its identity."""
    return FunctionCall("open", {"schema": schema, "new_cluster": cluster}, lambda r: (r[0], r[1], r[2].decode()))


def mark() -> FunctionCall:
    """A write for its own sake: WAIT behind it covers every write before it, whatever connection that came by."""
    return FunctionCall("mark", {}, lambda reply: reply)


def _keep(policy: Policy) -> dict[str, Any]:
    return {"keep": policy.keep_ms, "failed_keep": policy.failed_keep_ms}


def _room(policy: Policy) -> dict[str, Any]:
    return {
        "max_queues": policy.max_queues,
        "max_queue_length": policy.max_queue_length,
        "max_tasks": policy.max_tasks,
    }


def _text(reply: Any) -> str:
    text: str = reply.decode()
    return text


def _pairs(flat: list[Any]) -> QueueGains:
    return [(flat[i].decode(), flat[i + 1]) for i in range(0, len(flat), 2)]


def _submitted(reply: Any) -> Submitted:
    now_us, outcomes, ready, due_ms = reply
    return Submitted(now_us, [outcome.decode() for outcome in outcomes], _pairs(ready), due_ms)


def _ticked(reply: Any) -> Ticked:
    now_us, ready, upcoming, complete, more, lost = reply
    rows = [Lost(row[0].decode(), row[1], row[2].decode(), row[3].decode()) for row in lost]
    return Ticked(now_us, _pairs(ready), upcoming, bool(complete), bool(more), rows)


def _claims(reply: Any) -> Claims:
    now_us, rows, more = reply
    return Claims(
        now_us,
        [
            Claimed(task_id.decode(), number, name.decode(), spec, queue.decode(), due_ms, bool(fail), claimed_ms)
            for task_id, number, name, spec, queue, due_ms, fail, claimed_ms in rows
        ],
        bool(more),
    )


def _finished(reply: Any) -> Finished:
    now_us, answers, *claimed = reply
    claims = _claims([now_us, *claimed]) if claimed else None
    return Finished(now_us, [answer.decode() for answer in answers], claims)


def _answers(reply: Any) -> Statuses:
    now_us, answers = reply
    return Statuses(now_us, [answer.decode() for answer in answers])
