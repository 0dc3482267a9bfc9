"""Bytes to values and back: what is sent arrives as it was, and what is not a message costs one InvalidRequest."""

from __future__ import annotations

import struct
import uuid

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import errors, protocol, topics, wire
from kingtask.errors import InvalidRequest
from kingtask.result import Result
from kingtask.task import MAX_ARGS, MAX_ENV, MAX_RETRIES, MAX_TAGS, TaskSpec
from tests.unit.values import NOW_S, anything, results, specs

SUBMIT = protocol.encode_request(
    7, "submit", {"task": {"name": "example", "args": ["12", "45"], "retry": [5, 8, 9], "stdin": b"\xff"}}
)


def refused(message: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(message)
    return caught.value


@given(specs(), st.integers(0, 2**64 - 1) | st.text(max_size=protocol.MAX_RID_LENGTH))
def test_a_task_arrives_as_it_was_sent(spec: TaskSpec, rid: protocol.Rid):
    message = protocol.encode_request(rid, "submit", {"task": spec})
    envelope = wire.decode(message)
    request = protocol.parse(envelope)
    assert protocol.rid_of(envelope) == rid
    assert isinstance(request, protocol.Submit)
    assert protocol.parse_task(request.task, NOW_S, "task") == spec


@given(results)
def test_a_result_arrives_as_it_was_sent(result: Result):
    reply = protocol.decode_reply(protocol.ok(1, {"task": protocol.result_fields(result)}))
    assert reply["ok"] is True
    assert protocol.result_from(reply["task"]) == result


def test_a_result_of_a_newer_broker_is_understood():
    fields = {"id": str(uuid.uuid4()), "name": "x", "queue": "q", "priority": 5, "state": "ready"}
    fields |= {"created_at": 1.5, "due_at": 2, "colour": "blue"}
    assert protocol.result_from(fields).due_at == 2.0


@pytest.mark.parametrize("code", errors.REFUSALS)
def test_an_error_arrives_as_it_was_sent(code: str):
    sent = errors.REFUSALS[code]("why", code=code, field="tasks[0].name", retry_after_s=0.5)
    reply = protocol.decode_reply(protocol.refusal("r", sent))
    received = protocol.error_from(reply["error"])
    assert (reply["rid"], reply["ok"]) == ("r", False)
    assert type(received) is type(sent)
    for attribute in ("code", "message", "field", "retryable", "stored", "retry_after_s"):
        assert getattr(received, attribute) == getattr(sent, attribute)


def test_an_error_code_of_a_newer_broker_is_kept():
    error = protocol.error_from({"code": "teapot", "message": "short and stout", "retryable": True})
    assert type(error) is errors.RequestRefused
    assert (error.code, error.retryable, error.stored, str(error)) == ("teapot", True, "no", "short and stout")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_are_refused(message: bytes):
    try:
        assert isinstance(wire.decode(message), dict)
    except InvalidRequest as error:
        assert error.code in ("malformed", "too_big", "too_deep", "invalid_request")
        assert error.message.isprintable()


@given(anything)
def test_any_msgpack_is_a_request_or_is_refused(value: object):
    try:
        protocol.parse(wire.decode(msgpack.packb(value)))
    except InvalidRequest as error:
        assert error.message.isprintable()


@given(
    st.dictionaries(st.sampled_from(["id", "task", "tasks", "timeout_s", "limit", "state", "new_id", "x"]), anything)
)
def test_any_fields_of_any_op_are_a_request_or_are_refused(fields: dict[str, object]):
    for op in protocol.OPS:
        try:
            protocol.parse(wire.decode(wire.pack({"v": 1, "rid": 1, "op": op, **fields})))
        except InvalidRequest as error:
            assert error.message.isprintable()


@given(st.dictionaries(st.sampled_from(TaskSpec.__struct_fields__), anything) | anything)
def test_any_value_is_a_task_or_is_refused_with_its_place(value: object):
    try:
        protocol.parse_task(value, NOW_S, "tasks[3]")
    except InvalidRequest as error:
        assert error.code == "invalid_request"
        assert error.field is not None
        assert error.field.startswith("tasks[3]")
        assert error.message.startswith(error.field)
        assert error.message.isprintable()


@given(st.data())
def test_a_damaged_request_is_a_request_or_is_refused(data: st.DataObject):
    message = bytearray(SUBMIT)
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = protocol.parse(wire.decode(bytes(message)))
        if isinstance(request, protocol.Submit):
            protocol.parse_task(request.task, NOW_S, "task")
    except InvalidRequest as error:
        assert error.message.isprintable()


# Bad input B1.12 to B1.22 (tests/faults/BADINPUT.md).


def test_a_message_cut_at_any_byte_is_malformed():
    assert {refused(SUBMIT[:n]).code for n in range(len(SUBMIT))} == {"malformed"}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param(SUBMIT + b"\0", "malformed", id="trailing byte"),
        pytest.param(SUBMIT + SUBMIT, "malformed", id="two messages"),
        pytest.param(b"", "malformed", id="nothing"),
        pytest.param(b"\xc1", "malformed", id="a byte that msgpack never uses"),
        pytest.param(b"\x81\xa1v\xa2\xc3\x28", "malformed", id="bad UTF-8"),
        pytest.param(b"\x81\xa1v\xa3\xed\xa0\x80", "malformed", id="lone surrogate"),
        pytest.param(b"\x81\xa1v\xd4\x05\x00", "malformed", id="ext type"),
        pytest.param(b"\xdd\xff\xff\xff\xff", "too_big", id="array of 2^32-1"),
        pytest.param(b"\xdf\xff\xff\xff\xff", "too_big", id="map of 2^32-1"),
        pytest.param(b"\xdb\xff\xff\xff\xff", "malformed", id="string of 2^32-1"),
        pytest.param(b"\xc6\xff\xff\xff\xff", "malformed", id="binary of 2^32-1"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", "too_big", id="ext of 2^32-1"),
        pytest.param(b"\x82\xa1v\x01\xa1v\x01", "malformed", id="the same key twice"),
        pytest.param(b"\x81\x05\x01", "malformed", id="integer as key"),
        pytest.param(b"\x81\xc4\x01v\x01", "malformed", id="binary as key"),
        pytest.param(b"\x81\xc0\x01", "malformed", id="nil as key"),
        pytest.param(b"\x81\xcb\x7f\xf8\0\0\0\0\0\0\x01", "malformed", id="NaN as key"),
        pytest.param(b"\x81\x91\x01\x01", "malformed", id="array as key"),
        pytest.param(b"\x81\xa1v\x81\x05\x01", "malformed", id="integer as key further in"),
        pytest.param(b"\x05", "invalid_request", id="an integer"),
        pytest.param(b"\x90", "invalid_request", id="an array"),
        pytest.param(b"\xc0", "invalid_request", id="nil"),
        pytest.param(b"\xa1v", "invalid_request", id="a string"),
    ],
)
def test_what_is_not_a_map_in_msgpack_is_refused(message: bytes, code: str):
    error = refused(message)
    assert (error.code, error.field, error.retryable, error.stored) == (code, None, False, "no")
    assert error.message.isprintable()


