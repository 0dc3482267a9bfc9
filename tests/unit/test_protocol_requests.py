"""Requests that break a rule: each costs one error that names its code, its place and what was expected there."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from kingtask import protocol, task, wire
from kingtask.errors import InvalidRequest
from kingtask.task import TaskSpec
from tests.unit.values import NOW_S

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
NAME = (
    "expected the name of an executable (letters, digits, . _ -; up to four parts joined by /, each of at most 64"
    " characters and not beginning with . or -), got "
)
UUID = "expected a UUID in lower case such as 6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11, got "
INSTANT = "expected an instant in epoch seconds, a number from 0 to 9,999,999,999, got "
INTERVAL = "expected a number from 0 to 2,592,000, got "
NAN = float("nan")
INFINITY = float("inf")


def refused(request: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        protocol.parse(wire.decode(wire.pack({"v": 1, "rid": 1, **request})))
    return caught.value


def refused_task(**fields: Any) -> InvalidRequest:
    """What the task `example` with these fields gets, as the fourth of a batch."""
    with pytest.raises(InvalidRequest) as caught:
        protocol.parse_task({"name": "example", **fields}, NOW_S, "tasks[3]")
    assert caught.value.code == "invalid_request"
    assert not caught.value.retryable
    return caught.value


# ── the envelope ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_op_has_one_row_by_the_name_on_the_wire():
    for name, op in protocol.OPS.items():
        assert (name, op.request.__struct_config__.tag) == (op.name, op.name)
    assert len({op.request for op in protocol.OPS.values()}) == len(protocol.OPS)


def ops_that(of: Callable[[protocol.Op], bool]) -> set[str]:
    return {op.name for op in protocol.OPS.values() if of(op)}


def test_the_rows_of_the_ops():
    assert ops_that(lambda op: op.writes) == {"submit", "cancel", "requeue", "forget", "pause", "resume"}
    assert ops_that(lambda op: op.by_id) == {"get", "wait", "cancel", "requeue", "forget"}
    assert ops_that(lambda op: op.audited) == {"cancel", "requeue", "forget", "pause", "resume"}
    assert ops_that(lambda op: op.acked) == {"submit", "requeue"}
    assert ops_that(lambda op: not op.permission) == {"ping"}


def test_a_request_knows_its_row():
    assert protocol.Cancel(id=ID).op is protocol.OPS["cancel"]


@pytest.mark.parametrize(
    ("version", "shown"), [(None, "nil"), (0, "0"), (2, "2"), (999, "999"), ("1", "'1'"), (True, "true"), (1.0, "1.0")]
)
def test_another_version(version: object, shown: str):
    error = refused({"v": version, "op": "ping"})
    assert (error.code, error.field) == ("unsupported_version", "v")
    assert str(error) == f"v: expected 1, got {shown}"


@pytest.mark.parametrize(
    "op", [None, "", "Ping", "PING", "ping ", "submit\0", 1, ["ping"], {"op": "ping"}, "x" * 10_240]
)
def test_another_op(op: object):
    error = refused({"op": op})
    assert (error.code, error.field) == ("unknown_op", "op")
    assert str(error).startswith(
        "op: expected one of ping, submit, get, wait, cancel, requeue, forget, list, stats, pause, resume"
    )
    assert len(str(error)) < 250


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        ({"op": "ping", "x": 1}, "x", "unknown field"),
        ({"op": "get"}, "id", "this field is required"),
        ({"op": "get", "id": ID, "uid": 5}, "uid", "unknown field; did you mean id?"),
        ({"op": "get", "id": ID, "x" * 100_000: 5}, "x" * 64, "unknown field"),
        ({"op": "get", "id": ID, "\x1b[31m": 5}, r"'\x1b[31m'", "unknown field"),
        ({"op": "get", "id": "5"}, "id", UUID + "'5'"),
        ({"op": "get", "id": 5}, "id", UUID + "5"),
        ({"op": "wait", "id": ID, "timeout_s": -1}, "timeout_s", "expected a number from 0 to 3,600, got -1"),
        ({"op": "wait", "id": ID, "timeout_s": NAN}, "timeout_s", "expected a number from 0 to 3,600, got nan"),
        ({"op": "wait", "id": ID, "timeout_s": 3601}, "timeout_s", "expected a number from 0 to 3,600, got 3601"),
        ({"op": "wait", "id": ID, "timeout_s": "30"}, "timeout_s", "expected a number from 0 to 3,600, got '30'"),
        ({"op": "wait", "id": ID, "timeout_s": True}, "timeout_s", "expected a number from 0 to 3,600, got true"),
        ({"op": "requeue", "id": ID}, "new_id", "this field is required"),
        ({"op": "pause"}, "queue", "this field is required"),
        ({"op": "submit"}, "task", "expected exactly one of task and tasks"),
        ({"op": "submit", "task": {}, "tasks": [{}]}, "task", "expected exactly one of task and tasks"),
        ({"op": "submit", "tasks": {}}, "tasks", "expected an array of 1 to 1,000 entries, got a map of 0 entries"),
        ({"op": "submit", "tasks": []}, "tasks", "expected an array of 1 to 1,000 entries, got an array of 0 entries"),
        (
            {"op": "submit", "tasks": [{}] * 1001},
            "tasks",
            "expected an array of 1 to 1,000 entries, got an array of 1,001 entries",
        ),
        ({"op": "list", "state": "ready", "limit": 0}, "limit", "expected an integer from 1 to 200, got 0"),
        ({"op": "list", "state": "ready", "limit": 201}, "limit", "expected an integer from 1 to 200, got 201"),
        ({"op": "list", "state": "ready", "limit": 2**63}, "limit", f"expected an integer from 1 to 200, got {2**63}"),
        ({"op": "list", "state": "ready", "limit": 5.5}, "limit", "expected an integer from 1 to 200, got 5.5"),
        ({"op": "list"}, "state", "this field is required"),
        (
            {"op": "list", "state": "done"},
            "state",
            "expected one of scheduled, ready, running, succeeded, failed, cancelled, expired, got 'done'",
        ),
        ({"op": "list", "state": "ready", "since": -1}, "since", INSTANT + "-1"),
    ],
)
def test_a_wrong_field(request_: dict[str, Any], field: str, message: str):
    error = refused(request_)
    assert (error.code, error.field) == ("invalid_request", field)
    assert str(error) == f"{field}: {message}"


@pytest.mark.parametrize("cursor", ["", "x", "-1:0", "1:-1", "1:", ":1", "1:1:1", "1e9:0", "9" * 17 + ":0", "1:1\n", 5])
def test_a_cursor_that_list_never_gave(cursor: object):
    error = refused({"op": "list", "state": "failed", "cursor": cursor})
    assert (error.code, error.field) == ("invalid_request", "cursor")


def test_ten_thousand_tasks_are_refused_before_they_are_looked_at():
    assert refused({"op": "submit", "tasks": [{}] * 10_001}).code == "too_big"


def test_one_bad_task_of_a_hundred_is_refused_alone():
    message = protocol.encode_request(
        1, "submit", {"tasks": [{"name": "x"}] * 40 + [{"name": "/x"}] + [{"name": "x"}] * 59}
    )
    request = protocol.parse(wire.decode(message))
    assert isinstance(request, protocol.Submit)
    assert request.tasks is not None
    outcomes: list[TaskSpec | InvalidRequest] = []
    for i, value in enumerate(request.tasks):
        try:
            outcomes.append(protocol.parse_task(value, NOW_S, f"tasks[{i}]"))
        except InvalidRequest as error:
            outcomes.append(error)
    bad = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]
    assert [error.field for error in bad] == ["tasks[40].name"]


# ── a task ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"id": ""}, "id", UUID + "''"),
        ({"id": ID[:-1]}, "id", f"{UUID}'{ID[:-1]}'"),
        ({"id": ID + "0"}, "id", f"{UUID}'{ID}0'"),
        ({"id": ID.replace("f", "g")}, "id", f"{UUID}'{ID.replace('f', 'g')}'"),
        ({"id": ID.upper()}, "id", f"{UUID}'{ID.upper()}'"),
        ({"id": ID + "\n"}, "id", rf"{UUID}'{ID}\n'"),
        ({"id": ID.replace("a", "а")}, "id", rf"{UUID}'{ID.replace('a', chr(92) + 'u0430')}'"),  # a Cyrillic а
        ({"id": uuid.UUID(ID).bytes}, "id", UUID + "binary of 16 bytes"),
        ({"id": 5}, "id", UUID + "5"),
        ({"name": None}, "name", NAME + "nil"),
        ({"name": b"x"}, "name", NAME + "binary of 1 byte"),
        ({"colour": "blue"}, "colour", "unknown field"),
        ({"prority": 5}, "prority", "unknown field; did you mean priority?"),
        ({"timeout": 5}, "timeout", "unknown field"),
        ({"args": "12 45"}, "args", "expected an array of at most 256 entries, got '12 45'"),
        ({"args": {"0": "a"}}, "args", "expected an array of at most 256 entries, got a map of 1 entry"),
        ({"args": None}, "args", "expected an array of at most 256 entries, got nil"),
        ({"args": ["a", 5]}, "args[1]", "expected a string, got 5"),
        ({"args": ["a", None]}, "args[1]", "expected a string, got nil"),
        ({"args": ["a", ["b"]]}, "args[1]", "expected a string, got an array of 1 entry"),
        ({"args": [b"a"]}, "args[0]", "expected a string, got binary of 1 byte"),
        ({"args": ["a", "b\0"]}, "args[1]", "expected no NUL character (an argument cannot hold one)"),
        ({"args": ["a"] * 257}, "args", "expected an array of at most 256 entries, got an array of 257 entries"),
        ({"args": ["a", "b" * 131_072]}, "args[1]", "expected at most 131,071 bytes, got 131,072"),
        ({"args": ["ä" * 65_536]}, "args[0]", "expected at most 131,071 bytes, got 131,072"),
        ({"args": ["a" * 131_071] * 8}, "args", None),
        ({"args": ["a" * 131_071] * 9}, "args", "expected at most 1,048,576 bytes in all, got 1,179,648"),
        ({"args": ["\ud800"]}, "args[0]", r"expected text, got '\ud800', which UTF-8 cannot hold"),
        ({"start_at": NAN}, "start_at", INSTANT + "nan"),
        ({"start_at": INFINITY}, "start_at", INSTANT + "inf"),
        ({"start_at": -INFINITY}, "start_at", INSTANT + "-inf"),
        ({"start_at": -1}, "start_at", INSTANT + "-1"),
        ({"start_at": "now"}, "start_at", INSTANT + "'now'"),
        ({"start_at": True}, "start_at", INSTANT + "true"),
        ({"start_at": None}, "start_at", INSTANT + "nil"),
        ({"start_at": 2**63}, "start_at", f"{INSTANT}{2**63}"),
        ({"start_at": 2**64 - 1}, "start_at", f"{INSTANT}{2**64 - 1}"),
        ({"start_at": NOW_S * 1000}, "start_at", INSTANT + "1800000000000.0"),
        (
            {"start_at": NOW_S + task.MAX_AHEAD_S + 1},
            "start_at",
            f"expected at most 10 years ahead, got {NOW_S + task.MAX_AHEAD_S + 1!r}",
        ),
        ({"start_at": NOW_S, "delay_s": 5}, "delay_s", "expected start_at or delay_s, not both, got 5.0"),
        ({"delay_s": -1}, "delay_s", "expected a number from 0 to 315,619,200, got -1"),
        ({"delay_s": 1e308}, "delay_s", "expected a number from 0 to 315,619,200, got 1e+308"),
        ({"delay_s": NAN}, "delay_s", "expected a number from 0 to 315,619,200, got nan"),
        ({"retry": 5}, "retry", "expected an array of at most 64 entries, got 5"),
        ({"retry": "5,8,9"}, "retry", "expected an array of at most 64 entries, got '5,8,9'"),
        ({"retry": [1] * 65}, "retry", "expected an array of at most 64 entries, got an array of 65 entries"),
        ({"retry": [5, -1]}, "retry[1]", INTERVAL + "-1"),
        ({"retry": [5, NAN]}, "retry[1]", INTERVAL + "nan"),
        ({"retry": [5, INFINITY]}, "retry[1]", INTERVAL + "inf"),
        ({"retry": [2_592_001]}, "retry[0]", INTERVAL + "2592001"),
        ({"retry": [[5]]}, "retry[0]", INTERVAL + "an array of 1 entry"),
        ({"retry": ["5"]}, "retry[0]", INTERVAL + "'5'"),
        ({"retry": [True]}, "retry[0]", INTERVAL + "true"),
        ({"retry": [None]}, "retry[0]", INTERVAL + "nil"),
        ({"queue": 5}, "queue", None),
        ({"priority": 10}, "priority", "expected an integer from 0 to 9, got 10"),
        ({"priority": -1}, "priority", "expected an integer from 0 to 9, got -1"),
        ({"priority": True}, "priority", "expected an integer from 0 to 9, got true"),
        ({"priority": 5.0}, "priority", "expected an integer from 0 to 9, got 5.0"),
        ({"priority": "5"}, "priority", "expected an integer from 0 to 9, got '5'"),
        ({"priority": 2**64 - 1}, "priority", f"expected an integer from 0 to 9, got {2**64 - 1}"),
        ({"time_limit_s": 0}, "time_limit_s", "expected a number from 0.001 to 2,592,000, got 0"),
        ({"time_limit_s": -1}, "time_limit_s", "expected a number from 0.001 to 2,592,000, got -1"),
        ({"time_limit_s": NAN}, "time_limit_s", "expected a number from 0.001 to 2,592,000, got nan"),
        ({"time_limit_s": 1e9}, "time_limit_s", "expected a number from 0.001 to 2,592,000, got 1000000000.0"),
        ({"time_limit_s": "30"}, "time_limit_s", "expected a number from 0.001 to 2,592,000, got '30'"),
        ({"stdin": "text"}, "stdin", "expected binary of at most 1,048,576 bytes, got 'text'"),
        (
            {"stdin": b"0" * 1_048_577},
            "stdin",
            "expected binary of at most 1,048,576 bytes, got binary of 1,048,577 bytes",
        ),
        ({"env": ["A=b"]}, "env", "expected a map of at most 64 entries, got an array of 1 entry"),
        ({"env": {5: "b"}}, "env", "expected strings as keys, got 5"),
        ({"env": {"A": 5}}, "env['A']", "expected a string, got 5"),
        ({"env": {"A": "", "B": None}}, "env['B']", "expected a string, got nil"),
        ({"env": {"A": "\0"}}, "env['A']", "expected no NUL character"),
        ({"env": {"A": "\ud800"}}, "env['A']", r"expected text, got '\ud800', which UTF-8 cannot hold"),
        ({"env": {f"A{n}": "" for n in range(65)}}, "env", None),
        ({"env": {"A": "b" * 32_768}}, "env", "expected at most 32,768 bytes in all, got 32,771"),
        ({"keep_result_s": 0}, "keep_result_s", "expected a number from 1 to 31,536,000, got 0"),
        ({"keep_result_s": -1}, "keep_result_s", "expected a number from 1 to 31,536,000, got -1"),
        ({"keep_result_s": 1e12}, "keep_result_s", "expected a number from 1 to 31,536,000, got 1000000000000.0"),
        ({"expires_at": -1}, "expires_at", INSTANT + "-1"),
        (
            {"start_at": NOW_S, "expires_at": NOW_S - 1},
            "expires_at",
            "expected an instant after start_at, got 1799999999.0",
        ),
        ({"stderr": "ignore"}, "stderr", "expected one of fail, keep, got 'ignore'"),
        ({"stderr": True}, "stderr", "expected one of fail, keep, got true"),
        ({"on_lost": "exactly_once"}, "on_lost", "expected one of fail, retry, got 'exactly_once'"),
        ({"on_lost": None}, "on_lost", "expected one of fail, retry, got nil"),
        ({"tags": "a"}, "tags", "expected an array of at most 16 entries, got 'a'"),
        ({"tags": ["a"] * 17}, "tags", "expected an array of at most 16 entries, got an array of 17 entries"),
        ({"tags": ["a", ""]}, "tags[1]", "expected a string of 1 to 64 characters, got ''"),
        (
            {"tags": ["a" * 65]},
            "tags[0]",
            f"expected a string of 1 to 64 characters, got '{'a' * 64}'… (65 characters)",
        ),
    ],
)
def test_a_wrong_field_of_a_task(fields: dict[str, Any], field: str, message: str | None):
    if fields == {"args": ["a" * 131_071] * 8}:  # 1 MiB to the byte, each with its NUL
        assert protocol.parse_task({"name": "example", **fields}, NOW_S, "task").args[7]
        return
    error = refused_task(**fields)
    assert error.field == f"tasks[3].{field}"
    if message is not None:
        assert str(error) == f"tasks[3].{field}: {message}"


@pytest.mark.parametrize("value", [None, 5, "example", ["example"], b"x", True])
def test_a_task_that_is_no_map(value: object):
    with pytest.raises(InvalidRequest, match=r"^tasks\[3\]: expected a map, got ") as caught:
        protocol.parse_task(value, NOW_S, "tasks[3]")
    assert caught.value.field == "tasks[3]"


def test_a_task_without_a_name():
    with pytest.raises(InvalidRequest, match=r"^task\.name: this field is required$"):
        protocol.parse_task({"args": ["12"]}, NOW_S, "task")


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/bin/sh", "a/../b", "a/../../x", "a//b", ".", "..", ".x", "x/", "/", "~", "~root", "-x", "a/-x"),
        *("a/.x", "a b", "a\0b", "a\nb", "a\n", "\u202ex", "é", "e\u0301", "a;b", "$(x)", "a/b/c/d/e", ""),
        *("a" * 65, "a/" + "b" * 65, "x" * 1_000_000),
    ],
)
def test_a_name_that_could_leave_the_directory_or_confuse_its_reader(name: str):
    error = refused_task(name=name)
    assert error.field == "tasks[3].name"
    assert str(error).startswith("tasks[3].name: " + NAME)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    "name", ["x", "X9_", "a/b/c/d", "CON", "a..b", "a-b.sh", "0", "_", "a" * 64, "/".join(["a" * 64] * 4)]
)
def test_a_name_of_an_executable(name: str):
    assert protocol.parse_task({"name": name}, NOW_S, "task").name == name


@pytest.mark.parametrize("queue", ["", "a b", "{a}", "a:b", "a/b", ".a", "-a", "a\n", "é", "*", "a" * 65])
def test_a_queue_that_could_be_taken_for_another_key(queue: str):
    assert refused_task(queue=queue).field == "tasks[3].queue"
    assert refused({"op": "pause", "queue": queue}).field == "queue"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "LD_",
            "DYLD_INSERT_LIBRARIES",
            "PATH",
            "PYTHONPATH",
            "PYTHONHOME",
            "BASH_ENV",
        ),
        *("ENV", "IFS", "PERL5LIB", "RUBYOPT", "NODE_OPTIONS", "CLASSPATH", "JAVA_TOOL_OPTIONS", "LUA_PATH"),
        *("GLIBC_TUNABLES", "KINGTASK_ID", "KINGTASK_ANYTHING"),
        *("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "XDG_CONFIG_HOME", "XDG_"),
    ],
)
def test_an_environment_that_decides_which_code_runs(name: str):
    error = refused_task(env={name: "x"})
    assert str(error) == f"tasks[3].env['{name}']: this name may not be set by a client (it decides which code is run)"


@pytest.mark.parametrize("name", ["", "=x", "a=b", "9a", "a b", "a-b", "a\0", "a\n", "é", "a" * 129, "\x1b[31m"])
def test_a_name_that_no_environment_can_hold(name: str):
    error = refused_task(env={name: "x"})
    assert error.field == f"tasks[3].env[{name[:64]!a}]"
    assert error.message.isprintable()


@pytest.mark.parametrize(
    "arg",
    [
        "",
        " ",
        "a b",
        "a\nb",
        "'\"",
        "$(reboot)",
        "`x`",
        ";",
        "--",
        "-x",
        "*",
        "~",
        "\\",
        "ä€😀",
        "\x1b[31m",
        "a=b",
        "%s",
    ],
)
def test_an_argument_has_no_meaning_but_its_characters(arg: str):
    message = protocol.encode_request(1, "submit", {"task": {"name": "x", "args": [arg]}})
    request = protocol.parse(wire.decode(message))
    assert isinstance(request, protocol.Submit)
    assert protocol.parse_task(request.task, NOW_S, "task").args == (arg,)


def test_now_may_be_said_in_four_ways():
    plain = protocol.parse_task({"name": "x"}, NOW_S, "task")
    for fields in ({"start_at": 0}, {"start_at": 0.0}, {"delay_s": 0}, {"start_at": 0, "delay_s": 0}):
        assert protocol.parse_task({"name": "x", **fields}, NOW_S, "task") == plain


def test_an_instant_in_the_past_is_allowed_and_an_interval_of_nothing_too():
    spec = protocol.parse_task({"name": "x", "start_at": 1, "retry": [0, 0.5]}, NOW_S, "task")
    assert (spec.start_at, spec.retry) == (1.0, (0.0, 0.5))


def test_ten_years_ahead_are_allowed():
    at = NOW_S + task.MAX_AHEAD_S
    assert protocol.parse_task({"name": "x", "start_at": at}, NOW_S, "task").start_at == at


def test_no_letter_of_any_alphabet_passes_for_a_hexadecimal_digit():
    for code in range(0x80, sys.maxunicode + 1):
        digit = chr(code)
        if digit.casefold()[:1] in "0123456789abcdef" or digit.isdigit():
            assert refused_task(id=digit + ID[1:]).field == "tasks[3].id"


def test_every_limit_is_told_by_ping():
    assert protocol.LIMITS["message_bytes"] == wire.MAX_MESSAGE_BYTES
    assert all(isinstance(value, (int, float)) and value > 0 for value in protocol.LIMITS.values())
