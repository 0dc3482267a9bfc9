"""What counts as success, and how a failure is named."""

from __future__ import annotations

import signal

import pytest

from kingtask.worker.exec.outcome import AttemptOutcome, judge


def verdict(
    returncode: int = 0, stderr: bytes = b"", *, keep: bool = False, stopped: str | None = None
) -> tuple[str, str]:
    found = judge(returncode, stderr, len(stderr), keep_stderr=keep, stopped=stopped, limit_s=1.5)  # type: ignore[arg-type]
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("returncode", "stderr", "keep", "expected"),
    [
        (0, b"", False, ("succeeded", "")),
        (0, b"", True, ("succeeded", "")),
        (0, b"warning", True, ("succeeded", "")),
        (0, b"warning", False, ("failed", "stderr")),
        (1, b"", False, ("failed", "exit")),
        (1, b"", True, ("failed", "exit")),
        (3, b"why", False, ("failed", "exit")),
        (255, b"", False, ("failed", "exit")),
        (100, b"", False, ("final", "no_retry")),
        (100, b"why", True, ("final", "no_retry")),
        (-9, b"", False, ("failed", "signal")),
        (-15, b"why", True, ("failed", "signal")),
        (-40, b"", False, ("failed", "signal")),
    ],
)
def test_every_way_to_end(returncode: int, stderr: bytes, keep: bool, expected: tuple[str, str]) -> None:
    assert verdict(returncode, stderr, keep=keep) == expected


@pytest.mark.parametrize("returncode", [0, 1, 100, -signal.SIGTERM, -signal.SIGKILL])
@pytest.mark.parametrize(
    ("stopped", "expected"),
    [("time_limit", "failed"), ("cancelled", "failed"), ("interrupted", "final")],
)
def test_what_the_worker_stopped_failed_for_that_reason(returncode: int, stopped: str, expected: str) -> None:
    assert verdict(returncode, stopped=stopped) == (expected, stopped)


def test_a_failure_for_stderr_names_the_way_out() -> None:
    found = judge(0, b"deprecated\n", 11, keep_stderr=False, stopped=None, limit_s=1)
    assert "stderr: keep" in found.message
    assert "--stderr keep" in found.message
    assert found.message.endswith("deprecated")


def test_messages_name_numbers() -> None:
    assert judge(-9, b"", 0, keep_stderr=False, stopped=None, limit_s=1).message == "killed by SIGKILL (9)"
    assert judge(-40, b"", 0, keep_stderr=False, stopped=None, limit_s=1).message == "killed by signal 40"
    assert judge(0, b"", 0, keep_stderr=False, stopped="time_limit", limit_s=0.5) == AttemptOutcome(
        "failed", "time_limit", "ran longer than its limit of 0.5 s"
    )


def test_what_stderr_says_is_not_hidden_by_a_message() -> None:
    assert judge(1, b"no such host", 12, keep_stderr=False, stopped=None, limit_s=1).message == ""
    assert judge(1, b"", 0, keep_stderr=False, stopped=None, limit_s=1).message == "exit status 1, nothing on stderr"


@pytest.mark.parametrize(("status", "word"), [(0, "succeeded"), (1, "failed"), (100, "final")])
def test_the_verdict_is_the_word_of_the_function_library(status: int, word: str) -> None:
    assert judge(status, b"", 0, keep_stderr=False, stopped=None, limit_s=1).verdict == word
