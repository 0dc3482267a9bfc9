"""Programs that do too much, at a small size."""

from __future__ import annotations

from tests.faults.excess import excess


def test_outputs_without_measure_and_many_attempts_leave_nothing() -> None:
    assert excess(size=10_000_000, number=140) == []
