"""Wire protocol v1: typed requests and replies, and every limit (PROTOCOL.md). Pure: no socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from kingtask import task
from kingtask.errors import REFUSALS, InvalidRequest, RequestRefused
from kingtask.result import Result
from kingtask.states import State
from kingtask.task import QueueName, TaskId, TaskSpec
from kingtask.validation import convert, show
from kingtask.wire import MAX_BATCH, MAX_DEPTH, MAX_MESSAGE_BYTES, pack, unpack

VERSION = 1
MAX_WAIT_S = 3600.0
MAX_PAGE = 200
MAX_RID_LENGTH = 64

LIMITS: dict[str, int | float] = {
    "message_bytes": MAX_MESSAGE_BYTES,
    "batch": MAX_BATCH,
    "depth": MAX_DEPTH,
    "args": task.MAX_ARGS,
    "arg_bytes": task.MAX_ARG_BYTES,
    "args_bytes": task.MAX_ARGS_BYTES,
    "stdin_bytes": task.MAX_STDIN_BYTES,
    "env": task.MAX_ENV,
    "env_bytes": task.MAX_ENV_BYTES,
    "retries": task.MAX_RETRIES,
    "interval_s": task.MAX_INTERVAL_S,
    "ahead_s": task.MAX_AHEAD_S,
    "keep_result_s": task.MAX_KEEP_S,
    "tags": task.MAX_TAGS,
    "tag_length": task.MAX_TAG_LENGTH,
    "wait_s": MAX_WAIT_S,
    "page": MAX_PAGE,
}
"""Sent in the reply to `ping`; PROTOCOL.md shows the same table (tested)."""

Rid = int | str
Cursor = Annotated[
    str, msgspec.Meta(pattern=r"\A[0-9]{1,16}(\.[0-9]{1,12})?:[0-9]{1,9}\Z", description="a cursor that list has given")
]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    """The fields of every op; `op` on the wire is the class's name in lower case. `parse` checks `v` and `rid`."""

    v: int = VERSION
    rid: Rid = 0

    @property
    def op(self) -> Op:
        return OPS[str(self.__struct_config__.tag)]


class ById(Request, frozen=True):
    """A request for one stored task. A client's rules on names and queues apply to that task."""

    id: TaskId


class Ping(Request, frozen=True):
    pass


class Submit(Request, frozen=True):
    """One of `task` (its failure is the reply's) and `tasks` (an outcome each): maps, or TaskSpecs by `read_submit`."""

    task: Any = None
    tasks: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=MAX_BATCH)] | None = None


class Get(ById, frozen=True):
    pass


class Wait(ById, frozen=True):
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_S)] = 60.0


class Cancel(ById, frozen=True):
    pass


class Requeue(ById, frozen=True):
    new_id: TaskId


class Forget(ById, frozen=True):
    pass


class List(Request, frozen=True):
    state: State
    queue: QueueName | None = None
    since: task.Instant | None = None
    until: task.Instant | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = 50
    cursor: Cursor | None = None


class Stats(Request, frozen=True):
    pass


class Pause(Request, frozen=True):
    queue: QueueName


class Resume(Request, frozen=True):
    queue: QueueName


class Op(NamedTuple):
    """The row of one op."""

    name: str
    request: type[Request]
    writes: bool = False
    """A request without a reply may have taken effect."""
    audited: bool = False
    """The audit log has a line for each request."""
    acked: bool = False
    """An OK waits until the level of `ack` is reached."""
    permission: bool = True
    """The op stands in `ops` of permissions.yaml. An op without a permission is open to every client."""

    @property
    def by_id(self) -> bool:
        """The request names one stored task."""
        return issubclass(self.request, ById)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("ping", Ping, permission=False),  # shows nothing of tasks
        Op("submit", Submit, writes=True, acked=True),
        Op("get", Get),
        Op("wait", Wait),
        Op("cancel", Cancel, writes=True, audited=True),
        Op("requeue", Requeue, writes=True, audited=True, acked=True),
        Op("forget", Forget, writes=True, audited=True),
        Op("list", List),
        Op("stats", Stats),
        Op("pause", Pause, writes=True, audited=True),
        Op("resume", Resume, writes=True, audited=True),
    )
}
"""Every op, by its name on the wire, in the order of PROTOCOL.md. ARCHITECTURE.md lists the other places of an op."""


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rid_of(envelope: Mapping[str, Any]) -> Rid | None:
    """The request's correlation id if it has a usable one; an error reply carries it, or nil."""
    rid = envelope.get("rid")
    if type(rid) is int or (type(rid) is str and len(rid) <= MAX_RID_LENGTH):
        return rid
    return None


