"""What /proc says of processes: whatever name they chose, and while they start or end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kingtask import procfs

MISNAMED = r"""
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, b"x) Z 1 \xc3", 0, 0, 0)  # PR_SET_NAME
print("up", flush=True)
time.sleep(300)
"""


@contextmanager
def child(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        yield process
        process.kill()


def test_a_name_of_any_bytes_shifts_no_field_of_stat() -> None:
    with child(sys.executable, "-c", MISNAMED, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert procfs.name(process.pid) == r"x) Z 1 \xc3"
        parent, started = procfs.parent_and_start(process.pid)
        assert parent == os.getpid()
        assert procfs.session_and_start(process.pid) == (process.pid, started)
        assert started >= procfs.parent_and_start(os.getpid())[1]
        assert procfs.real_uid(process.pid) == os.getuid()


def test_descendants_are_found_at_every_depth() -> None:
    with child("sh", "-c", "sh -c 'sleep 300 & echo $!; wait' & wait", start_new_session=True) as process:
        assert process.stdout is not None
        sleeper = int(process.stdout.readline())
        found = procfs.descendants([process.pid])
        assert sleeper in found
        assert len(found) == 2
        assert found[sleeper] == procfs.parent_and_start(sleeper)[1]
        os.killpg(process.pid, signal.SIGKILL)


def test_a_zombie_keeps_its_state_and_one_that_is_reaped_has_none() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert procfs.stat(process.pid)[procfs.STATE] == b"Z"
    process.wait()
    with pytest.raises(OSError, match=str(process.pid)):
        procfs.stat(process.pid)
    assert procfs.name(process.pid) == ""


def test_environment_is_unknown_in_the_middle_of_an_execve_and_never_empty() -> None:
    """For some microseconds there is none: an orphan would count as one that hides its attempt."""
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec /bin/sh -c "$0" "$0"', 'exec /bin/sh -c "$0" "$0"'], env={"MARK": "1"}
    ) as it:
        try:
            unknown = 0
            for _ in range(20_000):
                try:
                    assert b"MARK=1" in procfs.environment(it.pid)
                except BlockingIOError:
                    unknown += 1
            assert unknown > 0, "it was never seen in the middle"
        finally:
            it.kill()


def test_children_are_those_that_the_kernel_lists() -> None:
    with subprocess.Popen(["sleep", "300"]) as child:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert procfs.children() == sorted(map(int, listed))
        assert child.pid in procfs.children()
        child.kill()
