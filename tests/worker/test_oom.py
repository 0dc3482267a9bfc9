"""When an attempt is said to have failed for want of memory."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from kingtask.worker.exec.oom import KilledForMemory, explained
from kingtask.worker.exec.outcome import AttemptOutcome

MIB = 1_048_576
EXIT = AttemptOutcome("failed", "exit", "")
SIGNAL = AttemptOutcome("failed", "signal", "killed by SIGSEGV (11)")
NEVER = KilledForMemory(None)
OWN_BYTES = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
LARGE = 4 * OWN_BYTES + 256 * MIB


@pytest.mark.parametrize(
    "said",
    [
        b"Traceback:\nMemoryError\n",
        b"sh: 1: Cannot allocate memory",
        b"terminate called after throwing an instance of 'std::bad_alloc'",
        b"fatal error: runtime: out of memory",
        b"FATAL ERROR: Allocation failed - JavaScript heap out of memory",
        b"xx: memory exhausted",
    ],
)
def test_under_a_limit_stderr_tells(said: bytes) -> None:
    found = explained(EXIT, 1, said, 0, 256 * MIB, NEVER)
    assert (found.verdict, found.reason) == ("failed", "out_of_memory")
    assert found.message == "its processes may have 256 MiB each (limits.memory)"
    assert explained(EXIT, 1, said, 0, None, NEVER) == EXIT, "without a limit it may be talking of anything"


def test_one_that_says_nothing_is_known_by_a_signal_and_what_it_used() -> None:
    found = explained(SIGNAL, -11, b"", LARGE, LARGE, NEVER)
    assert found.reason == "out_of_memory"
    assert found.message.startswith("killed by SIGSEGV (11); its processes may have ")
    assert f"it used {LARGE / MIB:,.0f} MiB" in found.message
    assert explained(SIGNAL, -11, b"", LARGE // 2, LARGE, NEVER) == SIGNAL
    assert explained(EXIT, 1, b"", LARGE, LARGE, NEVER) == EXIT


def test_what_the_worker_itself_had_when_it_started_it_is_no_witness() -> None:
    assert explained(SIGNAL, -11, b"", OWN_BYTES, OWN_BYTES, NEVER) == SIGNAL


def test_the_kernel_counts_whom_it_killed_here_or_above(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n")
    inner = tmp_path / "worker"
    inner.mkdir()
    killed = KilledForMemory(inner)
    verdict = AttemptOutcome("failed", "signal", "killed by SIGKILL (9)")
    assert explained(verdict, -signal.SIGKILL, b"", 0, None, killed) == verdict
    events.write_text(events.read_text().replace("oom_kill 2", "oom_kill 3"))
    assert explained(SIGNAL, -11, b"", 0, None, killed) == SIGNAL
    found = explained(verdict, -signal.SIGKILL, b"", 0, None, killed)
    assert found.reason == "out_of_memory"
    assert found.message == "killed by SIGKILL (9): the kernel had no memory left for it, and killed it"
    assert explained(verdict, -signal.SIGKILL, b"", 0, None, killed) == verdict, "each is told once"
    events.unlink()
    assert not killed.again()
