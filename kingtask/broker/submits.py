"""The op `submit`: tasks checked, batched, and the reply put together from their outcomes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kingtask import protocol
from kingtask.broker import ops
from kingtask.broker.batch import Outcome, SubmitBatcher
from kingtask.errors import RequestRefused, StoreError
from kingtask.store import codec, functions

log = logging.getLogger("kingtask.broker")

Finish = Callable[[dict[str, Any] | RequestRefused], None]
"""Called once with the reply's fields, or with the error that is the reply."""


class Submits:
    """`ack_level` names the level that an OK has now."""

    def __init__(self, batch: SubmitBatcher, *, ack_level: Callable[[], str | None], new_id: Callable[[], str]) -> None:
        self._batch = batch
        self._ack_level = ack_level
        self._new_id = new_id

    def take(self, request: protocol.Submit, now_s: float, finish: Finish, check: ops.Check | None = None) -> None:
        """Take one request. Raises RequestRefused if it is a single task that breaks a rule."""
        if request.task is not None:
            self._take_one(request.task, now_s, finish, check)
        elif request.tasks is not None:
            BulkReply(self, request.tasks, now_s, finish, check)

    def _take_one(self, value: dict[str, Any], now_s: float, finish: Finish, check: ops.Check | None) -> None:
        task = ops.prepare(value, now_s, "task", self._new_id, check)

        def stored(outcome: Outcome) -> None:
            refused = refusal(outcome, task)
            if refused is None:
                fields = accepted(outcome, task)
                fields["ack"] = self._ack_level()
                finish(fields)
            else:
                finish(refused)

        self._batch.add(task, stored)

    def add(self, task: functions.Prepared, callback: Callable[[Outcome], None]) -> None:
        self._batch.add(task, callback)

    def prepare(self, value: Any, now_s: float, place: str, check: ops.Check | None) -> functions.Prepared:
        return ops.prepare(value, now_s, place, self._new_id, check)

    def ack(self) -> str | None:
        return self._ack_level()


class BulkReply:
    """One request with several tasks: an outcome each, in their order; a bad one does not hinder the others."""

    def __init__(
        self, submits: Submits, values: list[Any], now_s: float, finish: Finish, check: ops.Check | None
    ) -> None:
        self._submits = submits
        self._finish = finish
        self._outcomes: list[dict[str, Any]] = [{}] * len(values)
        self._missing = len(values)
        for i, value in enumerate(values):
            try:
                task = submits.prepare(value, now_s, f"tasks[{i}]", check)
            except RequestRefused as error:
                task_id = value.get("id") if isinstance(value, dict) else getattr(value, "id", None)
                self._settle(i, _refused(task_id if isinstance(task_id, str) else None, error))
            else:
                submits.add(task, self._callback(i, task))

    def _callback(self, i: int, task: functions.Prepared) -> Callable[[Outcome], None]:
        def stored(outcome: Outcome) -> None:
            error = refusal(outcome, task)
            self._settle(i, accepted(outcome, task) if error is None else _refused(task[0], error))

        return stored

    def _settle(self, i: int, outcome: dict[str, Any]) -> None:
        self._outcomes[i] = outcome
        self._missing -= 1
        if not self._missing:
            self._finish({"ack": self._submits.ack(), "outcomes": self._outcomes})


def refusal(outcome: Outcome, task: functions.Prepared) -> RequestRefused | None:
    if log.isEnabledFor(logging.DEBUG):
        plan = codec.unpack_plan(task[2])
        told = outcome.kind if isinstance(outcome, StoreError) else outcome
        log.debug("submit=%s task=%s name=%s queue=%s", told, task[0], plan.name, plan.queue or "default")
    if isinstance(outcome, StoreError):
        return ops.store_refusal(outcome, writes=True)
    return ops.submit_refusal(outcome, task[0])


def accepted(outcome: Outcome, task: functions.Prepared) -> dict[str, Any]:
    return {"id": task[0], "outcome": "exists" if outcome == "exists" else "created"}


def _refused(task_id: str | None, error: RequestRefused) -> dict[str, Any]:
    return {"id": task_id, "outcome": "error", "error": protocol.error_fields(error)}
