"""The calls and replies of the ops. Pure: values in, values out.

`call_of` returns the function call of a request, `reply_to` the reply's fields for what that call returned. `ping`,
`submit`, `wait` and `stats` are not single calls: see `dispatcher`, `submit`, `waiters` and `stats_gatherer`; `wait`
ends with what `get` returns.
"""

from __future__ import annotations

from typing import Any

from kingtask import protocol
from kingtask.errors import (
    Busy,
    IdConflict,
    InvalidRequest,
    NotConfirmed,
    RequestRefused,
    StoreError,
    TaskNotFound,
    Unavailable,
    WrongState,
)
from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.states import TERMINAL, State
from kingtask.store import functions
from kingtask.store.stats import Filter

BUSY_AGAIN_S = 0.5
FULL_AGAIN_S = 5.0
AWAY_AGAIN_S = 0.5
OUTSTANDING_AGAIN_S = 1.0
HIDDEN = ("missing", "foreign")
"""Outcomes of a call by id that the client must not tell apart."""


class ForeignTask(TaskNotFound):
    """The task has another owner. Only the log shows the difference from TaskNotFound."""

    def __str__(self) -> str:
        return "foreign"


def call_of(request: protocol.Request, policy: Policy, quota: functions.Quota | None) -> functions.FunctionCall:
    """Return the call of an op that is a single one. `quota` bounds what it creates. Raises InvalidRequest."""
    match request:
        case protocol.Get():
            return functions.get(request.id)
        case protocol.Cancel():
            return functions.cancel(policy, request.id)
        case protocol.Requeue():
            return functions.requeue(policy, request.id, request.new_id, quota)
        case protocol.Forget():
            return functions.forget(request.id)
        case protocol.List():
            return _list_call(request)
        case protocol.Pause():
            return functions.pause(policy, request.queue, True, quota)
        case protocol.Resume():
            return functions.pause(policy, request.queue, False, quota)
        case _:
            raise TypeError(f"{request.op.name} is not a single call")


def reply_to(request: protocol.Request, value: Any, filtered: Filter = dict) -> dict[str, Any]:
    """Return the reply's fields; `value` is what the call returned. Raises RequestRefused, also for a StoreError."""
    if isinstance(value, StoreError):
        raise store_refusal(value, writes=request.op.writes)
    outcome = value[0] if isinstance(request, protocol.Requeue) else value
    if outcome in HIDDEN and isinstance(request, protocol.ById):
        raise _not_found(request.id, outcome)
    match request:
        case protocol.Get() | protocol.Wait():
            task = task_of(request.id, value)
            pending = {"pending": not task.ended} if isinstance(request, protocol.Wait) else {}
            return {"task": value.packed, **pending}
        case protocol.Cancel():
            return _cancelled(request.id, value)
        case protocol.Requeue():
            return _requeued(request, *value)
        case protocol.Forget():
            return _forgotten(request.id, value)
        case protocol.List():
            cursor = None if value.cursor is None else f"{value.cursor[0]}:{value.cursor[1]}"
            return filtered({"tasks": [protocol.result_fields(result) for result in value.tasks], "cursor": cursor})
        case protocol.Stats():
            reply: dict[str, Any] = value.reply(filtered)
            return reply
        case protocol.Pause() | protocol.Resume():
            if value != "ok" and (refused := submit_refusal(value, "")) is not None:
                raise refused
            return {"queue": request.queue, "paused": isinstance(request, protocol.Pause)}
        case _:
            raise TypeError(f"{request.op.name} is not a single call")


def submit_refusal(outcome: str, task_id: str) -> RequestRefused | None:
    """Return the error for a task's outcome, or None if the task is stored."""
    match outcome:
        case "ready" | "scheduled" | "exists":
            return None
        case "conflict":
            return IdConflict(f"id: {task_id} is taken by another task; choose a new id", field="id")
        case "queue_full":
            why = "queue: the queue of this task is full; come back later"
            return Busy(why, field="queue", retry_after_s=FULL_AGAIN_S)
        case "too_many_queues":
            why = "queue: there are too many queues; use an existing one, or raise max_queues"
            return Busy(why, field="queue", retry_after_s=FULL_AGAIN_S)
        case "too_many_names":
            why = "queue: this client may make no further one (max_queues of its permissions); use an existing one"
            return Busy(why, code="rate_limited", field="queue", retry_after_s=FULL_AGAIN_S)
        case "too_many_tasks":
            why = "there are as many tasks as this installation takes (max_tasks); come back later"
            return Busy(why, retry_after_s=FULL_AGAIN_S)
        case "quota_exceeded":
            why = (
                "as many tasks of this client are outstanding as it may have (max_outstanding of the broker's"
                " permissions); come back when some have ended"
            )
            return Busy(why, code="rate_limited", retry_after_s=OUTSTANDING_AGAIN_S)
        case "unconfirmed":
            return not_confirmed()
        case _:
            return RequestRefused(f"unexpected outcome {outcome!r}")


