"""What each request means: values in, values out, no socket and no Redis.

An op that is one call is an `Op`: how the request becomes the call, and how the call's answer becomes the reply's
fields (or a RequestRefused). `ping`, `submit` and `wait` need more than one call and live in `server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from kingtask import policy, protocol
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
from kingtask.result import Result
from kingtask.states import TERMINAL, State
from kingtask.store import functions
from kingtask.store.codec import Page
from kingtask.store.stats import StoreStats
from kingtask.task import TaskSpec

BUSY_AGAIN_S = 0.5
FULL_AGAIN_S = 5.0
AWAY_AGAIN_S = 0.5
OUTSTANDING_AGAIN_S = 1.0
WORKER_ALIVE_S = 20.0
"""A worker heartbeats every 5 s; after this silence a queue no longer counts as served by it."""


class Op(NamedTuple):
    call: Callable[[Any, policy.Policy, functions.Quota | None], functions.FunctionCall]
    answer: Callable[[Any, Any], dict[str, Any]]
    writes: bool = True
    confirmed: bool = False
    """An OK means what that of `submit` means: it waits for the same barrier."""


Check = Callable[[TaskSpec, str], functions.Quota | None]
"""Whether the client may submit this task, which stands at that place of its request; raises if it may not.

Returns what the store has to hold the client to, if there is anything."""


def prepare(
    value: Any, now_s: float, place: str, new_id: Callable[[], str], check: Check | None = None
) -> functions.Prepared:
    """One task's map, checked, as the store takes it. Raises InvalidRequest naming the place, and what `check` does."""
    spec: TaskSpec = protocol.parse_task(value, now_s, place)
    quota = None if check is None else check(spec, place)
    return functions.prepare(spec.id or new_id(), spec, quota)


def submit_refusal(outcome: str, task_id: str) -> RequestRefused | None:
    """The error for a task's outcome, None if it is stored."""
    match outcome:
        case "ready" | "scheduled" | "exists":
            return None
        case "conflict":
            return IdConflict(f"id: task {task_id} exists with other content; choose a new id", field="id")
        case "queue_full":
            why = "queue: the queue of this task is full; come back later"
            return Busy(why, field="queue", retry_after_s=FULL_AGAIN_S)
        case "too_many_queues":
            why = "queue: there are too many queues; use an existing one, or raise max_queues"
            return Busy(why, field="queue", retry_after_s=FULL_AGAIN_S)
        case "too_many_tasks":
            return Busy(
                "there are as many tasks as this installation takes (max_tasks); come back later",
                retry_after_s=FULL_AGAIN_S,
            )
        case "quota_exceeded":
            return Busy(
                "as many tasks of this client are outstanding as it may have (max_outstanding of the broker's"
                " permissions); come back when some have ended",
                code="rate_limited",
                retry_after_s=OUTSTANDING_AGAIN_S,
            )
        case "unconfirmed":
            return not_confirmed()
        case _:
            return RequestRefused(f"unexpected outcome {outcome!r}")


def not_confirmed() -> NotConfirmed:
    return NotConfirmed(
        "written, but not confirmed at the level of `ack` in time; send the same id again", retry_after_s=AWAY_AGAIN_S
    )


def store_refusal(error: StoreError, *, writes: bool) -> RequestRefused:
    """What a failed call means for the one who asked."""
    if error.kind == "permission":
        text = f"the broker's user in Redis lacks a right ({error}); `kingtask doctor` on its host says which"
        return RequestRefused(text, stored=error.stored if writes else "no")
    if error.kind in ("error", "damaged"):
        return RequestRefused(f"the store failed at this: {error}", stored=error.stored if writes else "no")
    if error.stored == "unknown" and writes:
        return NotConfirmed(f"{error}; send the same request again", retry_after_s=AWAY_AGAIN_S)
    if error.kind == "full":
        return Unavailable(
            "Redis is full (maxmemory); tasks drain, come back later", code="store_full", retry_after_s=FULL_AGAIN_S
        )
    return Unavailable(f"Redis cannot serve this now: {error}", retry_after_s=AWAY_AGAIN_S)


def task_reply(task_id: str, result: Result | None) -> dict[str, Any]:
    if result is None:
        raise not_found(task_id)
    return {"task": protocol.result_fields(result)}


