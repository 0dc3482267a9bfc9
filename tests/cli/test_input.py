"""What people and scripts get wrong on the command line, as processes: a status, a line that helps, no traceback."""

from __future__ import annotations

import os
import pty
import subprocess
import threading

import pytest

from kingtask.cli import batch
from tests.cli.tree import KINGTASK, PATIENCE_S, environment, kingtask

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["submit", "--at", "yesterday", "x"], "2026-07-01T08:30:00Z"),
        (["submit", "--at", "24:61", "x"], "not a time"),
        (["submit", "--at", "2026-02-30 10:00", "x"], "day is out of range"),
        (["submit", "--retry", "1,,x", "x"], "entry 2 is ''"),
        (["submit", "--timeout", "-1", "x"], "not a duration"),
        (["submit", "--timeout", "nan", "x"], "not a duration"),
        (["submit", "--wait=x", "x"], "not a duration"),
        (["submit", "--tiem-limit", "5", "x"], "--time-limit"),
        (["submit", "--stdin", "/no/such/file", "x"], "No such file"),
        (["submit", "--stdin", "/", "x"], "Is a directory"),
        (["submit", "--from", "/no/such/file"], "No such file"),
        (["submit", "--from", "/"], "Is a directory"),
        (["submit"], "Missing argument NAME"),
        (["get", "nonsense"], "is not a UUID"),
        (["wait"], "Missing argument"),
        (["wait", "--wiat", UNKNOWN], "No such option"),
        (["list", "--limit", "-1"], "x>=0"),
        (["list", "--state", "nope"], "'scheduled'"),
        (["pause", "a/b"], "expected letters"),
        (["dev", "--port", "99999"], "65534"),
        (["dev", "--bin-path", "/nowhere"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_usage_and_says_what_is_expected(words, part):
    done = kingtask(*words, broker="127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, b"")
    assert part in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("", "names no address"),
        (" , ,", "names no address"),
        ("127.0.0.1:0", "'127.0.0.1:0'"),
        ("127.0.0.1:65536", "'127.0.0.1:65536'"),
        ("http://127.0.0.1:9595", "'http://127.0.0.1:9595'"),
        ("[::1", "'[::1'"),
        ("a$b:1", "'a$b:1'"),
        ("ipc:///" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_an_address_that_is_none_is_a_configuration_error_whoever_says_it(address, part):
    told = kingtask("ping", "--broker", address)
    assert (told.returncode, told.stdout, b"Traceback" in told.stderr) == (3, b"", False)
    assert part in told.stderr.decode()
    if address:  # an empty variable is as good as none, as usual
        by_environment = kingtask("ping", env={"KINGTASK_BROKER": address})
        assert (by_environment.returncode, by_environment.stderr) == (3, told.stderr)


def test_a_line_without_an_end_is_refused_before_it_takes_the_memory(dev):
    """Soon: 32 MiB came in pieces of 64 KiB, of which each copied all before it."""
    done = dev.run("submit", "--from", "-", stdin=b"x" * (batch.LONGEST_LINE_BYTES + batch.READ_BYTES))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"a line is longer than" in done.stderr


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_lines_are_the_same_however_they_are_cut(dev, ending):
    reading, writing = os.pipe()
    lines = b'{"name": "example"}\n\nnonsense\n{"name": "example"}' + ending

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for i in range(0, len(lines), 7):
                pipe.write(lines[i : i + 7])

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        done = subprocess.run(
            [*KINGTASK, "submit", "--from", "-"],
            stdin=pipe,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            env=environment(dev.broker),
        )
    thread.join()
    found = [(line.split(b",")[0], b'"outcome":"created"' in line) for line in done.stdout.splitlines()]
    assert found == [(b'{"line":1', True), (b'{"line":3', False), (b'{"line":4', True)]


@pytest.mark.parametrize("columns", ["20", "1"])
def test_on_a_narrow_terminal_nothing_is_cut(dev, columns):
    """A terminal of so many columns: whoever reads the table there gets the ids whole."""
    task_id = dev.submit("--delay", "1h", "--queue", "narrow", "example")
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*KINGTASK, "list", "--queue", "narrow"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(dev.broker, {"COLUMNS": columns, "TERM": "dumb"}),
        ) as process:
            os.close(theirs)
            seen = b""
            while task_id.encode() not in seen:
                seen += os.read(ours, 4096)
            assert process.wait(PATIENCE_S) == 0
    finally:
        os.close(ours)
    assert b"\x1b" not in seen