def parse(envelope: dict[str, Any]) -> Request:
    """A decoded message as a request. Raises InvalidRequest naming the place."""
    if rid_of(envelope) is None:
        shown = show(envelope.get("rid"))
        raise InvalidRequest(
            f"rid: expected an integer or a string of at most {MAX_RID_LENGTH} characters, got {shown}", field="rid"
        )
    version = envelope.get("v")
    if type(version) is not int or version != VERSION:
        raise InvalidRequest(f"v: expected {VERSION}, got {show(version)}", code="unsupported_version", field="v")
    op = envelope.get("op")
    row = OPS.get(op) if isinstance(op, str) else None
    if row is None:
        known = ", ".join(OPS)
        raise InvalidRequest(f"op: expected one of {known}, got {show(op)}", code="unknown_op", field="op")
    request = convert(envelope, row.request)
    if isinstance(request, Submit) and (request.task is None) == (request.tasks is None):
        raise InvalidRequest("task: expected exactly one of task and tasks", field="task")
    return request


class _SubmitMessage(msgspec.Struct, forbid_unknown_fields=True):
    v: Literal[1]
    rid: int | Annotated[str, msgspec.Meta(max_length=MAX_RID_LENGTH)]
    op: Literal["submit"]
    task: msgspec.Raw = msgspec.Raw()
    tasks: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_BATCH)] = []


_SUBMIT = msgspec.msgpack.Decoder(_SubmitMessage)
_FIELDS = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_SPEC = msgspec.msgpack.Decoder(TaskSpec)


def read_submit(message: bytes) -> Submit | None:
    """An ordinary submit in one pass, three times as fast as decode and parse; None if it must go the long way.

    What this takes the long way takes too, with the same outcome (tested): every field once, no `env`, nothing wrong.
    """
    if message[:1] != b"\x84" or len(message) > MAX_MESSAGE_BYTES:  # a map of four: v, rid, op and what to submit
        return None
    try:
        read = _SUBMIT.decode(message)
        if read.tasks:
            return Submit(rid=read.rid, tasks=[_read_spec(packed) for packed in read.tasks])
        return Submit(rid=read.rid, task=_read_spec(read.task))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the last from what nests a thousand deep
        return None


def _read_spec(packed: Any) -> TaskSpec:
    view = memoryview(packed)
    fields = _FIELDS.decode(view)
    count = view[0] & 0x0F if view[0] < 0x90 else int.from_bytes(view[1:3])  # fixmap; map 16, which msgspec sends
    if count != len(fields) or "env" in fields:  # a field that came twice is counted twice
        raise msgspec.DecodeError
    return _SPEC.decode(view)


def parse_task(value: Any, now_s: float, place: str) -> TaskSpec:
    """A task's map as a TaskSpec; `now_s` epoch seconds. Raises InvalidRequest naming the place."""
    spec = value if type(value) is TaskSpec else convert(value, TaskSpec, place)
    task.check_spec(spec, now_s, place)
    return spec


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ok(rid: Rid | None, fields: dict[str, Any]) -> bytes:
    return pack({"v": VERSION, "rid": rid, "ok": True, **fields})


def refusal(rid: Rid | None, error: RequestRefused) -> bytes:
    return pack({"v": VERSION, "rid": rid, "ok": False, "error": error_fields(error)})


def error_fields(error: RequestRefused) -> dict[str, Any]:
    """The `error` map of a reply or of one task's outcome."""
    names = ("code", "message", "retryable", "stored", "field", "retry_after_s")
    return {name: value for name in names if (value := getattr(error, name)) is not None}


def error_from(fields: Mapping[str, Any]) -> RequestRefused:
    """The exception for an `error` map; unknown codes and fields of a newer broker are taken as they are."""
    code = str(fields.get("code", "internal"))
    stored: Literal["no", "unknown"] = "unknown" if fields.get("stored") == "unknown" else "no"
    return REFUSALS.get(code, RequestRefused)(
        str(fields.get("message", code)),
        code=code,
        field=fields.get("field"),
        retryable=bool(fields.get("retryable")),
        stored=stored,
        retry_after_s=fields.get("retry_after_s"),
    )


def encode_request(rid: Rid, op: str, fields: Mapping[str, Any]) -> bytes:
    """A request as bytes. Raises InvalidRequest before anything is sent, if it is `too_big` or cannot be encoded."""
    try:
        message = pack({"v": VERSION, "rid": rid, "op": op, **fields})
    except (TypeError, ValueError, OverflowError) as error:  # a lone surrogate, a huge integer, a foreign type
        raise InvalidRequest(f"the request cannot be encoded: {error}") from None
    if len(message) > MAX_MESSAGE_BYTES:
        raise InvalidRequest(
            f"expected a message of at most {MAX_MESSAGE_BYTES:,} bytes, got {len(message):,}", code="too_big"
        )
    return message


def decode_reply(message: bytes) -> dict[str, Any]:
    """A broker's reply as a map (`rid`, `ok`, …). Raises InvalidRequest (`malformed`) if it is none."""
    reply = unpack(message)
    if not isinstance(reply, dict) or "ok" not in reply:
        raise InvalidRequest("the reply is not one of protocol v1", code="malformed")
    return reply


def result_fields(result: Result) -> dict[str, Any]:
    """A Result as the `task` map of a reply."""
    fields: dict[str, Any] = msgspec.to_builtins(result, builtin_types=(bytes,))
    return fields


def result_from(fields: Mapping[str, Any]) -> Result:
    """The `task` map of a reply as a Result; fields of a newer broker are ignored."""
    return convert(dict(fields), Result, "task")
