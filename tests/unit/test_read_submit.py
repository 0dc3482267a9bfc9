"""The short way to read a submit takes nothing that the long way would refuse or read differently."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kingtask import protocol, wire
from kingtask.errors import InvalidRequest
from kingtask.task import TaskSpec
from kingtask.validation import convert
from tests.unit.values import specs

TASK: dict[str, Any] = {"name": "example", "args": ["12", "45"], "retry": [5, 8.5], "priority": 3, "stdin": b"x"}


def message(**fields: Any) -> bytes:
    return wire.pack({"v": 1, "rid": 7, "op": "submit", **fields})


def the_long_way(packed: bytes) -> list[TaskSpec]:
    request = protocol.parse(wire.decode(packed))
    assert isinstance(request, protocol.Submit)
    values = request.tasks if request.tasks is not None else [request.task]
    return [convert(value, TaskSpec) for value in values]


def test_an_ordinary_submit_goes_the_short_way() -> None:
    single, several = message(task=TASK), message(tasks=[TASK, {"name": "other"}])
    read = protocol.read_submit(single)
    assert read is not None
    assert ([read.task], read.rid) == (the_long_way(single), 7)
    read = protocol.read_submit(several)
    assert read is not None
    assert read.tasks == the_long_way(several)


def test_parse_task_takes_what_was_read() -> None:
    read = protocol.read_submit(message(task={"name": "example", "args": ["a\0b"]}))
    assert read is not None
    with pytest.raises(InvalidRequest, match=r"task\.args\[0\]"):
        protocol.parse_task(read.task, 0.0, "task")


NAME = b"\xa4name\xa1a"
TWICE = NAME + b"\xa8priority\x05\xa8priority\x05"


def with_task(packed: bytes) -> bytes:
    return message(task=1).replace(b"\xa4task\x01", b"\xa4task" + packed)


@pytest.mark.parametrize("head", [b"\x81", b"\xde\0\x01"])
def test_a_map_with_a_longer_head_goes_the_short_way(head: bytes) -> None:
    """As msgspec sends each TaskSpec."""
    read = protocol.read_submit(with_task(head + NAME))
    assert read is not None
    assert read.task == TaskSpec(name="a")


@pytest.mark.parametrize(
    "packed",
    [
        message(task={**TASK, "env": {"A": "1"}}),
        message(task={**TASK, "unknown": 1}),
        message(task={**TASK, "priority": 10}),
        message(task={**TASK, "stdin": "text"}),
        message(task=None),
        message(),
        message(tasks=[]),
        message(tasks=[TASK, 3]),
        message(task=TASK, tasks=[TASK]),
        message(task=TASK) + b"\0",
        with_task(b"\x83" + TWICE),
        with_task(b"\xde\0\x03" + TWICE),
        with_task(b"\xdf\0\0\0\x01" + NAME),
        message(task=TASK)[:-1],
        b"",
        message(task="x").replace(b"\xa1x", b"\xa1\xff"),
        message(task={"name": "x"}).replace(b"\xa4name", b"\xa4nam\xff"),
        message(task={"name": "x", "args": ["a"]}).replace(b"\xa1a", b"\xa3\xed\xa0\x80"),
        message(task="x").replace(b"\xa1x", b"\x91" * 1_000_000),
        message(task="x").replace(b"\xa1x", b"\x81\xa1a" * 1_000_000),
        message(task={"name": "x", "args": ["a"]}).replace(b"\x91\xa1a", b"\x91" * 1_000_000),
        message(task={"name": "x", "args": ["a"]}).replace(b"\x91\xa1a", b"\xdd\xff\xff\xff\xff"),
        message(tasks=["x"]).replace(b"\x91\xa1x", b"\xdd\xff\xff\xff\xff"),
        wire.pack({"v": 1, "rid": 7, "op": "get", "task": TASK}),
        wire.pack({"v": 2, "rid": 7, "op": "submit", "task": TASK}),
        wire.pack({"v": 1, "rid": True, "op": "submit", "task": TASK}),
    ],
)
def test_anything_unusual_goes_the_long_way(packed: bytes) -> None:
    assert protocol.read_submit(packed) is None


scalars = st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
field_names = st.sampled_from([field.name for field in msgspec.structs.fields(TaskSpec)])
tasks = st.dictionaries(
    field_names, values | st.sampled_from(["default", "fail", "keep", "retry", 1.5, 3]), max_size=6
).map(lambda fields: {"name": "example", **fields})


@given(tasks, st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
@example(TASK, 0, b"", 0)
def test_what_the_short_way_takes_the_long_way_reads_the_same(
    fields: dict[str, Any], at: int, put: bytes, cut: int
) -> None:
    """Messages that are right, nearly right, and right ones with some bytes changed."""
    packed = message(task=fields)
    at = min(at, len(packed))
    packed = packed[:at] + put + packed[at + cut :]
    read = protocol.read_submit(packed)
    if read is not None:
        assert (read.tasks or [read.task]) == the_long_way(packed)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_left_to_the_long_way(end: bytes) -> None:
    for begin in (message(task=TASK), message(tasks=[TASK]), b"\x84\xa1v\x01\xa3rid\x01\xa2op\xa6submit\xa4task"):
        protocol.read_submit(begin[: len(begin) - len(end)] + end)
        protocol.read_submit(begin + end)


@given(specs())
def test_whatever_is_valid_arrives_as_it_was_sent(spec: TaskSpec) -> None:
    read = protocol.read_submit(message(task=spec))
    assert (read is None) == bool(spec.env)
    assert read is None or read.task == spec
