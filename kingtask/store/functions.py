"""Every call of the function library as a value: what to send and how to read the answer. Pure.

The asyncio store sends them; tests send the same ones over a blocking client. Times are milliseconds of Redis's clock,
`now_us` is its microseconds at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from kingtask import protocol
from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.states import State
from kingtask.store import codec
from kingtask.store.codec import hash_of
from kingtask.store.stats import StoreStats, queues_of, stats_of
from kingtask.task import TaskSpec
from kingtask.wire import pack, pack_raw

QueueGains = list[tuple[str, int]]


class FunctionCall(NamedTuple):
    function: str
    arguments: dict[str, Any]
    decode: Callable[[Any], Any]

    def payload(self, db: int, cluster: str | None = None) -> bytes:
        """Pack the only argument of the function, with the database number for the names of channels.

        With `cluster` the function does nothing and answers FOREIGN if `meta` has another one.
        """
        return pack_raw({"db": db, "cluster": cluster, **self.arguments})

    def of(self, owner: str | None) -> FunctionCall:
        """Return the call for a client that may act only on the tasks of this owner; None: on all."""
        return self if owner is None else self._replace(arguments={**self.arguments, "of": owner})


class Fence(NamedTuple):
    """The task, the number of the attempt, and the token of its claim (16 bytes)."""

    id: str
    number: int
    token: bytes


REFUSED = frozenset({"queue_full", "too_many_queues", "too_many_names", "too_many_tasks", "quota_exceeded"})
"""Outcomes of `submit` and `requeue` with which nothing was stored."""

BULK = frozenset({"get", "list", "stats"})
"""Functions that only read, with replies that may be large. The broker has a connection for them."""


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
"""Answer to an attempt whose index in Redis is damaged: repeat the call, which succeeds after a repair."""


class Statuses(NamedTuple):
    now_us: int
    answers: list[str]


class Finished(NamedTuple):
    now_us: int
    answers: list[str]
    claims: Claims | None
    """Tasks that the same call claimed; None if it did not claim."""


class StoredTask(NamedTuple):
    """The reply to `get`; `foreign`: the task has another owner than the one asked for."""

    now_us: int
    result: Result | None
    packed: msgspec.Raw = msgspec.Raw()
    """The result as in a reply to a client; packed once for all that get it."""
    spec: bytes = codec.NO_SPEC
    foreign: bool = False


class EndedTask(NamedTuple):
    """The end of an attempt. `verdict`: succeeded, failed, or final (failed, never retried)."""

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
    """The bounds of a client that the store keeps. Those of one owner count together."""

    owner: str
    most: int = 0
    """Tasks that have not ended; 0: any number."""
    bounded: bool = False
    """The bytes that ended tasks keep are bounded, by `Policy.kept_bounds`."""
    keep_ms: int = 0
    """The longest time for which a record is kept; 0: any time."""
    queues: int | None = None
    """Names of queues that they made; None: any number."""


class Prepared(msgspec.Struct, frozen=True):
    """A task for `submit`, with the facts that a broker needs, so that it need not unpack the plan.

    A struct, since a NamedTuple takes five times as long to make.
    """

    id: str
    row: tuple[str, bytes, bytes, Quota | None, str | None]
    """The arguments of `submit`: id, spec, plan, quota and owner."""
    size: int
    """Bytes of spec and plan."""
    name: str
    queue: str
    immediate: bool
    """The task is ready as soon as it is stored."""


def prepare(task_id: str, spec: TaskSpec, quota: Quota | None = None, owner: str | None = None) -> Prepared:
    """Prepare a task of `owner`; None: an anonymous client's."""
    packed, plan = codec.pack_spec(spec), codec.pack_plan(spec)
    immediate = not (spec.start_at or spec.delay_s)
    row = (task_id, packed, plan, quota, owner)
    return Prepared(task_id, row, len(packed) + len(plan), spec.name, spec.queue, immediate)


def submit(policy: Policy, tasks: Sequence[Prepared]) -> FunctionCall:
    return FunctionCall("submit", {**_room(policy), "tasks": [task.row for task in tasks]}, _submitted)


def requeue(policy: Policy, task_id: str, new_id: str, quota: Quota | None = None) -> FunctionCall:
    arguments = {**_room(policy), "id": task_id, "new_id": new_id, "quota": quota}
    return FunctionCall("requeue", arguments, lambda r: (r[0].decode(), r[1].decode()))


def tick(
    policy: Policy, broker: str, heartbeat: bytes, *, upcoming: int, window_ms: int, housekeep: bool, bound: bool = True
) -> FunctionCall:
    """Do all that time causes; with `bound` also keep the bounds of owners, which may be many."""
    arguments = {
        **_times(policy),
        "broker": broker,
        "heartbeat": heartbeat,
        "max_lost": policy.max_lost,
        "max_result_bytes": policy.max_result_bytes,
        "bounds": policy.kept_bounds if bound else {},
        "upcoming": upcoming,
        "window": window_ms,
        "housekeep": int(housekeep),
    }
    return FunctionCall("tick", arguments, _ticked)


class ClaimRequest(NamedTuple):
    """`nth` counts the claims of the worker; a claim that is sent again keeps number and token."""

    queues: Sequence[str]
    n: int
    token: bytes
    nth: int
    hints: str = ""
    """The tokens of hints, which the function publishes."""


def claim(policy: Policy, worker: str, request: ClaimRequest, *, again: bool = False) -> FunctionCall:
    arguments = {**_times(policy), "worker": worker, **request._asdict(), "again": int(again)}
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
    """Renew; `upto` is the number of the latest claim, since a late call must not release what later claims got."""
    arguments = {"worker": worker, "held": held, "claims": claims, "heartbeat": heartbeat, "upto": upto}
    return FunctionCall("extend", {**_times(policy), **arguments}, _answers)


