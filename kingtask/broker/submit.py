"""The op `submit`: checks tasks, stores many of them by one function call (group commit), and replies.

A batch leaves at the end of the drain that filled it, or when the call in flight returns. So a lone submit waits for
nothing, and under load many submits share one call and one fsync. A call that waits for its replicas (`ack: replicas`)
does not hold up the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any
from uuid import uuid4

from kingtask import failpoint, protocol, topics
from kingtask.broker import ops
from kingtask.broker.authorizer import ClientPolicy
from kingtask.broker.ticker import Ticker
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_s, monotonic_us, wall_s
from kingtask.errors import RequestRefused, StoreError
from kingtask.event import Event
from kingtask.policy import Policy
from kingtask.store import functions
from kingtask.store.functions import Prepared
from kingtask.store.store import BrokerStore

log = logging.getLogger("kingtask.broker")

CALLS = 1
"""Calls in flight; a second one would halve the batches and gain nothing (measured)."""
MAX_ITEMS = 200
MAX_BYTES = 1_048_576
"""Bound of one call: Redis serves no other client meanwhile (10,000 moves blocked it for 100 ms)."""

Outcome = str | StoreError
"""Returned by `submit` for a task, or `unconfirmed` if the level of `ack` was not reached, or why the call failed."""
Respond = Callable[[dict[str, Any] | RequestRefused], None]
"""Called once, with the fields of the reply or with its error."""
Settle = Callable[[int, Prepared, Outcome], None]
"""Gets the outcome of a task, after the place of the task in its request."""


@dataclass(slots=True, eq=False)
class _Batch:
    """The tasks of one call, and for each of them the reply and its place there."""

    tasks: list[Prepared] = field(default_factory=list)
    replies: list[tuple[Settle, int]] = field(default_factory=list)
    bytes: int = 0
    hinted_us: int | None = None
    """When a worker got a hint of the only task, before Redis returned."""
    outcomes: list[str] = field(default_factory=list)


class SubmitBatcher:
    """Stores submitted tasks; `flush` belongs at the end of each drain of the socket."""

    def __init__(self, store: BrokerStore, policy: Policy, wakeups: Wakeups, ticker: Ticker) -> None:
        self._store = store
        self._policy = policy
        self._wakeups = wakeups
        self._ticker = ticker
        self._batch = _Batch()
        self._in_flight = 0

    def reconfigure(self, policy: Policy) -> None:
        """Use this policy for later calls."""
        self._policy = policy

    def submit(self, request: protocol.Submit, client: ClientPolicy | None, respond: Respond) -> None:
        """Store the tasks of a request, then respond. Raises RequestRefused if its only task breaks a rule."""
        now_s = wall_s()
        if request.tasks is None:
            self.add(prepare(request.task, now_s, "task", client), partial(self._reply, respond))
            return
        reply = _BulkReply(self._store, len(request.tasks), respond)
        settle = reply.settle
        for i, value in enumerate(request.tasks):
            try:
                task = prepare(value, now_s, f"tasks[{i}]", client)
            except RequestRefused as error:
                task_id = value.get("id") if isinstance(value, dict) else getattr(value, "id", None)
                reply.set(i, task_id if isinstance(task_id, str) else None, error)
            else:
                self.add(task, settle, i)

    def add(self, task: Prepared, settle: Settle, i: int = 0) -> None:
        """Add a task to the batch. A full batch is sent at once."""
        batch = self._batch
        if batch.tasks and batch.bytes + task.size > MAX_BYTES:
            self._send()
            batch = self._batch
        batch.tasks.append(task)
        batch.replies.append((settle, i))
        batch.bytes += task.size
        if len(batch.tasks) >= MAX_ITEMS:
            self._send()

    def flush(self) -> None:
        """Send the batch, unless a call is in flight."""
        if self._batch.tasks and self._in_flight < CALLS:
            self._send()

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._in_flight += 1
        call = functions.submit(self._policy, batch.tasks)
        self._store.submit(call, partial(self._stored, batch), partial(self._confirmed, batch))
        if len(batch.tasks) == 1 and batch.tasks[0].immediate and self._wakeups.notify_early(batch.tasks[0].queue):
            batch.hinted_us = monotonic_us()

    def _stored(self, batch: _Batch, reply: functions.Submitted | StoreError) -> None:
        self._in_flight -= 1
        self.flush()
        if isinstance(reply, StoreError):
            self._settle(batch, repeat(reply, len(batch.tasks)))
            return
        batch.outcomes = reply.outcomes
        hinted = batch.hinted_us is not None and monotonic_us() - batch.hinted_us < topics.EARLY_US
        for queue, tasks in reply.ready:
            if tasks > hinted:
                self._wakeups.ready(queue, tasks - hinted)
        if reply.due_ms:
            self._ticker.learn(reply.due_ms)

    def _confirmed(self, batch: _Batch, reached: bool) -> None:
        if not reached:
            final = functions.REFUSED | {"conflict"}
            batch.outcomes = [outcome if outcome in final else "unconfirmed" for outcome in batch.outcomes]
        elif failpoint.ACTIVE:
            failpoint.reach("before_ack")
        self._settle(batch, batch.outcomes)

    def _settle(self, batch: _Batch, outcomes: Iterable[Outcome]) -> None:
        debugging = log.isEnabledFor(logging.DEBUG)  # once: it takes a hundredth of a submit
        for task, (settle, i), outcome in zip(batch.tasks, batch.replies, outcomes, strict=True):
            if debugging:
                shown = outcome.kind if isinstance(outcome, StoreError) else outcome
                log.debug(Event(f"submit={shown}", task=task.id, name=task.name, queue=task.queue))
            settle(i, task, outcome)

    def _reply(self, respond: Respond, _i: int, task: Prepared, outcome: Outcome) -> None:
        """Respond to a request with one task, whose refusal is that of the request."""
        result = result_of(task, outcome)
        if isinstance(result, dict):
            result["ack"] = self._store.ack_level
        respond(result)


class _BulkReply:
    """The reply to a request with several tasks: an outcome each, in their order. A bad task affects no other one."""

    def __init__(self, store: BrokerStore, tasks: int, respond: Respond) -> None:
        self._store = store
        self._respond = respond
        self._outcomes: list[dict[str, Any]] = [{}] * tasks
        self._missing = tasks

    def settle(self, i: int, task: Prepared, outcome: Outcome) -> None:
        self.set(i, task.id, result_of(task, outcome))

    def set(self, i: int, task_id: str | None, result: dict[str, Any] | RequestRefused) -> None:
        if not isinstance(result, dict):
            result = {"id": task_id, "outcome": "error", "error": protocol.error_fields(result)}
        self._outcomes[i] = result
        self._missing -= 1
        if not self._missing:
            self._respond({"ack": self._store.ack_level, "outcomes": self._outcomes})


def prepare(value: Any, now_s: float, place: str, client: ClientPolicy | None) -> Prepared:
    """Check the task at `place` of a request. Raises InvalidRequest, PermissionDenied or Busy."""
    spec = protocol.parse_task(value, now_s, place)
    if client is None:
        return functions.prepare(spec.id or str(uuid4()), spec)
    quota = client.check_submit(spec, place, monotonic_s())
    return functions.prepare(spec.id or str(uuid4()), spec, quota, client.owner)


def result_of(task: Prepared, outcome: Outcome) -> dict[str, Any] | RequestRefused:
    """Return the fields of a stored task, or the error of another one."""
    if isinstance(outcome, StoreError):
        return ops.store_refusal(outcome, writes=True)
    refused = ops.submit_refusal(outcome, task.id)
    return {"id": task.id, "outcome": "exists" if outcome == "exists" else "created"} if refused is None else refused
