"""The log as JSON: the fields are those of the text, numbers are numbers; and what the journal is told."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kingtask
from kingtask import log

LOGGER = logging.getLogger("kingtask.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("kingtask")
    levels = root.level, ours.level
    yield
    log.setup("test", log_format="text", stream=io.StringIO())
    while log._installed:
        handler = log._installed.pop()
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def describe_error(message: str, *args: Any, exc_info: bool = False) -> dict[str, Any]:
    """One event as it comes out, read again."""
    stream = io.StringIO()
    log.setup("worker", log_format="json", stream=stream)
    LOGGER.warning(message, *args, exc_info=exc_info)
    line = stream.getvalue()
    assert line.count("\n") == 1
    fields: dict[str, Any] = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert [fields.pop(name) for name in ("level", "program", "from")] == ["warning", "worker", "kingtask.test"]
    return fields


def test_pairs_become_fields_and_numbers_stay_numbers() -> None:
    assert describe_error("attempt=failed task=%s attempt=%d code=%s message=%r", "6f1c", 3, -9, "it's\nhere") == {
        "event": "attempt=failed",
        "task": "6f1c",
        "attempt": 3,
        "code": -9,
        "message": "it's\nhere",
    }


def test_words_behind_a_colon_are_the_message() -> None:
    assert describe_error("%s=fenced task=%s: its lease was given away", "finish", "6f1c") == {
        "event": "finish=fenced",
        "task": "6f1c",
        "message": "its lease was given away",
    }
    assert describe_error("redis=up server=%s-%s retrying=yes", "valkey", "9.1") == {
        "event": "redis=up",
        "server": "valkey-9.1",
        "retrying": "yes",
    }
    assert describe_error("failpoints=%s: under test", "a,b") == {"event": "failpoints=a,b", "message": "under test"}


@pytest.mark.parametrize("args", [(), ("x",), ({"a": 1},)])
def test_what_is_no_event_of_ours_is_a_message(args: tuple[Any, ...]) -> None:
    message = "Task was destroyed" if not args else "%(a)d left" if isinstance(args[0], dict) else "gone: %s"
    assert describe_error(message, *args) == {
        "message": message % (args[0] if isinstance(args[0], dict) else args) if args else message
    }


def test_an_event_may_not_change_who_says_it() -> None:
    assert describe_error("a=b level=%s time=%s", "critical", "never") == {"event": "a=b"}


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_value_comes_through(text: str, number: int, fraction: float) -> None:
    assert describe_error("a=b text=%s shown=%r number=%d fraction=%g", text, text, number, fraction) == {
        "event": "a=b",
        "text": text,
        "shown": text,
        "number": number,
        "fraction": fraction,
    }


def test_a_traceback_is_a_field() -> None:
    try:
        int("first\nsecond")
    except ValueError:
        fields = describe_error("loop=broken", exc_info=True)
    assert fields["event"] == "loop=broken"
    assert "ValueError: invalid literal for int()" in fields["traceback"]


def events() -> Iterator[tuple[str, str]]:
    """Every text that our code logs, and where."""
    levels = {"debug", "info", "warning", "error", "critical", "exception", "log"}
    for path in Path(kingtask.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logs = isinstance(node.func.value, ast.Name) and node.func.value.id == "log" and node.func.attr in levels
            if logs or node.func.attr == "_tell":
                texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                for text in texts:
                    if isinstance(text, str):
                        yield text, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(("text", "place"), [pytest.param(*found, id=found[1]) for found in events()])
def test_whatever_the_daemons_log_reads_as_an_event(text: str, place: str) -> None:
    shape = log._shape(text)
    assert shape is not None, f"{place}: expected pairs, then words behind a colon: {text!r}"
    names = [name for name, _ in shape.fields]
    assert len(set(names)) == len(names), place
    assert not set(names) & {"time", "level", "program", "from", "event"}, place


def test_a_format_that_is_not_given_stays() -> None:
    stream = io.StringIO()
    log.setup("worker", log_format="json", stream=io.StringIO())
    log.setup("worker", "debug", stream=stream)  # as a reload does
    LOGGER.debug("a=b")
    assert json.loads(stream.getvalue())["event"] == "a=b"


def test_lines_are_counted_by_level() -> None:
    log.setup("worker", stream=io.StringIO())
    before = dict(log.lines)
    LOGGER.warning("a=b")
    LOGGER.warning("a=b")
    LOGGER.debug("a=b")
    assert {level: n - before[level] for level, n in log.lines.items() if n != before[level]} == {"warning": 2}


def test_the_journal_is_told_how_bad_a_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        log.setup("worker", log_path=str(tmp_path), stream=stream)
        LOGGER.error("a=b")
        LOGGER.info("a=b")
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")  # inherited, and not this stream
        log.setup("worker", stream=stream)
        LOGGER.error("a=b")
    lines = (tmp_path / "journal").read_text().splitlines()
    assert [line.partition("time=")[0] for line in lines] == ["<3>", "<6>", ""]
    assert (tmp_path / "worker.log").read_text().startswith("time="), "a file is told as before"


def test_a_file_that_was_moved_is_opened_anew_when_told(tmp_path: Path) -> None:
    log.setup("worker", log_path=str(tmp_path), stream=io.StringIO())
    LOGGER.info("a=b")
    (tmp_path / "worker.log").rename(tmp_path / "worker.log.1")
    log.reopen()
    assert (tmp_path / "worker.log").read_text() == ""
    (tmp_path / "worker.log").unlink()
    tmp_path.chmod(0o500)
    log.reopen()  # it may not be possible: that is said, and nothing raised
    tmp_path.chmod(0o700)
