"""The worker's cgroup, where it may have one: everything in it ends with the worker, whoever else is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from kingtask.worker.reap import cgroup
from kingtask.worker.reap.reaper_process import end_cgroup
from tests.processes import alive, until
from tests.worker.rig import WorkerHarness, WorkerProcess
from tests.worker.test_orphans import NAMELESS

OWN = cgroup.own_cgroup()

pytestmark = pytest.mark.skipif(
    OWN is None or not cgroup.is_delegated(OWN), reason="no cgroup of version 2 was delegated to these tests"
)


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup that nothing is in."""
    assert OWN is not None
    path = OWN / f"tests.{uuid4().hex}"
    path.mkdir()
    yield path
    end_cgroup(str(path))


def test_workers_that_start_at_once_leave_each_other_theirs() -> None:
    """One looks for what was abandoned while another has made its own and not locked it yet."""
    names = [f"{os.getpid()}.{uuid4().hex[:6]}" for _ in range(60)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(cgroup.Cgroup.make, names))
    for one in made:
        assert one is not None
        assert one.path.exists()
        end_cgroup(str(one.path))
        os.close(one._lock)


def cgroup_of(worker: WorkerProcess) -> Path:
    text = worker.logged("cgroup=entered").partition("path=")[2].split()[0]
    return Path(text)


def leave(rig: WorkerHarness, worker: WorkerProcess) -> int:
    """Something that runs in the worker, and that neither environment nor session nor parents give away."""
    rig.script("leave", f"{NAMELESS.format(rig.directory)}; echo up > {rig.directory}/up; exec sleep 300")
    rig.put("leave", worker.name)
    rig.exists("up")
    return int(rig.exists(worker.name))


def test_a_killed_worker_leaves_nothing_not_even_what_nobody_can_tell(rig: WorkerHarness) -> None:
    worker = rig.start()
    path, guard = cgroup_of(worker), worker.guard
    pid = leave(rig, worker)
    assert str(pid) in (path / "cgroup.procs").read_text().split()
    assert str(guard) not in (path / "cgroup.procs").read_text().split()
    worker.kill()
    until(lambda: not alive(pid), "its end")
    until(lambda: not path.exists(), "the end of the cgroup")


def test_a_worker_that_stops_takes_its_cgroup_along(rig: WorkerHarness) -> None:
    worker = rig.start()
    path = cgroup_of(worker)
    assert worker.stop() == 0
    assert not path.exists()


def test_the_next_worker_ends_what_one_left_that_was_killed_with_its_guard(rig: WorkerHarness) -> None:
    worker = rig.start()
    other = rig.start(queues="other")
    path, pid = cgroup_of(worker), leave(rig, worker)
    assert path.exists()
    os.kill(worker.guard, signal.SIGKILL)
    worker.kill()
    rig.start(queues="other")  # or any that another test starts: theirs is the same parent
    until(lambda: not alive(pid) and not path.exists(), "the end of what was left")
    assert cgroup_of(other).exists()
    assert other.process is not None
    assert other.process.poll() is None


def test_a_guard_that_took_the_place_of_another_removes_the_cgroup_too(rig: WorkerHarness) -> None:
    worker = rig.start(renew=0.1)
    path, pid = cgroup_of(worker), leave(rig, worker)
    os.kill(worker.guard, signal.SIGKILL)
    worker.logged("reaper=lost")
    assert worker.guard
    worker.kill()
    until(lambda: not alive(pid) and not path.exists(), "the end of everything")


def test_a_cgroup_that_is_in_use_is_not_abandoned(delegated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "own_cgroup", lambda: delegated)
    first = cgroup.Cgroup.make("first")
    second = cgroup.Cgroup.make("second")
    assert first is not None
    assert second is not None
    assert first.path.exists()
    os.close(first._lock)
    cgroup.remove_abandoned(delegated)
    assert not first.path.exists()
    assert second.path.exists()
    os.close(second._lock)


def test_without_the_right_to_write_there_is_none(delegated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "own_cgroup", lambda: delegated / "gone")
    assert cgroup.Cgroup.make("worker") is None
    monkeypatch.setattr(cgroup, "own_cgroup", lambda: None)
    assert cgroup.Cgroup.make("worker") is None


def test_what_systemd_did_not_give_away_is_left_alone(
    delegated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "SYSTEMD", tmp_path)
    assert not cgroup.is_delegated(delegated)
    os.setxattr(delegated, "user.delegate", b"1")
    assert cgroup.is_delegated(delegated)
