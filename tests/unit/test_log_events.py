"""The log as JSON: the fields are those of the text, numbers are numbers; and what the journal is told."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kingtask
from kingtask import log
from kingtask.event import Event

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


def logged(message: object, *args: Any, exc_info: bool = False) -> dict[str, Any]:
    """Log one record as JSON; return its fields without those of every line."""
    stream = io.StringIO()
    log.setup("worker", log_format="json", stream=stream)
    LOGGER.warning(message, *args, exc_info=exc_info)
    line = stream.getvalue()
    assert line.count("\n") == 1
    fields: dict[str, Any] = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert [fields.pop(name) for name in ("level", "program", "from")] == ["warning", "worker", "kingtask.test"]
    return fields


def test_the_fields_of_an_event_are_fields_and_numbers_stay_numbers() -> None:
    assert logged(Event("attempt=failed", "it's\nhere", task="6f1c", attempt=3, code=-9, limit_s=0.5)) == {
        "event": "attempt=failed",
        "task": "6f1c",
        "attempt": 3,
        "code": -9,
        "limit_s": 0.5,
        "message": "it's\nhere",
    }
    assert logged(Event("redis=up", path=Path("/x"), name="n")) == {"event": "redis=up", "path": "/x", "name": "n"}


def test_the_text_of_an_event_is_pairs_then_words() -> None:
    event = Event("redis=lost", "reconnecting", address="a:1", error="no answer", n=3, s=0.5, empty="", quote='a"b')
    assert str(event) == "redis=lost address=a:1 error='no answer' n=3 s=0.5 empty='' quote='a\"b': reconnecting"
    assert str(Event("metrics=failed")) == "metrics=failed"


@pytest.mark.parametrize("args", [(), ("x",), ({"a": 1},)])
def test_a_record_of_a_library_is_a_message(args: tuple[Any, ...]) -> None:
    message = "Task was destroyed" if not args else "%(a)d left" if isinstance(args[0], dict) else "gone: %s"
    assert logged(message, *args) == {
        "message": message % (args[0] if isinstance(args[0], dict) else args) if args else message
    }


def test_a_field_cannot_replace_those_of_every_line() -> None:
    assert logged(Event("a=b", level="critical", time="never")) == {"event": "a=b"}


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_value_comes_through(text: str, number: int, fraction: float) -> None:
    event = Event("a=b", text=text, number=number, fraction=fraction)
    assert logged(event) == {"event": "a=b", "text": text, "number": number, "fraction": fraction}


def test_a_traceback_is_a_field() -> None:
    try:
        int("first\nsecond")
    except ValueError:
        fields = logged(Event("loop=broken"), exc_info=True)
    assert fields["event"] == "loop=broken"
    assert "ValueError: invalid literal for int()" in fields["traceback"]


def calls(names: tuple[str, ...]) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call of these functions in the product, with its place."""
    for path in Path(kingtask.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                yield node, f"{path.name}:{node.lineno}"


EVENTS = ("Event", "self._event")
LOGS = tuple(f"log.{level}" for level in "debug info warning error critical exception log".split())


@pytest.mark.parametrize(("call", "place"), [pytest.param(*found, id=found[1]) for found in calls(LOGS)])
def test_the_product_logs_events_only(call: ast.Call, place: str) -> None:
    made = [arg for arg in call.args if isinstance(arg, ast.Call) and ast.unparse(arg.func) in EVENTS]
    assert made, f"{place}: expected an Event"


@pytest.mark.parametrize(("call", "place"), [pytest.param(*found, id=found[1]) for found in calls(EVENTS)])
def test_an_event_is_named_subject_and_verdict(call: ast.Call, place: str) -> None:
    if not call.args or isinstance(call.args[0], ast.Name):  # of threading, or passed on
        return
    name = ast.unparse(call.args[0])
    assert re.fullmatch(r"f?['\"]([a-z_]+|\{\w+\})=([a-z_]+|\{.+\})['\"]", name), f"{place}: {name}"
    assert not {keyword.arg for keyword in call.keywords} & {"time", "level", "program", "from", "event"}, place


def test_a_format_that_is_not_given_stays() -> None:
    stream = io.StringIO()
    log.setup("worker", log_format="json", stream=io.StringIO())
    log.setup("worker", "debug", stream=stream)  # as a reload does
    LOGGER.debug(Event("a=b"))
    assert json.loads(stream.getvalue())["event"] == "a=b"


def test_lines_are_counted_by_level() -> None:
    log.setup("worker", stream=io.StringIO())
    before = dict(log.lines)
    LOGGER.warning("a=b")
    LOGGER.warning("a=b")
    LOGGER.debug(Event("a=b"))
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