def not_found(task_id: str) -> TaskNotFound:
    return TaskNotFound(f"id: there is no task {task_id}; it never existed, or its record has expired", field="id")


def _get(request: protocol.Get, found: functions.StoredTask) -> dict[str, Any]:
    return task_reply(request.id, found.result)


def _cancel(request: protocol.Cancel, state: str) -> dict[str, Any]:
    if state == "missing":
        raise not_found(request.id)
    if state == State.RUNNING:
        return {"id": request.id, "outcome": "cancelling"}
    if state in TERMINAL and state != State.CANCELLED:
        raise WrongState(f"id: task {request.id} has ended already ({state})", field="id")
    return {"id": request.id, "outcome": "cancelled"}


def _requeue(request: protocol.Requeue, answer: tuple[str, str]) -> dict[str, Any]:
    outcome, _ = answer
    if outcome == "missing":
        raise not_found(request.id)
    if outcome in (State.SCHEDULED, State.RUNNING) or (outcome == State.READY and not answer[1]):
        raise WrongState(f"id: task {request.id} has not ended yet ({outcome})", field="id")
    refused = submit_refusal(outcome, request.new_id)
    if refused is not None:
        raise refused
    return {"id": request.new_id, "origin": request.id, "outcome": "exists" if outcome == "exists" else "created"}


def _list_call(
    request: protocol.List, _policy: policy.Policy, _quota: functions.Quota | None
) -> functions.FunctionCall:
    timed = request.since is not None or request.until is not None
    if request.state is State.READY and request.queue is None:
        raise InvalidRequest("queue: required to list ready tasks (each queue has its own order)", field="queue")
    if timed and request.state in (State.READY, State.RUNNING):
        field = "since" if request.since is not None else "until"
        raise InvalidRequest(f"{field}: does not go with state {request.state}", field=field)
    lowest = "-inf" if request.since is None else f"{request.since * 1000:.0f}"
    highest = "+inf" if request.until is None else f"{request.until * 1000:.0f}"
    first, last = (highest, lowest) if request.state in TERMINAL else (lowest, highest)
    rest = 0
    if request.cursor is not None:
        first, _, left = request.cursor.partition(":")
        rest = int(left)
    return functions.list_tasks(
        request.state, request.queue or "", first=first, last=last, rest=rest, limit=request.limit
    )


def _list(_request: protocol.List, page: Page) -> dict[str, Any]:
    cursor = None if page.cursor is None else f"{page.cursor[0]}:{page.cursor[1]}"
    return {"tasks": [protocol.result_fields(result) for result in page.tasks], "cursor": cursor}


def _stats(_request: protocol.Stats, stats: StoreStats) -> dict[str, Any]:
    served = {
        queue for worker in stats.workers if worker.seen_s < WORKER_ALIVE_S for queue in worker.facts.get("queues", ())
    }
    return {
        "queues": [{**msgspec.structs.asdict(queue), "served": queue.name in served} for queue in stats.queues],
        "workers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in stats.workers],
        "brokers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in stats.brokers],
    }


def _pause(request: protocol.Pause | protocol.Resume, answer: str) -> dict[str, Any]:
    refused = None if answer == "ok" else submit_refusal(answer, "")
    if refused is not None:
        raise refused
    return {"queue": request.queue, "paused": isinstance(request, protocol.Pause)}


OPS: dict[type[protocol.Request], Op] = {
    protocol.Get: Op(lambda r, _policy, _quota: functions.get(r.id), _get, writes=False),
    protocol.Cancel: Op(lambda r, policy, _quota: functions.cancel(policy, r.id), _cancel),
    protocol.Requeue: Op(
        lambda r, policy, quota: functions.requeue(policy, r.id, r.new_id, quota), _requeue, confirmed=True
    ),
    protocol.List: Op(_list_call, _list, writes=False),
    protocol.Stats: Op(lambda r, _policy, _quota: functions.stats(), _stats, writes=False),
    protocol.Pause: Op(lambda r, policy, _quota: functions.pause(policy, r.queue, True), _pause),
    protocol.Resume: Op(lambda r, policy, _quota: functions.pause(policy, r.queue, False), _pause),
}
