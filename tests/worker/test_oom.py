"""When a failed attempt gets the reason out_of_memory, and the kernel's count of OOM kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kingtask.worker.exec.outcome import MIB, AttemptOutcome, explain_memory
from kingtask.worker.reap.cgroup import OomKills

EXIT = AttemptOutcome("failed", "exit", "")
SIGNAL = AttemptOutcome("failed", "signal", "killed by SIGSEGV (11)")
OWN_BYTES = 40 * MIB
LARGE = 4 * OWN_BYTES + 256 * MIB


def explained(outcome: AttemptOutcome, stderr: bytes = b"", **facts: Any) -> AttemptOutcome:
    return explain_memory(
        outcome, stderr, **{"oom_killed": False, "limit": None, "peak_bytes": 0, "own_bytes": OWN_BYTES, **facts}
    )


@pytest.mark.parametrize(
    "text",
    [
        b"Traceback:\nMemoryError\n",
        b"sh: 1: Cannot allocate memory",
        b"terminate called after throwing an instance of 'std::bad_alloc'",
        b"fatal error: runtime: out of memory",
        b"FATAL ERROR: Allocation failed - JavaScript heap out of memory",
        b"xx: memory exhausted",
    ],
)
def test_under_a_memory_limit_the_words_on_stderr_count(text: bytes) -> None:
    found = explained(EXIT, text, limit=256 * MIB)
    assert (found.verdict, found.reason) == ("failed", "out_of_memory")
    assert found.message == "its processes may have 256 MiB each (limits.memory)"
    assert explained(EXIT, text) == EXIT, "without a limit the words may mean anything"


def test_a_silent_program_out_of_memory_is_known_by_its_signal_and_its_peak() -> None:
    found = explained(SIGNAL, peak_bytes=LARGE, limit=LARGE)
    assert found.reason == "out_of_memory"
    assert found.message.startswith("killed by SIGSEGV (11); its processes may have ")
    assert f"it used {LARGE / MIB:,.0f} MiB" in found.message
    assert explained(SIGNAL, peak_bytes=LARGE // 2, limit=LARGE) == SIGNAL
    assert explained(EXIT, peak_bytes=LARGE, limit=LARGE) == EXIT


def test_a_peak_of_memory_that_the_worker_itself_had_at_the_start_is_no_evidence() -> None:
    assert explained(SIGNAL, peak_bytes=OWN_BYTES, limit=OWN_BYTES) == SIGNAL


def test_an_oom_kill_is_evidence_without_a_limit() -> None:
    found = explained(SIGNAL, oom_killed=True)
    assert found.reason == "out_of_memory"
    assert found.message == "killed by SIGSEGV (11): the kernel had no memory left for it, and killed it"


def test_oom_kills_of_the_cgroup_or_the_one_above_are_seen_once(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n")
    inner = tmp_path / "worker"
    inner.mkdir()
    kills = OomKills(inner)
    assert not kills.increased()
    events.write_text(events.read_text().replace("oom_kill 2", "oom_kill 3"))
    assert kills.increased()
    assert not kills.increased()
    events.unlink()
    assert not kills.increased()
    assert not OomKills(None).increased()
