"""The protocol's code against the vectors: they decide, and it follows."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from kingtask import errors, protocol, wire
from kingtask.cli.param_types import id_of_key
from kingtask.errors import InvalidRequest
from kingtask.result import Attempt, Result
from kingtask.task import TaskSpec
from tests.interop.vectors import VECTORS, Message, Vector, frozen, without_text

NOW_S = 1_800_000_000.0
GOOD = [vector for vector in VECTORS if vector.decided_by == "state"]
BAD = [vector for vector in VECTORS if vector.decided_by == "bytes"]
DECIDED_BY_THE_EDGE = {"bad_frames"}
DECIDED_BY_THE_OP = {"list of ready tasks without a queue"}


def each(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=[vector.name for vector in vectors])


def specs_of(request: protocol.Request) -> list[TaskSpec]:
    """What a submit asks for, each checked; a bad entry of several is left out."""
    found = []
    if isinstance(request, protocol.Submit):
        if request.task is not None:
            return [protocol.parse_task(request.task, NOW_S, "task")]
        for number, value in enumerate(request.tasks or []):
            try:
                found.append(protocol.parse_task(value, NOW_S, f"tasks[{number}]"))
            except InvalidRequest:
                continue
    return found


def test_no_vector_has_changed_since_it_was_published():
    assert {vector.name: vector.digest for vector in VECTORS} == frozen()


def test_every_vector_has_a_name_of_its_own():
    assert len({vector.name for vector in VECTORS}) == len(VECTORS)


def test_there_is_a_vector_for_everything():
    requests = [vector.request.value for vector in GOOD]
    assert {request["op"] for request in requests} == set(protocol.OPS)
    for op in protocol.OPS.values():
        shown = {field for request in requests if request["op"] == op.name for field in request} - {"op"}
        assert shown == {field.name for field in msgspec.structs.fields(op.request)}
    assert {field for request in requests for field in request.get("task", ())} == set(TaskSpec.__struct_fields__)
    records = [vector.reply.value["task"] for vector in GOOD if "task" in vector.reply.value]
    assert {field for record in records for field in record} >= set(Result.__struct_fields__)
    attempts = [attempt for record in records for attempt in record.get("attempts", ())]
    assert {field for attempt in attempts for field in attempt} == set(Attempt.__struct_fields__)
    assert {vector.error["code"] for vector in VECTORS if vector.error} >= set(errors.REFUSALS)


@each([vector for vector in VECTORS if vector.request.value is not None])
def test_a_request_is_these_bytes(vector: Vector):
    request = vector.request
    assert same(wire.decode(request.body), request.value)
    assert not request.canonical or wire.pack(request.value) == request.body


@each(VECTORS)
def test_a_reply_is_these_bytes(vector: Vector):
    reply = vector.reply
    assert same(protocol.decode_reply(reply.body), reply.value)
    assert wire.pack(reply.value) == reply.body
    assert reply.frames[:-1] == vector.request.frames[:-1] or "frames" in vector.name


def test_the_ids_of_keys_are_those_of_the_command():
    """The name of such a vector has the text and the owner."""
    named = [(vector, re.fullmatch(r'.* key "(.*?)"(?:, owner "(.*)")?', vector.name)) for vector in GOOD]
    keys = [(vector.request.value["task"]["id"], *match.groups()) for vector, match in named if match]
    assert {owner is None for _, _, owner in keys} == {True, False}
    for task_id, text, owner in keys:
        assert task_id == id_of_key(text, owner)


@each(GOOD)
def test_a_good_request_is_taken(vector: Vector):
    envelope = wire.decode(vector.request.body)
    specs = specs_of(protocol.parse(envelope))
    fast = protocol.read_submit(vector.request.body)
    assert fast is None or specs_of(fast) == specs
    if "task" in envelope:
        assert specs[0] == TaskSpec(**with_tuples(envelope["task"]))


@each([v for v in BAD if v.reply.value["error"]["code"] not in DECIDED_BY_THE_EDGE and v.name not in DECIDED_BY_THE_OP])
def test_a_bad_request_is_refused_with_this_error(vector: Vector):
    with pytest.raises(InvalidRequest) as caught:
        read(vector.request.body)
    reply = protocol.decode_reply(protocol.refusal(vector.reply.value["rid"], caught.value))
    assert without_text(reply) == without_text(vector.reply.value)
    assert caught.value.field is None or caught.value.message.startswith(caught.value.field)
    assert protocol.read_submit(vector.request.body) is None or refused_later(vector)


def read(message: bytes) -> None:
    specs_of(protocol.parse(wire.decode(message)))


@each([vector for vector in BAD if vector.request.value is not None])
def test_an_error_carries_the_rid_that_can_be_read(vector: Vector):
    assert protocol.rid_of(wire.decode(vector.request.body)) == vector.reply.value["rid"]


def refused_later(vector: Vector) -> bool:
    """True if the pass for ordinary submits took it and what checks its tasks then refuses it in the same way."""
    with pytest.raises(InvalidRequest) as caught:
        specs_of(protocol.read_submit(vector.request.body) or protocol.Request())
    return vector.error is not None and caught.value.field == vector.error["field"]


@each([vector for vector in GOOD if not vector.error])
def test_a_record_is_understood(vector: Vector):
    if "task" in vector.reply.value:
        record = vector.reply.value["task"]
        known = {name: value for name, value in record.items() if name in Result.__struct_fields__}
        assert wire.pack(protocol.result_fields(protocol.result_from(record))) == wire.pack(known)


@each([vector for vector in VECTORS if vector.error])
def test_an_error_is_understood(vector: Vector):
    reply = protocol.decode_reply(vector.reply.body)
    error = protocol.error_from(reply["error"])
    assert type(error) is errors.REFUSALS.get(error.code, errors.RequestRefused)
    known = {name: value for name, value in reply["error"].items() if name != "colour"}
    assert protocol.error_fields(error) == known
    if error.code in errors.REFUSALS:
        kind = errors.REFUSALS[error.code]
        assert error.retryable == kind.retryable
        assert error.stored == kind.stored or error.code == "internal"


def same(found: Any, expected: Any) -> bool:
    """Equal, and of the same types: 1, 1.0 and true are three values."""
    return repr(found) == repr(expected)


def with_tuples(task: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in task.items()}


def test_a_changed_byte_would_be_noticed():
    vector = VECTORS[0]
    changed = vector._replace(request=Message([bytes([vector.request.body[0] ^ 1])], None, canonical=True))
    assert changed.digest != vector.digest