def test_a_timestamp_is_no_value_of_any_field():
    envelope = wire.decode(b"\x84\xa1v\x01\xa3rid\x01\xa2op\xa4list\xa5since\xd6\xff\0\0\0\0")
    with pytest.raises(InvalidRequest):
        protocol.parse(envelope)


def test_an_integer_as_key_is_shown():
    assert str(refused(b"\x81\xa1v\x81\x05\x01")) == "expected strings as keys of a map, got 5"


def nested(depth: int, *, of: str) -> bytes:
    opening = b"\x91" if of == "arrays" else b"\x81\xa1a"
    return b"\x81\xa1a" + opening * (depth - 1) + b"\xc0"


@pytest.mark.parametrize("of", ["arrays", "maps"])
@pytest.mark.parametrize("depth", [wire.MAX_DEPTH + 1, 1025, 1_000_000])
def test_what_nests_too_deep_is_refused(depth: int, of: str):
    error = refused(nested(depth, of=of))
    assert (error.code, error.message) == ("too_deep", "expected at most 8 levels of nesting")


@pytest.mark.parametrize("of", ["arrays", "maps"])
def test_eight_levels_are_allowed(of: str):
    assert "a" in wire.decode(nested(wire.MAX_DEPTH, of=of))


def test_depth_is_seen_behind_many_others():
    inner: object = "x"
    for _ in range(wire.MAX_DEPTH):
        inner = [inner]
    assert refused(wire.pack({"a": [[], [], {}, inner]})).code == "too_deep"


