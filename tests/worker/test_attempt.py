"""One attempt without Redis: the report it makes, and what stops it in each of its moments."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kingtask.config import WorkerConfig
from kingtask.store import codec
from kingtask.store.functions import Claimed, EndedTask, Fence
from kingtask.task import TaskSpec
from kingtask.worker import environment
from kingtask.worker.attempt import BUSY_PAUSE_S, BUSY_TRIES, Conditions, RunningAttempt
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.exec.process import Host
from kingtask.worker.outbox import Report
from kingtask.worker.reap.cgroup import OomKills
from kingtask.worker.reap.orphans import Orphans
from kingtask.worker.reap.reaper import Groups
from tests.processes import descriptors
from tests.worker.test_process import _turn

NOW_MS = 1_800_000_000_000


class Trial:
    """An attempt at one shell script, started."""

    def __init__(
        self,
        directory: Path,
        text: str,
        *,
        grace_s: float = 3600.0,
        claimed_ms: int = 0,
        oom_kills: OomKills | None = None,
        **fields: object,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.groups = Groups(1)
        self.epoll = EpollSet(loop)
        self.null = os.open(os.devnull, os.O_RDONLY)
        self.end: asyncio.Future[Report] = loop.create_future()
        self.path = directory / "task"
        self.path.write_text(f"#!/bin/sh\n{text}\n")
        self.path.chmod(0o755)
        host = Host(
            loop=loop,
            epoll=self.epoll,
            orphans=Orphans(loop, "w", self.groups),
            null=self.null,
            oom_kills=oom_kills or OomKills(None),
            now_ms=lambda: NOW_MS,
        )
        conditions = Conditions(
            worker="w",
            config=WorkerConfig(bin_path=(str(directory),), kill_grace=grace_s),
            file="worker.yaml",
            environment=environment.base({"PATH": "/usr/bin:/bin"}, worker="w", brokers="b"),
            host=host,
        )
        spec = TaskSpec(name="task", **fields)  # type: ignore[arg-type]
        claimed = Claimed("t", 3, "task", codec.pack_spec(spec), "default", NOW_MS, False, claimed_ms)
        self.attempt = RunningAttempt(conditions, Fence("t", 3, b"token"), claimed, self._on_end)

    def _on_end(self, fence: Fence, end: Report | Shortage) -> None:
        if isinstance(end, Shortage):
            self.end.set_exception(AssertionError(end))
        else:
            self.end.set_result(end)

    def start(self) -> Trial:
        self.attempt.start()
        return self

    async def report(self) -> Report:
        report = await asyncio.wait_for(self.end, 30)
        self.epoll.close()
        self.groups.close()
        os.close(self.null)
        return report

    async def ended(self) -> EndedTask:
        report = await self.report()
        assert isinstance(report, EndedTask)
        return report

    async def says(self, text: bytes) -> None:
        assert self.attempt._process is not None
        while text not in self.attempt._process.stdout.kept():
            await asyncio.wait_for(_turn(), 30)

    async def exited(self) -> None:
        assert self.attempt._process is not None
        while self.attempt._process.exited_s is None:
            await asyncio.wait_for(_turn(), 30)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


async def test_the_report_of_a_success(tmp_path: Path) -> None:
    ended = await Trial(tmp_path, "cat; echo $1", args=("x y",), stdin=b"in\n").start().ended()
    assert ended._replace(record=b"") == EndedTask(
        Fence("t", 3, b"token"), "succeeded", "", b"", b"in\nx y\n", b"", len(b"in\nx y\n"), 0
    )
    attempt = codec.unpack_attempt(ended.record)
    assert (attempt.number, attempt.worker, attempt.reason, attempt.exit_code) == (3, "w", "", 0)


async def test_no_attempt_began_before_it_was_claimed(tmp_path: Path) -> None:
    """Redis's clock as seen from here may be behind."""
    ended = await Trial(tmp_path, "echo $KINGTASK_DEADLINE", claimed_ms=NOW_MS + 5, time_limit_s=1.0).start().ended()
    assert float(ended.stdout) == (NOW_MS + 1005) / 1000
    attempt = codec.unpack_attempt(ended.record)
    assert attempt.started_at == attempt.ended_at == (NOW_MS + 5) / 1000


