"""Counters of refusals: each one counts, and the log gets one line a minute of each kind."""

from __future__ import annotations

import pytest

from kingtask.broker.counters import Counters
from kingtask.errors import InvalidRequest


def test_each_kind_is_logged_once_a_minute_and_always_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("kingtask.broker.counters.monotonic_s", lambda: now_s)
    counters = Counters()
    for _ in range(500):
        counters.count("malformed", "the message is not msgpack")
        counters.count("not_found", "id: there is no task")
    counters.count("busy", "too many requests")
    assert counters.counts == {"malformed": 500, "not_found": 500, "busy": 1}
    now_s += 61
    counters.count("malformed", "again")
    assert caplog.messages == [
        "refused=malformed count=1 total=1 last='the message is not msgpack'",
        "refused=busy count=1 total=1 last='too many requests'",
        "refused=malformed count=500 total=501 last=again",
    ]


def test_each_reason_of_a_failed_handshake_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A port scan must not hide a client with a wrong key for a minute."""
    counters = Counters()
    for _ in range(2):
        counters.count("handshake_failed", "it closed the connection, at a", reason="it closed the connection")
        counters.count("handshake_failed", "its key is not known, at a", reason="its key is not known")
    assert counters.counts == {"handshake_failed": 4}
    assert [line.partition(" last=")[2] for line in caplog.messages] == [
        "'it closed the connection, at a'",
        "'its key is not known, at a'",
    ]


def test_the_value_that_was_sent_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    counters.refused(InvalidRequest("task.env: expected a map, got 'a secret, got it'", code="invalid_request"))
    assert counters.counts == {"invalid_request": 1}
    assert caplog.messages == ["refused=invalid_request count=1 total=1 last='task.env: expected a map'"]
