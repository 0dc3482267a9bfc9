"""A call is one request on its way to its reply, with one deadline. `Steps` is one method of the client, as a generator
that does no I/O.

The blocking client and the asyncio client run such a generator. It yields a list of calls to start; an empty list
means: go on waiting. The client sends into the generator the list of calls that have ended since: at least one, while
any is in progress. If the generator yields `SendOnly`, the client resumes it as soon as those calls are sent, and the
list of ended calls may be empty. `StepsWithResults` also yields results, as `Yielded`; None is sent in for these.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from enum import Enum
from math import inf, isfinite
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec import Struct

from kingtask import protocol
from kingtask.errors import InvalidRequest, KingtaskError, NoAnswer, RequestRefused
from kingtask.result import Result

R = TypeVar("R")

Reply = dict[str, Any]

LONGEST_ASKED_REST_S = 60.0


class CallStage(Enum):
    """The stage of a call. A reply ends the call at any stage."""

    NEW = "not started"
    QUEUED = "waits for the connection"
    SENT = "waits for the reply"
    RESTING = "waits until its wake_at to be sent, perhaps again"
    DONE = "has its reply or error"


class Call(Struct, eq=False):
    """One request and, once its stage is DONE, its reply or error.

    `timeout_s` bounds the call as a whole, `silence_s` the time without any message of a broker. `delay_s` is a pause
    before the first try. `answer_s` is the time that a broker takes by design: the field `timeout_s` of a `wait`.
    `about` is the id of the task concerned, for error messages. All other attributes belong to the core.
    """

    op: str
    fields: Mapping[str, Any]
    timeout_s: float
    about: str | None = None
    silence_s: float = inf
    delay_s: float = 0.0
    writes: bool = False
    answer_s: float = 0.0
    owner: Any = None
    """The shell's own reference; the core ignores it."""
    stage: CallStage = CallStage.NEW
    reply: Reply | None = None
    error: KingtaskError | None = None
    rid: int = 0
    message: bytes = b""
    hard: float = inf
    """The latest end of the call."""
    deadline: float = inf
    """The end of the call unless a broker answers before."""
    wake_at: float = inf
    sent_at: float = 0.0
    tries: int = 0
    overdue: int = 0
    """Number of tries whose reply was overdue."""
    refusals: int = 0
    refused_by: int | None = None
    """Index of the address whose broker refused the call last."""
    trouble_at: float | None = None
    """Start of the current series of refusals."""
    maybe_stored: bool = False
    """True if a try may have taken effect: its reply was lost, or says that the effect is unknown."""

    def __post_init__(self) -> None:
        self.writes = protocol.OPS[self.op].writes
        self.answer_s = self.fields.get("timeout_s", 0.0)

    def result(self) -> Reply:
        """Return the reply of a call that is done, or raise its error."""
        if self.reply is None:
            raise self.error if self.error is not None else RuntimeError(f"call {self.rid} ({self.op}) is not done")
        return self.reply


Calls = Sequence[Call]
Steps = Generator[Calls, Calls, R]


class SendOnly(tuple[Call, ...]):
    """Calls to send without waiting for their replies, since the steps can make further calls meanwhile."""

    __slots__ = ()


class Yielded(NamedTuple, Generic[R]):
    value: R


StepsWithResults = Generator[Calls | Yielded[R], Calls, None]


def ask(op: str, fields: Mapping[str, Any], timeout_s: float, *, about: str | None = None) -> Steps[Reply]:
    """Make one request and return its reply. Raises its error."""
    (call,) = yield (Call(op, fields, timeout_s, about=about),)
    return call.result()


def collect(steps: StepsWithResults[R]) -> Steps[list[R]]:
    """Turn steps with results into steps that return the list of them."""
    found: list[R] = []
    try:
        step = next(steps)
        while True:
            if isinstance(step, Yielded):
                found.append(step.value)
                step = next(steps)
            else:
                step = steps.send((yield step))
    except StopIteration:
        return found


def asked_rest_s(error: RequestRefused) -> float:
    """Return the pause that the broker asks for; 0 without one, or for a value that makes no sense."""
    asked = error.retry_after_s
    if not isinstance(asked, (int, float)) or not isfinite(asked):
        return 0.0
    return min(max(asked, 0.0), LONGEST_ASKED_REST_S)


def result_in(task: Any, task_id: str | None = None) -> Result:
    """Return the `task` of a reply. Raises InvalidRequest (`malformed`) if it is missing or another task."""
    if not isinstance(task, dict) or (task_id is not None and task.get("id") != task_id):
        raise InvalidRequest("the broker's reply has no usable 'task'", code="malformed")
    return protocol.result_from(task)


def field(reply: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """Return a field that a reply must have. Raises InvalidRequest (`malformed`) without it."""
    value = reply.get(name)
    if not isinstance(value, kind):
        raise InvalidRequest(f"the broker's reply has no usable {name!r}", code="malformed")
    return value


def no_answer(call: Call, endpoints: Sequence[str], complaint: str | None) -> NoAnswer:
    """Return the error for a call without an answer; `complaint` is the last message that answered no call."""
    brokers = " or ".join(endpoints)
    after = "" if call.answer_s else f" within {round(call.timeout_s, 2):g} s"
    text = f"no answer to {call.op} from {brokers}{after}: "
    if not call.tries:
        text += "no connection; is kingtask-broker running there, is the address right, does a firewall let it through?"
        if any(endpoint.startswith("ipc:") for endpoint in endpoints):
            text += " Is this user in the group of the socket?"
        stored = call.writes and call.maybe_stored
    else:
        times = "once" if call.tries == 1 else f"{call.tries} times"
        text += f"it was sent {times}; is the broker overloaded or stopped (see its log)?"
        stored = call.writes
    if complaint:
        text += f" Last seen: {complaint}."
    if call.writes:
        text += _advice(call, stored)
    return NoAnswer(text, stored="unknown" if stored else "no")


def no_access(endpoint: str, *, keyed: bool, certain: bool) -> str:
    """Explain a failed handshake. libzmq is certain only about an unknown key; otherwise the connection just closes."""
    if certain:
        return f"{endpoint} does not know this client's key: is its .key file among the broker's authorized_clients?"
    text = f"{endpoint} ends the connection in the handshake, as a broker does "
    if keyed:
        return text + "that has another key than the given server key, or that uses no keys"
    return text + (
        "that requires keys (CURVE): name this client's and the broker's key by --curve-key and --server-key, or by"
        " KINGTASK_CURVE_KEY and KINGTASK_SERVER_KEY"
    )


def _advice(call: Call, stored: bool) -> str:
    if call.op != "submit":
        return " It may have taken effect; asking again is safe." if stored else " Nothing was changed."
    if not stored:
        return " Nothing was stored."
    what = f"the same id ({call.about})" if call.about else "the same ids"
    return f" It may be stored; submitting again with {what} is safe and makes no second task."
