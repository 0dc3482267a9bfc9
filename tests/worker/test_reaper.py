"""The worker's side of its reaper, and the process groups that both know. With workers: test_stopping.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kingtask
from kingtask.worker.reap import reaper_process
from kingtask.worker.reap.reaper import Groups, Reaper
from tests.processes import alive, name_of, until


def test_a_missing_program_of_the_reaper_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reaper = Reaper("w", 1)
    try:
        reaper.check()
        assert not caplog.records
        with monkeypatch.context() as upgraded:
            upgraded.setattr(reaper_process, "__file__", "/gone/reaper_process.py")
            reaper.check()
            reaper.check()
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            "reaper=unusable missing=/gone/reaper_process.py"
        ]
        reaper.check()
        assert len(caplog.records) == 1
    finally:
        reaper.close()


def test_every_file_that_the_reaper_imports_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "; import kingtask; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('kingtask')))"
    start, _, _ = reaper_process.START.rpartition(";")
    package = str(Path(kingtask.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-B", "-c", start + program, package]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    checked: list[str] = []

    def access(path: str, mode: int) -> bool:
        checked.append(path)
        return True

    reaper = Reaper("w", 1)
    monkeypatch.setattr("os.access", access)
    reaper.check()
    reaper.close()
    assert len(imported) == 5
    assert set(checked) == {sys.executable, *imported}


@pytest.mark.parametrize("scratch", [False, True], ids=["shell", "program"])
def test_the_reaper_kills_running_groups_when_its_pipe_ends(tmp_path: Path, scratch: bool) -> None:
    reaper = Reaper("w", 1, scratch=str(tmp_path / "scratch") if scratch else "")
    until(lambda: name_of(reaper.pid) == "kingtask-reaper", "its name")
    (tmp_path / "scratch").mkdir()
    attempt = subprocess.Popen(["sleep", "300"], start_new_session=True)
    reaper.groups.add(attempt.pid)
    os.close(reaper._writing)
    assert attempt.wait(30) == -signal.SIGKILL
    assert reaper._process.wait(30) == 0
    until(lambda: (tmp_path / "scratch").exists() != scratch, "the end of the scratch directory")
    os.close(reaper._reading)
    reaper.groups.close()


def test_the_reaper_kills_nothing_when_its_worker_ends_in_order() -> None:
    reaper = Reaper("w", 1)
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as attempt:
        reaper.groups.add(attempt.pid)
        reaper.close()
        assert reaper._process.returncode == 0
        assert alive(attempt.pid)
        attempt.kill()


def test_groups_reuse_the_slots_that_became_free() -> None:
    groups = Groups(2)
    first, second = groups.add(11), groups.add(12)
    assert sorted(groups._table) == [11, 12]
    groups.remove(first)
    assert groups.add(13) == first
    assert groups._table[second] == 12
    groups.close()
