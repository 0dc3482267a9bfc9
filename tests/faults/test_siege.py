"""The abuse of one broker, at a small size."""

from __future__ import annotations

import pytest

from tests.faults.siege import siege


def test_a_broker_survives_abuse_and_answers_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    parts, faults = siege(messages=5_000, size=20_000_000, words=50_000, seconds=1.0)
    assert not [fault for fault in faults if "ping" not in fault], "how long a ping takes depends on the machine here"
    assert len(parts) == 4
    messages = parts[0]
    assert messages.answers.total() == messages.sent == 5_000
    assert messages.answers["malformed"] > messages.answers["ok"]
    assert "cut_off" in capsys.readouterr().out
