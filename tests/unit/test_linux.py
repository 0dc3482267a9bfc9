"""Calls of Linux that the standard library lacks."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

from kingtask import linux


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
