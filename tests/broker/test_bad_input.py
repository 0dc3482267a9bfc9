"""Everything that is wrong with a message, sent to a broker process: one refusal each, and nothing else comes of it."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import zmq

from kingtask import protocol, wire
from kingtask.broker import router
from tests.broker.conftest import Sockets
from tests.integration.rig import Daemon, StackHarness
from tests.interop.vectors import VECTORS
from tests.processes import alive, until

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
NAN, INFINITY = float("nan"), float("inf")
NEW_YEAR = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
"""An ext type in msgpack."""
MORE_THAN_ALL = {"task": {"name": "x", "stdin": bytes(1_000_000), "tags": ["x" * 1_070_000] * 3}}


class BadInput(NamedTuple):
    """`rid` of the reply; `field` is compared where one is given."""

    name: str
    frames: list[bytes]
    code: str
    rid: Any = 1
    field: str | None = None


def asked(name: str, code: str, field: str | None = None, repeated: Any = 1, /, **fields: Any) -> BadInput:
    """A `ping` with other fields, or without those that are None."""
    envelope = {"v": 1, "rid": 1, "op": "ping", **fields}
    message = wire.pack({key: value for key, value in envelope.items() if value is not None})
    return BadInput(name, [message], code, repeated, field)


def refused_task(what: str, field: str, /, **fields: Any) -> BadInput:
    task = {"id": ID, "name": "example", **fields}
    place = f"task.{field}"
    return asked(what, "invalid_request", place, op="submit", task={k: v for k, v in task.items() if v is not None})


def bytes_(name: str, message: bytes, code: str = "malformed") -> BadInput:
    return BadInput(name, [message], code, None)


SUBMIT = protocol.encode_request(1, "submit", {"task": {"id": ID, "name": "example", "args": ["12"], "retry": [5, 8]}})


def frames() -> Iterator[BadInput]:
    for name, sent in {
        "two": [SUBMIT, SUBMIT],
        "three": [b"", SUBMIT, SUBMIT],
        "five": [b"x"] * 5,
        "empty ones": [b""] * 3,
        "a delimiter behind": [SUBMIT, b""],
        "thousands": [b""] + [SUBMIT] * 5_000,
    }.items():
        yield BadInput(f"frames: {name}", sent, "bad_frames", None)


def no_messages() -> Iterator[BadInput]:
    for n in range(1, len(SUBMIT)):
        yield bytes_(f"cut at {n}", SUBMIT[:n])
    yield bytes_("a byte behind", SUBMIT + b"\0")
    yield bytes_("twice", SUBMIT * 2)
    yield bytes_("a byte that msgpack never uses", b"\xc1")
    yield bytes_("bad UTF-8", SUBMIT.replace(b"example", b"exampl\xff"))
    yield bytes_("a lone surrogate", SUBMIT.replace(b"\xa7example", b"\xa7exam\xed\xa0\x80"))
    for head, kind, code in (
        (b"\xdd", "array", "too_big"),
        (b"\xdf", "map", "too_big"),
        (b"\xdb", "string", "malformed"),
        (b"\xc6", "binary", "malformed"),
        (b"\xc9", "ext", "too_big"),
    ):
        yield bytes_(f"{kind} of 2^32-1", head + b"\xff" * 4 + b"\x01", code)
        yield bytes_(f"{kind} of 2^32-1 within", b"\x81\xa1v" + head + b"\xff" * 4 + b"\x01", code)
    for depth in (9, 1025, 1_000_000):
        yield bytes_(f"{depth} arrays", b"\x81\xa1v" + b"\x91" * (depth - 1) + b"\xc0", "too_deep")
        yield bytes_(f"{depth} maps", b"\x81\xa1v" + b"\x81\xa1a" * (depth - 1) + b"\xc0", "too_deep")
        submit = b"\x84\xa1v\x01\xa3rid\x01\xa2op\xa6submit\xa4task"
        yield bytes_(f"{depth} arrays as a task", submit + b"\x91" * (depth - 1) + b"\xc0", "too_deep")
    for name, value in {"int": 5, "array": [SUBMIT], "nil": None, "string": "ping", "true": True}.items():
        yield bytes_(f"top level {name}", wire.pack(value), "invalid_request")
    yield bytes_("a key twice", SUBMIT[:1] + SUBMIT[1:].replace(b"\xa3rid\x01", b"\xa1v\x01"))
    yield bytes_("a key of a task twice", SUBMIT.replace(b"\xa4args\x91\xa212", b"\xa4name\xa212"))
    for name, key in {"int": b"\x05", "nil": b"\xc0", "NaN": b"\xcb\x7f\xf8" + b"\0" * 6, "array": b"\x91\x01"}.items():
        yield bytes_(f"key {name}", b"\x81" + key + b"\x01")
    yield bytes_("ext type", SUBMIT.replace(b"\xa3rid\x01", b"\xa3rid\xd4\x01\x01"))
    yield bytes_(
        "more than a message may have", wire.pack({"v": 1, "rid": 1, "op": "submit", **MORE_THAN_ALL}), "too_big"
    )
    yield bytes_(
        "as long as a frame may be",
        b"\xc6" + (router.MAX_FRAME_BYTES - 5).to_bytes(4, "big") + bytes(router.MAX_FRAME_BYTES - 5),
        "too_big",
    )
    yield bytes_(
        "four megabytes of empty maps", b"\xdd\0\0\x0f\xff" + (b"\xdc\x03\xff" + b"\x80" * 1023) * 4095, "too_big"
    )


def envelopes() -> Iterator[BadInput]:
    yield asked("33 fields", "invalid_request", **{f"f{n}": n for n in range(33)})
    yield asked("a name of a megabyte", "invalid_request", **{"x" * 1_000_000: 1})
    yield asked("unknown field", "invalid_request", "colour", colour="red")
    yield asked("timestamp", "invalid_request", "since", op="list", state="failed", since=NEW_YEAR)
    for version in (0, 2, 999, -1, "1", True, 1.0, 2**64 - 1):
        yield asked(f"v {version!r}", "unsupported_version", "v", v=version)
    yield asked("v missing", "unsupported_version", "v", v=None)
    for op in ("", "PING", "ping ", "ping\0", "delete", "x" * 10_240, 5, ["ping"], True):
        yield asked(f"op {op!r}"[:60], "unknown_op", "op", op=op)
    yield asked("op missing", "unknown_op", "op", op=None)
    rids: tuple[Any, ...] = ({}, [1], True, 1.5, b"r", "r" * 65, "r" * 1_000_000)
    for rid in rids:
        yield asked(f"rid {rid!r}"[:60], "invalid_request", "rid", None, rid=rid)
    yield asked("rid missing", "invalid_request", "rid", None, rid=None)
    for op in ("get", "cancel", "requeue", "wait"):
        for id_ in (None, "", ID[:-1], ID + "0", ID.replace("f", "g"), ID.upper(), ID.replace("a", "а"), 5, b"x" * 36):
            yield asked(f"{op} {id_!r}", "invalid_request", "id", op=op, id=id_, new_id=ID if op == "requeue" else None)
    for timeout in (-1, NAN, INFINITY, 3601, "30", True):
        yield asked(f"wait for {timeout!r}", "invalid_request", "timeout_s", op="wait", id=ID, timeout_s=timeout)
    for limit in (0, -1, 201, 2**63, 5.5, True, "5"):
        yield asked(f"list of {limit!r}", "invalid_request", "limit", op="list", state="failed", limit=limit)
    for cursor in ("", "x", "-1:0", "1:-1", "1:1:1", "1:1\n", "9" * 99, 5):
        yield asked(f"list from {cursor!r}"[:60], "invalid_request", "cursor", op="list", state="failed", cursor=cursor)
    yield asked("list of ready", "invalid_request", "queue", op="list", state="ready")
    yield asked("list of running since", "invalid_request", "since", op="list", state="running", since=1)
    batches: tuple[Any, ...] = ([], {}, "x", [{}] * 1001)
    for tasks in batches:
        yield asked(f"tasks {tasks!r}"[:60], "invalid_request", "tasks", op="submit", tasks=tasks)
    yield asked("10,001 tasks", "too_big", None, None, op="submit", tasks=[{}] * 10_001)
    yield asked("task and tasks", "invalid_request", "task", op="submit", task={"name": "x"}, tasks=[{"name": "x"}])
    singles: tuple[Any, ...] = (5, "x", [], True)
    for task in singles:
        yield asked(f"task {task!r}", "invalid_request", "task", op="submit", task=task)


NAMES = ("", "../x", "/bin/sh", "a/../b", "a//b", ".", "..", ".x", "x/", "~", "a\0b", "a\nb", "-x", "x" * 65)
VALUES: dict[str, tuple[Any, ...]] = {
    "id": ("", ID[:-1], ID + "0", ID.replace("f", "g"), ID.upper(), ID.replace("a", "а"), 5),  # a Cyrillic а
    "name": (*NAMES, "a\u202eb", "é", "e\u0301", "a/b/c/d/e", 5, b"x", None),
    "args": ("12", {"0": "12"}, 5, ["x"] * 257, ["x" * 131_071] * 9),
    "start_at": (NAN, INFINITY, -INFINITY, -1, "now", True, 2**63, 2**64 - 1, 1_800_000_000_000, 9e9),
    "delay_s": (-1, 1e308, NAN, "5"),
    "retry": (5, "5,8", [1] * 65, {"0": 5}),
    "time_limit_s": (0, -1, NAN, 2_592_001, "30", True),
    "keep_result_s": (0, -1, 31_536_001, "1"),
    "on_lost": ("exactly_once",),
    "queue": ("", "a b", "{a}", "a:b", "*", "x" * 65),
    "priority": (-1, 10, 5.0, True, "5"),
    "stdin": (bytes(1_048_577), "text"),
    "uid": (0,),
}


def tasks() -> Iterator[BadInput]:
    for field, values in VALUES.items():
        for value in values:
            yield refused_task(f"{field} {value!r}"[:60], field, **{field: value})
    arguments: tuple[Any, ...] = (5, b"x", ["x"], {}, True, None, "a\0b", "x" * 131_072)
    for arg in arguments:
        yield refused_task(f"arg {arg!r}"[:60], "args[1]", args=["", arg])
    for interval in (-1, NAN, INFINITY, 2_592_001, [5], "5", True):
        yield refused_task(f"interval {interval!r}", "retry[1]", retry=[0, interval])
    refused = ("LD_PRELOAD", "PATH", "PYTHONPATH", "BASH_ENV", "KINGTASK_ID", "HOME", "XDG_CONFIG_HOME")
    for name in (*refused, "=x", "", "a=b", "a\0"):
        yield refused_task(f"env {name!r}", f"env[{name!a}]", env={name: "x"})
    yield refused_task("a variable with NUL", "env['A']", env={"A": "\0"})
    yield refused_task("two starts", "delay_s", start_at=1_800_000_000, delay_s=5)


ROWS = [*frames(), *no_messages(), *envelopes(), *tasks()]
ROWS += [
    BadInput(f"vector: {v.name}", v.request.frames, v.error["code"], v.reply.value["rid"], v.error.get("field"))
    for v in VECTORS
    if v.decided_by == "bytes" and v.error
]


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as made:
        yield made


@pytest.fixture(scope="module")
def broker(rig: StackHarness) -> Daemon:
    return rig.start_broker()


def describe_error(row: BadInput, reply: list[bytes]) -> tuple[Any, ...]:
    """What is to be compared of a reply."""
    envelope = protocol.decode_reply(reply[-1])
    error = envelope["error"]
    assert len(reply[-1]) < 1_000, "however long what was sent"
    assert error["message"].isprintable()
    field = error.get("field") if row.field is not None else None
    return reply[:-1], envelope["rid"], error["code"], error["stored"], error["retryable"], field


def test_every_bad_message_is_refused_once_and_does_nothing(
    rig: StackHarness, broker: Daemon, sockets: Sockets
) -> None:
    """Each as a DEALER and as a REQ sends it: the same refusal, in the same form."""
    redis: Any = rig.redis.client()
    dealer, other = sockets.new(zmq.DEALER, broker.endpoint), sockets.new(zmq.DEALER, broker.endpoint)
    pid, keys, wrong = broker.pid, set(redis.keys("*")), {}
    sent: Counter[str] = Counter()
    for row in ROWS:
        for delimiter in ([], [b""]) if len(row.frames) == 1 else ([],):
            dealer.send_multipart(delimiter + row.frames)
            sent[row.code] += 1
            reply = dealer.recv_multipart()
            expected = (
                reply[:-1] if row.code == "bad_frames" else delimiter,
                row.rid,
                row.code,
                "no",
                False,
                row.field,
            )
            if describe_error(row, reply) != expected:
                wrong[row.name] = describe_error(row, reply)
    assert wrong == {}
    assert not dealer.poll(0), "one answer each"
    other.send(protocol.encode_request(2, "ping", {}))
    assert protocol.decode_reply(other.recv())["ready"] is True
    assert (set(redis.keys("*")), broker.pid, alive(pid)) == (keys, pid, True)
    refused = until(
        lambda: (found := counted(rig)).total() == sent.total() and found, lambda: f"{sent}, not {counted(rig)}"
    )
    assert refused == sent
    kinds = [line.partition("refused=")[2].split()[0] for line in broker.text().splitlines() if "refused=" in line]
    assert sorted(kinds) == sorted(sent), "one line for each kind, however many there were"


def counted(rig: StackHarness) -> Counter[str]:
    return Counter(rig.client().stats()["brokers"][0]["refused"])