def unread() -> Busy:
    why = "too many replies to this client are unread; read them, then ask again"
    return Busy(why, retry_after_s=BUSY_AGAIN_S)


def not_confirmed() -> NotConfirmed:
    why = "written, but not confirmed at the level of `ack` in time; send the same id again"
    return NotConfirmed(why, retry_after_s=AWAY_AGAIN_S)


def store_refusal(error: StoreError, *, writes: bool) -> RequestRefused:
    """Return the reply's error for a failed call. A call that `writes` may have taken effect without a reply."""
    stored = error.stored if writes else "no"
    if error.kind == "permission":
        text = f"the broker's user in Redis lacks a right ({error}); `kingtask doctor` on its host says which"
        return RequestRefused(text, stored=stored)
    if error.kind in ("error", "damaged"):
        return RequestRefused(f"the store failed at this: {error}", stored=stored)
    if stored == "unknown":
        return NotConfirmed(f"{error}; send the same request again", retry_after_s=AWAY_AGAIN_S)
    if error.kind == "full":
        text = "Redis is full (maxmemory); tasks drain, come back later"
        return Unavailable(text, code="store_full", retry_after_s=FULL_AGAIN_S)
    return Unavailable(f"Redis cannot serve this now: {error}", retry_after_s=AWAY_AGAIN_S)


def task_of(task_id: str, found: functions.StoredTask | StoreError) -> Result:
    """Return what `get` found. Raises TaskNotFound, or the error of a call that failed."""
    if isinstance(found, StoreError):
        raise store_refusal(found, writes=False)
    if found.result is None:
        raise _not_found(task_id, "foreign" if found.foreign else "missing")
    return found.result


def _not_found(task_id: str, outcome: str) -> TaskNotFound:
    kind = ForeignTask if outcome == "foreign" else TaskNotFound
    return kind(f"id: there is no task {task_id}; it never existed, or its record has expired", field="id")


def _cancelled(task_id: str, state: str) -> dict[str, Any]:
    if state == State.RUNNING:
        return {"id": task_id, "outcome": "cancelling"}
    if state in TERMINAL and state != State.CANCELLED:
        raise WrongState(f"id: task {task_id} has ended already ({state})", field="id")
    return {"id": task_id, "outcome": "cancelled"}


def _forgotten(task_id: str, outcome: str) -> dict[str, Any]:
    if outcome != "forgotten":
        raise _not_ended(task_id, outcome)
    return {"id": task_id, "outcome": outcome}


def _not_ended(task_id: str, state: str) -> WrongState:
    return WrongState(f"id: task {task_id} has not ended yet ({state})", field="id")


def _requeued(request: protocol.Requeue, outcome: str, queue: str) -> dict[str, Any]:
    """`queue` is that of the new task; without a new task, `outcome` may be the state of the old one."""
    if outcome in (State.SCHEDULED, State.RUNNING) or (outcome == State.READY and not queue):
        raise _not_ended(request.id, outcome)
    if outcome == "dropped":
        why = "its args, stdin and env were dropped to make room (max_result_bytes, or max_kept_bytes of its owner)"
        raise WrongState(f"id: task {request.id} cannot be requeued: {why}; submit it again with a new id", field="id")
    if (refused := submit_refusal(outcome, request.new_id)) is not None:
        raise refused
    return {"id": request.new_id, "origin": request.id, "outcome": "exists" if outcome == "exists" else "created"}


def _list_call(request: protocol.List) -> functions.FunctionCall:
    timed = request.since is not None or request.until is not None
    if request.state is State.READY and request.queue is None:
        raise InvalidRequest("queue: required to list ready tasks (each queue has its own order)", field="queue")
    if timed and request.state in (State.READY, State.RUNNING):
        field = "since" if request.since is not None else "until"
        raise InvalidRequest(f"{field}: does not go with state {request.state}", field=field)
    lowest = "-inf" if request.since is None else f"{request.since * 1000:.0f}"
    highest = "+inf" if request.until is None else f"{request.until * 1000:.0f}"
    first, last = (highest, lowest) if request.state in TERMINAL else (lowest, highest)
    rest = "0"
    if request.cursor is not None:
        first, _, rest = request.cursor.partition(":")
    return functions.list_tasks(
        request.state, request.queue or "", first=first, last=last, rest=int(rest), limit=request.limit
    )
