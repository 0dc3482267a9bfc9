"""The worker's end of its guard."""

from __future__ import annotations

import pytest

from kingtask.worker.reap import reaper_process
from kingtask.worker.reap.reaper import Reaper


def test_a_guardian_that_is_gone_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Reaper("w", 1)
    try:
        guard.check()
        assert not caplog.records
        with monkeypatch.context() as upgraded:
            upgraded.setattr(reaper_process, "__file__", "/gone/guardian.py")
            guard.check()
            guard.check()
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            "reaper=unusable missing=/gone/guardian.py"
        ]
        guard.check()
        assert len(caplog.records) == 1
    finally:
        guard.close()
