"""What is printed for programs and for people."""

from __future__ import annotations

import json

import msgspec
import pytest

from kingtask.cli import console, result_view
from kingtask.cli.tasks import description
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.worker.exec.outcome import judge

RESULT = Result(
    id="6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11",
    name="x",
    queue="default",
    priority=5,
    state=State.FAILED,
    created_at=1.5,
    due_at=1.5,
    args=("ä", "\n"),
    reason="exit",
    stdout=b"\xff\0",
    stderr="grün\n".encode(),
    stdout_size=2,
    stderr_size=6,
    attempts=(Attempt(number=1, worker="w", started_at=1.0, ended_at=2.0, exit_code=3, stderr_tail=b"\xfe"),),
)


def test_a_result_is_one_line_of_json_with_every_field(capfd: pytest.CaptureFixture[str]):
    console.write_json(console.result_fields(RESULT))
    line = capfd.readouterr().out
    assert line.count("\n") == 1
    fields = json.loads(line)
    expected = {field.name for field in msgspec.structs.fields(Result)} - {"stdout"}
    assert set(fields) == expected | {
        "stdout_b64",
        "success",
        "exit_code",
        "signal",
        "truncated",
        "stdout_cut",
        "stderr_cut",
    }
    assert (fields["stdout_b64"], fields["stderr"], fields["args"]) == ("/wA=", "grün\n", ["ä", "\n"])
    assert fields["attempts"][0]["stderr_tail_b64"] == "/g=="


def test_a_row_holds_only_what_a_list_knows():
    assert "stdout" not in console.row_fields(RESULT)
    assert console.row_fields(RESULT)["state"] == "failed"


def test_nothing_of_a_task_reaches_a_terminal_unescaped():
    assert console.visible("a\x1b[31mb\r\n\u202eö") == "a\\x1b[31mb\\r\\n\\u202eö"
    assert "\x1b" not in console.table(("A",), [("\x1b]0;x\x07",)])


def test_a_table_is_aligned():
    assert console.table(("A", "N"), [("long", 1), ("x", 100)], right=(1,)) == "A       N\nlong    1\nx     100"


def described(stderr: bytes, attempt: dict[str, object]) -> str:
    """What `get` shows of a task that has failed once."""
    last = Attempt(number=1, worker="w", started_at=1.0, ended_at=2.0, reason="x", **attempt)  # type: ignore[arg-type]
    return description(
        msgspec.structs.replace(
            RESULT, stdout=b"", stdout_size=0, stderr=stderr, stderr_size=len(stderr), attempts=(last,)
        )
    )


@pytest.mark.parametrize("stderr", ["broken", "a: b: broken\n", "ß" * 600 + ": broken\n", "ß" * 601 + ": broken\n"])
def test_what_stands_below_as_stderr_is_not_quoted_above(stderr):
    data = stderr.encode()
    verdict = judge(0, data, len(data), keep_stderr=False, stopped=None, limit_s=1)
    assert "broken" in verdict.message
    for message in (verdict.message, f"{verdict.message}; it left a process behind", ""):
        text = described(data, {"exit_code": 0, "message": message, "stderr_tail": data[-1001:]})
        assert text.count("broken") == 1
        assert "\ufffd" not in text
        assert f"  {stderr.strip()}" in text.splitlines()
        assert ("left a process" in text) == ("left a process" in message)


def test_what_does_not_stand_below_is_quoted():
    assert "earlier trouble" in described(b"later", {"stderr_tail": b"earlier trouble\n"})
    assert "earlier trouble" in described(b"", {"message": "it wrote: earlier trouble"})
    assert "nothing: on stderr" in described(b"\n", {"message": "nothing: on stderr"})


def test_of_a_request_that_was_dropped_people_see_that_it_was():
    gone = msgspec.structs.replace(RESULT, args=(), tags=(), request_dropped=True)
    assert "args, stdin, env and tags" in description(gone)
    assert "args, stdin, env and tags" not in description(RESULT)


def test_of_an_output_that_was_dropped_people_see_how_much_there_was(capfd: pytest.CaptureFixture[str]):
    dropped = msgspec.structs.replace(RESULT, stdout=b"", stderr=b"", stdout_size=12_345, stderr_size=0, dropped=True)
    shown = [line for line in description(dropped).splitlines() if line.startswith("std")]
    assert shown == ["stdout      12,345 bytes, dropped to make room for later ones"]
    result_view.show(dropped, as_json=False, propagate=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert (
        err.splitlines()[0] == "kingtask: the output was dropped to make room for later ones (stdout had 12,345 bytes)"
    )
    result_view.show(dropped, as_json=True, propagate=False)
    fields = json.loads(capfd.readouterr().out)
    assert (fields["dropped"], fields["truncated"], fields["stdout"], fields["stdout_size"]) == (True, True, "", 12_345)
