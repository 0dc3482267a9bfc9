"""The log: one line per event whatever it holds, and a file that may be moved or become unwritable."""

from __future__ import annotations

import io
import logging
import re
import resource
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import log
from kingtask.errors import ConfigurationError

LOGGER = logging.getLogger("kingtask.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("kingtask")
    levels = root.level, ours.level
    yield
    log.setup("test", stream=io.StringIO())
    while log._installed:
        handler = log._installed.pop()
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def to_text(level: str = "info", log_path: Path | None = None) -> io.StringIO:
    stream = io.StringIO()
    log.setup("broker", level, str(log_path) if log_path else None, stream=stream)
    return stream


def test_a_line_says_when_how_bad_who_and_what():
    stream = to_text()
    LOGGER.warning("redis=unreachable address=%s", "127.0.0.1:6379")
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warning program=broker from=kingtask\.test"
        r" redis=unreachable address=127\.0\.0\.1:6379\n",
        stream.getvalue(),
    )


@given(st.text())
def test_an_event_is_one_line_whatever_it_holds(text: str):
    stream = to_text()
    LOGGER.info("peer=%s", text)
    assert len(stream.getvalue().splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())


def test_a_traceback_stays_on_its_line():
    stream = to_text()
    try:
        int("first\nsecond")
    except ValueError:
        LOGGER.exception("loop=broken")
    assert stream.getvalue().count("\n") == 1
    assert r"\nValueError: invalid literal for int()" in stream.getvalue()


def test_the_level_is_ours_and_libraries_are_heard_from_warning_on():
    stream = to_text("debug")
    LOGGER.debug("a=1")
    logging.getLogger("asyncio").info("b=1")
    logging.getLogger("asyncio").warning("c=1")
    assert re.findall(r"\w=1", stream.getvalue()) == ["a=1", "c=1"]
    stream = to_text("error")
    LOGGER.warning("a=1")
    logging.getLogger("asyncio").warning("b=1")
    LOGGER.error("c=1")
    assert re.findall(r"\w=1", stream.getvalue()) == ["c=1"]


def test_warnings_of_python_are_events_too():
    stream = to_text()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old\nways", stacklevel=1)
        logging.captureWarnings(False)
    assert stream.getvalue().count("\n") == 1
    assert "level=warning" in stream.getvalue()


def test_setting_up_again_replaces_what_was_set_up():
    first = to_text()
    second = to_text()
    LOGGER.info("a=1")
    assert first.getvalue() == ""
    assert second.getvalue().count("a=1") == 1


def test_the_file_gets_what_stderr_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # what is no text is not for the report of a parallel run
    stream = to_text(log_path=tmp_path)
    LOGGER.info("queue=%s", "mail\n\udcff")
    text = (tmp_path / "broker.log").read_text()
    assert r"queue=mail\n\udcff" in text
    assert text.count("\n") == stream.getvalue().count("\n") == 1


def test_the_file_may_be_moved_away(tmp_path: Path):
    to_text(log_path=tmp_path)
    LOGGER.info("a=1")
    (tmp_path / "broker.log").rename(tmp_path / "broker.log.1")
    LOGGER.info("b=1")
    assert "a=1" in (tmp_path / "broker.log.1").read_text()
    assert "b=1" in (tmp_path / "broker.log").read_text()
    assert "a=1" not in (tmp_path / "broker.log").read_text()


def test_a_directory_that_vanishes_is_said_once_until_it_is_back(tmp_path: Path):
    directory = tmp_path / "log"
    directory.mkdir()
    stream = to_text(log_path=directory)
    shutil.rmtree(directory)
    LOGGER.info("a=1")
    LOGGER.info("b=1")
    assert stream.getvalue().count("log=unwritable") == 1
    directory.mkdir()
    LOGGER.info("c=1")
    assert "c=1" in (directory / "broker.log").read_text()
    shutil.rmtree(directory)
    LOGGER.info("d=1")
    assert stream.getvalue().count("log=unwritable") == 2
    assert re.findall(r"\b[a-d]=1", stream.getvalue()) == ["a=1", "b=1", "c=1", "d=1"]


def test_a_full_disk_costs_lines_and_is_said_once(tmp_path: Path):
    stream = to_text(log_path=tmp_path)
    LOGGER.info("a=1")
    path = tmp_path / "broker.log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))  # a write beyond it fails (EFBIG)
    try:
        LOGGER.info("b=1")
        LOGGER.info("c=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stream.getvalue().count("log=unwritable") == 1
    LOGGER.info("d=1")
    assert "d=1" in path.read_text()


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_log_path_that_is_no_directory(tmp_path: Path, kind: str):
    path = tmp_path / "log"
    if kind == "file":
        path.write_text("")
    with pytest.raises(ConfigurationError, match=r"log_path: expected a directory, but .*/log is not one"):
        log.setup("broker", log_path=str(path))


def test_a_log_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "broker.log").mkdir()
    with pytest.raises(ConfigurationError, match=r"log_path: cannot write .*/broker\.log: Is a directory"):
        log.setup("broker", log_path=str(tmp_path))