def finish(
    policy: Policy, worker: str, ended: Sequence[EndedTask], *, cut: bool = False, claim: ClaimRequest | None = None
) -> FunctionCall:
    rows = [(*e.fence, *e[1:]) for e in ended]
    arguments = {**_times(policy), "worker": worker, "ended": rows, "claim": claim and claim._asdict()}
    return FunctionCall("finish_cut" if cut else "finish", arguments, _finished)


def release(policy: Policy, worker: str, attempts: Sequence[tuple[Fence, bytes]]) -> FunctionCall:
    rows = [(*fence, packed) for fence, packed in attempts]
    return FunctionCall("release", {**_times(policy), "worker": worker, "attempts": rows}, _answers)


def cancel(policy: Policy, task_id: str) -> FunctionCall:
    return FunctionCall("cancel", {**_times(policy), "id": task_id}, _text)


def forget(task_id: str) -> FunctionCall:
    return FunctionCall("forget", {"id": task_id}, _text)


def pause(policy: Policy, queue: str, paused: bool, quota: Quota | None = None) -> FunctionCall:
    arguments = {"queue": queue, "paused": int(paused), "max_queues": policy.max_queues, "quota": quota}
    return FunctionCall("pause", arguments, _text)


def wait(task_id: str) -> FunctionCall:
    return FunctionCall("wait", {"id": task_id}, _text)


def get(task_id: str) -> FunctionCall:
    def decode(reply: Any) -> StoredTask:
        now_us, due_ms, flat = reply
        fields = hash_of(flat)
        result = codec.result_of(task_id, fields, due_ms) if fields else None
        packed = msgspec.Raw(b"" if result is None else pack(protocol.result_fields(result)))
        return StoredTask(now_us, result, packed, codec.spec_in(fields), foreign=due_ms < 0)

    return FunctionCall("get", {"id": task_id}, decode)


def clock() -> FunctionCall:
    """Read the time only: a better sample of Redis's clock than a write, whose reply may wait for the disk."""
    return FunctionCall("clock", {}, lambda reply: ServerTime(*reply))


def states(task_ids: Sequence[str]) -> FunctionCall:
    return FunctionCall("states", {"ids": task_ids}, _texts)


def list_tasks(state: State, queue: str, *, first: str, last: str, rest: int, limit: int) -> FunctionCall:
    """Read a page. `first` and `last` are scores as text; `first` and `rest` (0 at first) come from a page's cursor."""
    arguments = {"state": state, "queue": queue, "from": first, "to": last, "rest": rest, "limit": limit}
    return FunctionCall("list", arguments, codec.page_of)


QUEUES_AT_ONCE = 25
"""In one call of `stats`: with tasks of ten priorities in each, some 2 ms of Redis."""


def gather_stats() -> Generator[FunctionCall, Any, StoreStats]:
    """Yield the calls that read all numbers, one after the other, each short. Send the value of each."""
    found: StoreStats
    paused, found = yield FunctionCall("stats", {}, stats_of)
    for i in range(0, len(paused), QUEUES_AT_ONCE):
        queues = dict(paused[i : i + QUEUES_AT_ONCE])
        found.queues.extend((yield FunctionCall("stats", {"queues": list(queues)}, partial(queues_of, queues))))
    return found


def open_namespace(schema: int, cluster: str) -> FunctionCall:
    """Give a new namespace its identity."""
    return FunctionCall("open", {"schema": schema, "new_cluster": cluster}, lambda r: (r[0], r[1], r[2].decode()))


def mark() -> FunctionCall:
    """Write something: a WAIT after it covers every earlier write, over whatever connection."""
    return FunctionCall("mark", {}, lambda reply: reply)


def _times(policy: Policy) -> dict[str, Any]:
    return {"keep": policy.keep_ms, "failed_keep": policy.failed_keep_ms, "lease": policy.lease_ms}


def _room(policy: Policy) -> dict[str, Any]:
    return {
        "max_queues": policy.max_queues,
        "max_queue_length": policy.max_queue_length,
        "max_tasks": policy.max_tasks,
    }


def _text(reply: Any) -> str:
    text: str = reply.decode()
    return text


def _texts(reply: Any) -> list[str]:
    return [text.decode() for text in reply]


def _pairs(flat: list[Any]) -> QueueGains:
    return [(flat[i].decode(), flat[i + 1]) for i in range(0, len(flat), 2)]


def _submitted(reply: Any) -> Submitted:
    now_us, outcomes, ready, due_ms = reply
    return Submitted(now_us, _texts(outcomes), _pairs(ready), due_ms)


def _ticked(reply: Any) -> Ticked:
    now_us, ready, upcoming, complete, more, lost = reply
    rows = [Lost(row[0].decode(), row[1], row[2].decode(), row[3].decode()) for row in lost]
    return Ticked(now_us, _pairs(ready), upcoming, bool(complete), bool(more), rows)


def _claims(reply: Any) -> Claims:
    now_us, rows, more = reply
    tasks = [
        Claimed(task_id.decode(), number, name.decode(), spec, queue.decode(), due_ms, bool(fail), claimed_ms)
        for task_id, number, name, spec, queue, due_ms, fail, claimed_ms in rows
    ]
    return Claims(now_us, tasks, bool(more))


def _finished(reply: Any) -> Finished:
    now_us, answers, *claimed = reply
    return Finished(now_us, _texts(answers), _claims([now_us, *claimed]) if claimed else None)


def _answers(reply: Any) -> Statuses:
    now_us, answers = reply
    return Statuses(now_us, _texts(answers))
