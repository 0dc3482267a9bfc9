"""Ends that are held up: by another process that traces the program and is told of them first, or by the kernel."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kingtask.result import Result
from tests.processes import alive, until
from tests.worker.rig import WorkerHarness, WorkerProcess

TRACED = """import ctypes, os, signal, sys
PTRACE_TRACEME, PTRACE_SEIZE, PTRACE_O_TRACEEXIT, PR_SET_PTRACER = 0, 0x4206, 0x40, 0x59616D61
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
if sys.argv[1] == "by its parent":  # the worker
    assert libc.ptrace(PTRACE_TRACEME, 0, None, None) == 0
    os.kill(os.getpid(), signal.SIGUSR1)  # a tracee stops at any signal, and its parent is told
    sys.exit("it went on")
child_reads, parent_writes = os.pipe()
parent_reads, child_writes = os.pipe()
pid = os.fork()
if pid == 0:
    if sys.argv[1] != "in the group":
        os.setsid()
    os.read(child_reads, 1)
    events = PTRACE_O_TRACEEXIT if sys.argv[1] == "at its exit" else None
    if libc.ptrace(PTRACE_SEIZE, os.getppid(), None, events) != 0:
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(child_writes, b"x")
    signal.pause()
libc.prctl(PR_SET_PTRACER, pid, 0, 0, 0)
os.write(parent_writes, b"x")
os.close(child_writes)
if not os.read(parent_reads, 1):
    os._exit(77)
print(pid, flush=True)
if sys.argv[1] == "at its exit":
    signal.pause()
os._exit(7)
"""


def skip_if_refused(result: Result) -> None:
    if result.exit_code == 77:
        pytest.skip("this host lets nobody trace its own processes")


def test_a_tracer_that_does_not_hear_the_end_holds_no_slot(rig: WorkerHarness) -> None:
    """As a debugger that somebody attached, which the kernel tells first; here one in the group and one outside."""
    rig.script("traced", TRACED, shebang=f"#!{sys.executable}")
    worker = rig.start(concurrency=1)
    for how in ("in the group", "from another session"):
        result = rig.run("traced", how)
        skip_if_refused(result)
        assert (result.reason, result.exit_code) == ("exit", 7)
        until(lambda pid=int(result.stdout): not alive(pid), "the end of the tracer")  # type: ignore[misc]
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


def test_one_that_has_the_worker_trace_it_is_ended_at_its_limit(rig: WorkerHarness) -> None:
    rig.script("traced", TRACED, shebang=f"#!{sys.executable}")
    worker = rig.start(kill_grace=0.1)
    result = rig.run("traced", "by its parent", time_limit_s=1.0)
    assert (result.reason, result.signal) == ("time_limit", signal.SIGKILL)
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


def test_one_that_is_held_at_its_exit_is_ended_with_what_holds_it(rig: WorkerHarness) -> None:
    """KILL alone does not: ptrace(2), PTRACE_EVENT_EXIT."""
    rig.script("traced", TRACED, shebang=f"#!{sys.executable}")
    worker = rig.start(kill_grace=0)
    result = rig.run("traced", "at its exit", time_limit_s=1.0)
    skip_if_refused(result)
    assert (result.reason, result.signal) == ("time_limit", signal.SIGKILL)
    worker.logged("attempt=not_gone")
    until(lambda: not alive(int(result.stdout)), "the end of the tracer")
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


SLEEPS = """import ctypes, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
libc = ctypes.CDLL(None)
if libc.vfork() == 0:  # its parent sleeps in the kernel until this one is another program, or gone
    while True:
        libc.pause()
"""


def test_one_that_sleeps_in_the_kernel_is_killed_after_the_grace(rig: WorkerHarness) -> None:
    """As one that waits for a file server that is away: D, which KILL ends in most cases."""
    rig.script("sleeps", SLEEPS, shebang=f"#!{sys.executable}")
    worker = rig.start(kill_grace=0.2)
    task = rig.put("sleeps", time_limit_s=1.0)
    rig.running(task)
    until(lambda: "D" in states(worker), "it sleeps")
    result = rig.result(task)
    assert (result.reason, result.signal) == ("time_limit", signal.SIGKILL)
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


def states(worker: WorkerProcess) -> list[str]:
    found = []
    for pid in worker.children():
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found
