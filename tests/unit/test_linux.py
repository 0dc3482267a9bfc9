"""Calls of Linux that the standard library lacks."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kingtask import linux
from kingtask.errors import ConfigurationError
from tests.processes import descriptors


def test_a_timerfd_becomes_readable_once_and_not_before_its_time() -> None:
    fd = linux.timerfd_create()
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        start_ns = time.monotonic_ns()
        linux.timerfd_start(fd, 2_000_000)
        assert poll.poll(30_000) == [(fd, select.POLLIN)]
        assert time.monotonic_ns() - start_ns >= 2_000_000
        assert os.read(fd, 8) == (1).to_bytes(8, sys.byteorder)
        assert poll.poll(0) == []
    finally:
        os.close(fd)


def test_a_subreaper_gets_the_orphans_below_it() -> None:
    script = (
        "import os; from kingtask import linux; linux.become_subreaper()\n"
        "if os.fork() == 0:\n"
        "    if os.fork(): os._exit(1)\n"
        "    os._exit(2)\n"
        "print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 2]\n"


def test_the_death_signal_comes_when_the_parent_dies() -> None:
    script = (
        "import os, signal; from kingtask import linux\n"
        "reading, writing = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    linux.set_death_signal(signal.SIGKILL); os.write(writing, b'x'); signal.pause()\n"
        "os.read(reading, 1)"
    )
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], pass_fds=[writing]) as process:
        os.close(writing)
        assert process.wait() == 0
        assert os.read(reading, 1) == b"", "the child holds the pipe until its own death"
    os.close(reading)


def test_open_files_are_raised_and_their_end_is_seen_coming() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert linux.raise_open_files(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        assert linux.raise_open_files(100) == 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        assert linux.open_files_nearly_used_up() is None
        with ExitStack() as stack:

            def hold(number: int) -> None:
                for _ in range(number):
                    stack.enter_context(Path(os.devnull).open("rb"))

            hold(270 - len(descriptors()) + 1)
            assert linux.open_files_nearly_used_up() == 300
            hold(300 - len(descriptors()) + 1)
            assert linux.open_files_nearly_used_up() == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_open_files_are_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (32, 32))
    with pytest.raises(ConfigurationError, match="only 32 open files"):
        linux.raise_open_files(1000)
