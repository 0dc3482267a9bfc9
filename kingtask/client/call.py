"""A call: one request on its way to its one reply, with one deadline."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from math import inf, isfinite
from typing import Any

from kingtask import protocol
from kingtask.errors import InvalidRequest, KingtaskError, RequestRefused
from kingtask.result import Result

Reply = dict[str, Any]

WRITES = frozenset({"submit", "cancel", "requeue", "pause", "resume"})
"""Ops after whose failure it matters whether they took effect."""


LONGEST_ASKED_REST_S = 60.0


class CallStage(Enum):
    """Where a call is. A reply ends it at any stage."""

    NEW = "not started"
    QUEUED = "to be sent as soon as the connection takes it"
    SENT = "on its way"
    RESTING = "to be sent again, or for the first time, at its wake_at"
    DONE = "has its reply or error"


class Call:
    """One request and, once it is `done`, its reply or error.

    `timeout_s` bounds it as a whole. An op that the broker answers late by design (`wait`) says so by `answer_s`, and
    by `silence_s` how much longer than that no broker may be heard. `delay_s` is a rest before it is first sent.
    `about` is the id of the task concerned, for error messages. The other attributes belong to the core.
    """

    owner: Any = None
    """Whoever is to be told that it is done; the core does not look at it."""
    stage = CallStage.NEW
    reply: Reply | None = None
    error: KingtaskError | None = None
    rid = 0
    message = b""
    hard = inf
    """When it ends at the latest."""
    deadline = inf
    """When it ends unless something is heard before."""
    wake_at = inf
    sent_at = 0.0
    tries = 0
    overdue = 0
    """Times that no reply came when one was due."""
    refusals = 0
    refused_by: int | None = None
    """Index of the address whose broker refused it last."""
    trouble_at: float | None = None
    """When the current row of refusals began."""
    maybe_stored = False
    """A try may have taken effect although its reply was lost or says that it is not known."""

    def __init__(
        self,
        op: str,
        fields: Mapping[str, Any],
        timeout_s: float,
        *,
        about: str | None = None,
        answer_s: float = 0.0,
        silence_s: float = inf,
        delay_s: float = 0.0,
    ) -> None:
        self.op = op
        self.fields = fields
        self.timeout_s = timeout_s
        self.about = about
        self.answer_s = answer_s
        self.silence_s = silence_s
        self.delay_s = delay_s

    @property
    def done(self) -> bool:
        return self.stage is CallStage.DONE

    def result(self) -> Reply:
        """The reply of a call that is done. Raises its error."""
        if self.reply is None:
            raise self.error if self.error is not None else RuntimeError(f"call {self.rid} ({self.op}) is not done")
        return self.reply


def asked_rest_s(error: RequestRefused) -> float:
    """How long the broker asks to be left alone; 0 if it does not say so, or says nonsense."""
    asked = error.retry_after_s
    if not isinstance(asked, (int, float)) or not isfinite(asked):
        return 0.0
    return min(max(asked, 0.0), LONGEST_ASKED_REST_S)


def result_in(task: Any, task_id: str | None = None) -> Result:
    """The `task` of a reply. Raises InvalidRequest (`malformed`) if it is none, or not the one asked for."""
    if not isinstance(task, dict) or (task_id is not None and task.get("id") != task_id):
        raise InvalidRequest("the broker's reply has no usable 'task'", code="malformed")
    return protocol.result_from(task)


def field(reply: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """A field that a reply must have. Raises InvalidRequest (`malformed`) if the broker left it out."""
    value = reply.get(name)
    if not isinstance(value, kind):
        raise InvalidRequest(f"the broker's reply has no usable {name!r}", code="malformed")
    return value