async def test_an_oom_kill_explains_the_next_sigkill_and_no_other_signal(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 2\n")
    kills = OomKills(tmp_path)
    events.write_text("oom_kill 3\n")
    signals = ("TERM", "KILL", "KILL")
    ended = [await Trial(tmp_path, f"kill -{name} $$", oom_kills=kills).start().ended() for name in signals]
    assert [each.reason for each in ended] == ["signal", "out_of_memory", "signal"]


@pytest.mark.parametrize("why", ["time_limit", "cancelled", "interrupted"])
async def test_stopped_by_the_worker(tmp_path: Path, why: str) -> None:
    trial = Trial(tmp_path, "echo up; exec sleep 300").start()
    await trial.says(b"up")
    trial.attempt.stop(why)  # type: ignore[arg-type]
    trial.attempt.stop("cancelled")  # the first reason counts
    ended = await trial.ended()
    assert (ended.reason, codec.unpack_attempt(ended.record).signal) == (why, signal.SIGTERM)


async def test_released_after_it_ran(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "echo why >&2; echo up; exec sleep 300").start()
    await trial.says(b"up")
    trial.attempt.stop("released")
    report = await trial.report()
    assert isinstance(report, bytes)
    attempt = codec.unpack_attempt(report)
    assert (attempt.reason, attempt.signal, attempt.stderr_tail) == ("released", signal.SIGTERM, b"why\n")


async def test_fenced_gives_no_grace(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "trap '' TERM; echo up; while :; do sleep 300; done").start()
    await trial.says(b"up")
    trial.attempt.stop("cancelled")
    trial.attempt.stop("fenced")
    assert codec.unpack_attempt((await trial.ended()).record).signal == signal.SIGKILL


@pytest.mark.parametrize("why", ["time_limit", "cancelled", "released", "interrupted"])
async def test_one_that_has_ended_is_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Its exit counts, even while its output is still awaited."""
    monkeypatch.setattr("kingtask.worker.exec.process.DRAIN_S", 3600)
    gate = tmp_path / "gate"
    trial = Trial(tmp_path, f"(until [ -e {gate} ]; do :; done; echo late) & exit 0").start()
    await trial.exited()
    trial.attempt.stop(why)  # type: ignore[arg-type]
    gate.touch()
    ended = await trial.ended()
    assert (ended.verdict, ended.stdout) == ("succeeded", b"late\n")


@pytest.mark.parametrize("why", ["time_limit", "cancelled", "released", "interrupted", "fenced"])
async def test_one_that_has_ended_a_moment_ago_is_not_stopped(tmp_path: Path, why: str) -> None:
    """The loop has not seen it yet: it was elsewhere, and the time limit fell into that time."""
    trial = Trial(tmp_path, "exit 0").start()
    assert trial.attempt._process is not None
    os.waitid(os.P_PID, trial.attempt._process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop is to be held
    trial.attempt.stop(why)  # type: ignore[arg-type]
    assert (await trial.ended()).verdict == "succeeded"


@pytest.mark.parametrize("why", ["cancelled", "released", "interrupted"])
async def test_stopped_between_two_tries_to_start_it(tmp_path: Path, why: str) -> None:
    trial = Trial(tmp_path, "echo never")
    with trial.path.open("ab"):
        trial.start()
        assert trial.attempt._process is None
        trial.attempt.stop(why)  # type: ignore[arg-type]
        report = await trial.report()
    if why == "cancelled":
        assert isinstance(report, EndedTask)
        assert report.reason == "cancelled"
    else:  # it never ran, so even on_lost: fail may run elsewhere
        assert isinstance(report, bytes)
        assert codec.unpack_attempt(report).reason == "released"


async def test_a_file_that_stays_busy_fails_after_a_while_and_one_that_does_not_runs(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "echo ran")
    with trial.path.open("ab"):
        trial.start()
        assert trial.attempt._process is None
    assert (await trial.ended()).stdout == b"ran\n"
    trial = Trial(tmp_path, "echo never")
    with trial.path.open("ab"):
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        ended = await trial.start().ended()
    assert (ended.verdict, ended.reason) == ("failed", "exec")
    assert loop.time() - start_s >= (BUSY_TRIES - 1) * BUSY_PAUSE_S
