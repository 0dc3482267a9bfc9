"""A program that another process traces: its end is that one's to hear first, and the worker's only after it."""

from __future__ import annotations

import signal
import sys

from tests.processes import alive, until
from tests.worker.rig import Rig

TRACED = """import ctypes, os, signal, sys
PTRACE_TRACEME, PTRACE_SEIZE, PR_SET_PTRACER = 0, 0x4206, 0x59616D61
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
    if sys.argv[1] == "from another session":
        os.setsid()
    os.read(child_reads, 1)
    assert libc.ptrace(PTRACE_SEIZE, os.getppid(), None, None) == 0, os.strerror(ctypes.get_errno())
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.write(child_writes, b"x")
    signal.pause()
libc.prctl(PR_SET_PTRACER, pid, 0, 0, 0)
os.write(parent_writes, b"x")
os.read(parent_reads, 1)
print(pid, flush=True)
os._exit(7)
"""


def test_a_tracer_that_does_not_hear_the_end_holds_no_slot(rig: Rig) -> None:
    """As a debugger that somebody attached, which the kernel tells first; here one in the group and one outside."""
    rig.script("traced", TRACED, shebang=f"#!{sys.executable}")
    worker = rig.start(concurrency=1)
    for how in ("in the group", "from another session"):
        result = rig.run("traced", how)
        assert (result.reason, result.exit_code) == ("exit", 7), result
        until(lambda pid=int(result.stdout): not alive(pid), "the end of the tracer")  # type: ignore[misc]
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


def test_one_that_has_the_worker_trace_it_is_ended_at_its_limit(rig: Rig) -> None:
    rig.script("traced", TRACED, shebang=f"#!{sys.executable}")
    worker = rig.start(kill_grace=0.1)
    result = rig.run("traced", "by its parent", time_limit_s=1.0)
    assert (result.reason, result.signal) == ("time_limit", signal.SIGKILL)
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")