def test_a_message_of_exactly_the_limit_is_read_and_one_more_byte_is_not():
    room = wire.MAX_MESSAGE_BYTES - len(wire.pack({"a": b"0" * 70_000, "b": b"0" * 70_000})) + 140_000
    exact = wire.pack({"a": b"0" * (room // 2), "b": b"0" * (room - room // 2)})
    assert len(exact) == wire.MAX_MESSAGE_BYTES
    assert set(wire.decode(exact)) == {"a", "b"}
    error = refused(wire.pack({"a": b"0" * (room // 2), "b": b"0" * (room - room // 2 + 1)}))
    assert error.code == "too_big"
    assert str(error) == "expected a message of at most 4,194,304 bytes, got 4,194,305"


@pytest.mark.parametrize("small", [b"\x80", b"\x90", b"\x01", b"\xa0"], ids=["maps", "arrays", "integers", "strings"])
def test_four_megabytes_of_small_values_are_refused_unread(small: bytes):
    """Each empty map would cost 64 bytes of memory for its one byte."""
    row = b"\xdc" + struct.pack(">H", wire.MAX_LENGTH) + small * wire.MAX_LENGTH
    message = b"\x81\xa1a\xdc" + struct.pack(">H", 1000) + row * 1000
    assert len(message) <= wire.MAX_MESSAGE_BYTES
    assert refused(message).code == "too_big"


def test_the_fullest_batch_is_read():
    full = {
        **dict.fromkeys(TaskSpec.__struct_fields__, "x"),
        "args": [""] * MAX_ARGS,
        "retry": [0] * MAX_RETRIES,
        "env": {f"{n}": "" for n in range(MAX_ENV)},
        "tags": ["x"] * MAX_TAGS,
    }
    message = wire.pack({"v": 1, "rid": 1, "op": "submit", "tasks": [full] * wire.MAX_BATCH})
    assert len(wire.decode(message)["tasks"]) == wire.MAX_BATCH


@pytest.mark.parametrize("rid", [None, True, 1.5, b"r", [1], {}, "r" * 65, "r" * 1_000_000])
def test_an_unusable_rid_is_not_repeated(rid: object):
    envelope = wire.decode(wire.pack({"v": 1, "rid": rid, "op": "ping"}))
    assert protocol.rid_of(envelope) is None
    with pytest.raises(InvalidRequest) as caught:
        protocol.parse(envelope)
    assert (caught.value.code, caught.value.field) == ("invalid_request", "rid")
    assert len(str(caught.value)) < 250


def test_a_missing_rid_is_named():
    with pytest.raises(InvalidRequest, match="rid: expected an integer or a string of at most 64 characters, got nil"):
        protocol.parse({"v": 1, "op": "ping"})


# What a client is about to send.


def test_a_request_over_the_limit_is_refused_before_it_is_sent():
    with pytest.raises(InvalidRequest) as caught:
        protocol.encode_request(1, "submit", {"task": {"stdin": b"0" * wire.MAX_MESSAGE_BYTES}})
    assert caught.value.code == "too_big"


@pytest.mark.parametrize("value", ["\udcff", 2**64, object(), {"a": -(2**64)}])
def test_what_msgpack_cannot_carry_is_refused_before_it_is_sent(value: object):
    with pytest.raises(InvalidRequest, match="cannot be encoded"):
        protocol.encode_request(1, "submit", {"task": value})


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x90", b"\x81\xa1a\x01", b"\xdd\xff\xff\xff\xff"])
def test_a_reply_that_is_none_is_malformed(message: bytes):
    with pytest.raises(InvalidRequest):
        protocol.decode_reply(message)


# What Redis's cmsgpack reads.


@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.binary() | st.lists(st.binary())))
def test_raw_packing_is_undone(values: list[object]):
    packed = wire.pack_raw(values)
    assert wire.unpack_raw(packed) == values


def test_raw_packing_knows_no_bin_type():
    assert wire.pack_raw([b"a", "b"]) == b"\x92\xa1a\xa1b"


# Topics of the wakeup socket.


def test_topics_are_few_and_short():
    ready = {topics.ready_topic(f"queue-{n}") for n in range(100_000)}
    cancel = {topics.cancel_topic(f"worker-{n}") for n in range(10_000)}
    assert {len(topic) for topic in ready} == {3}
    assert {len(topic) for topic in cancel} == {2}
    assert (len(ready), len(cancel)) == (4096, 256)
    assert all(map(topics.is_topic, ready | cancel))
    assert topics.ready_topic("default") == b"r\x00\xdf", "as every other broker and worker has it"


@pytest.mark.parametrize(
    "topic", [b"", b"r", b"c", b"rr", b"r\x10\x00", b"rrrr", b"ccc", b"x\0\0", b"x1", b"ready:default/"]
)
def test_other_topics_are_not(topic: bytes):
    assert not topics.is_topic(topic)


def test_no_topic_begins_with_another():
    """A subscription is a prefix."""
    assert not topics.ready_topic("a").startswith(topics.cancel_topic("a"))
