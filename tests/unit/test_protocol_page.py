"""PROTOCOL.md says what the code does: its tables, and the bytes of its session."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from kingtask import errors, protocol, task, wire
from kingtask.errors import InvalidRequest
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.store import codec
from kingtask.task import TaskSpec
from tests.unit.page import TEXT, describe, documented, section


def default_of(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    match value:
        case None:
            return "–"
        case ():
            return "[]"
        case b"" | "":
            return "empty"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def own_fields(kind: type[msgspec.Struct]) -> list[msgspec.structs.FieldInfo]:
    """Without those of the envelope."""
    return [field for field in msgspec.structs.fields(kind) if field.name not in protocol.Request.__struct_fields__]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_op_has_its_section_in_order():
    listed = re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE)
    assert listed == list(protocol.OPS)
    assert documented(section("Messages"))["op"][0] == f"one of {', '.join(protocol.OPS)}"


@pytest.mark.parametrize("op", protocol.OPS)
def test_the_fields_of_an_op(op: str):
    fields = own_fields(protocol.OPS[op].request)
    shown = documented(section(f"`{op}`"))
    assert list(shown) == [field.name for field in fields]
    for field in fields:
        if field.name != "task":
            assert shown[field.name][:2] == [describe(field.type), default_of(field)]


def test_the_fields_of_a_task():
    shown = documented(section("A task"))
    assert list(shown) == list(TaskSpec.__struct_fields__)
    for field in msgspec.structs.fields(TaskSpec):
        assert shown[field.name][:2] == [describe(field.type), default_of(field)]


def test_the_limits_in_words_are_those_of_the_code():
    shown = documented(section("A task"))
    assert f"{task.MAX_ARG_BYTES:,} bytes each, and {task.MAX_ARGS_BYTES:,} together" in shown["args"][2]
    assert f"at most {task.MAX_ENV_BYTES:,} bytes" in shown["env"][2]
    assert all(f"`{prefix}*`" in shown["env"][2] for prefix in task.ENV_REFUSED_PREFIXES)
    assert documented(section("Messages"))["rid"][0].endswith(f"of at most {protocol.MAX_RID_LENGTH} characters")


@pytest.mark.parametrize(("kind", "table"), [(Result, 0), (Attempt, 1)], ids=["Result", "Attempt"])
def test_the_fields_of_a_record(kind: type[msgspec.Struct], table: int):
    part = section("A task's record").split("An attempt:")[table]
    shown = documented(part)
    assert list(shown) == list(kind.__struct_fields__)
    for field in msgspec.structs.fields(kind):
        default = {"required": "always there", "–": "nil"}.get(default_of(field), default_of(field))
        assert shown[field.name][1] == default


def test_what_is_kept_of_an_attempt():
    assert f"at most {codec.STDERR_TAIL_BYTES:,} bytes" in section("A task's record")


def test_the_error_codes():
    shown = documented(section("Errors"), "code")
    assert list(shown) == list(errors.REFUSALS)
    for code, cls in errors.REFUSALS.items():
        assert shown[code][:2] == ["yes" if cls.retryable else "no", cls.stored]


def test_the_fields_of_an_error():
    error = errors.Busy("why", field="task", retry_after_s=1.0)
    assert list(documented(section("Errors"), "field of `error")) == list(protocol.error_fields(error))


def test_the_limits():
    shown = documented(section("Limits"), "limit")
    assert {name: row[0] for name, row in shown.items()} == {
        name: f"{value:,.0f}" for name, value in protocol.LIMITS.items()
    }


def test_the_states():
    assert set(re.findall(r"`(\w+)`", section("States"))) == set(State)


# ── the session ──────────────────────────────────────────────────────────────────────────────────────────────────────

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
SUBMIT = {"id": ID, "name": "example", "args": ["12", "45"], "retry": [5, 8, 9]}
RESULT = Result(
    id=ID,
    name="example",
    queue="default",
    priority=5,
    state=State.SUCCEEDED,
    created_at=1800000000.25,
    due_at=1800000000.25,
    args=("12", "45"),
    attempt=1,
    started_at=1800000000.252,
    finished_at=1800000000.26,
    stdout=b"57\n",
    stdout_size=3,
    attempts=(
        Attempt(number=1, worker="host.4711.5a1f09", started_at=1800000000.252, ended_at=1800000000.259, exit_code=0),
    ),
)


def exchanges() -> list[tuple[bytes, bytes]]:
    """The page's requests, and what a broker answers."""
    with pytest.raises(InvalidRequest) as caught:
        protocol.parse_task({"name": "example", "retry": [5, -1]}, 1_800_000_000.0, "task")
    return [
        (
            protocol.encode_request(1, "submit", {"task": SUBMIT}),
            protocol.ok(1, {"id": ID, "outcome": "created", "ack": "fsync"}),
        ),
        (
            protocol.encode_request(2, "wait", {"id": ID, "timeout_s": 10}),
            protocol.ok(2, {"task": protocol.result_fields(RESULT), "pending": False}),
        ),
        (
            protocol.encode_request("third", "submit", {"task": {"name": "example", "retry": [5, -1]}}),
            protocol.refusal("third", caught.value),
        ),
    ]


def shown_session() -> str:
    """As it stands on the page: each message in words, then its bytes."""
    parts = []
    for messages in exchanges():
        for arrow, message in zip("→←", messages, strict=True):
            words = json.dumps(protocol.decode_reply(message) if arrow == "←" else wire.decode(message), default=binary)
            dump = "\n".join(message[i : i + 32].hex(" ") for i in range(0, len(message), 32))
            parts.append(f"{arrow} {words}\n\n{dump}\n")
    return "```text\n" + "\n".join(parts) + "```\n"


def binary(value: Any) -> str:
    assert isinstance(value, bytes)
    return f"binary {value.hex(' ')}"


def test_the_session_is_what_would_be_sent():
    shown = TEXT.partition("<!-- session -->\n")[2].partition("<!-- end of session -->")[0]
    assert shown == shown_session()


def test_the_bytes_of_the_session_are_understood():
    for request, reply in exchanges():
        asked, answered = wire.decode(request), protocol.decode_reply(reply)
        protocol.parse(asked)
        assert asked["rid"] == answered["rid"]
    assert protocol.result_from(protocol.decode_reply(exchanges()[1][1])["task"]) == RESULT
