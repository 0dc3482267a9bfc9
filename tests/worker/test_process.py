"""A process to its end: what decides it, what cannot hold it up, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.process import DRAIN_S, SETTLE_S, Host, Process
from kingtask.worker.exec.spawn import spawn
from kingtask.worker.reap.cgroup import OomKills
from kingtask.worker.reap.orphans import Orphans
from kingtask.worker.reap.reaper import Groups
from kingtask.worker.reap.reaper_process import kill_marked
from tests.processes import alive, descriptors, marked

ENV = {"PATH": "/usr/bin:/bin"}
KEEP = 1_048_576


class ScriptProcess:
    """A shell script under a Process. `end` is done when the Process says so."""

    def __init__(self, text: str, env: dict[str, str] | None = None, *, keep: int = KEEP) -> None:
        loop = asyncio.get_running_loop()
        self.end: asyncio.Future[Process] = loop.create_future()
        self.groups = Groups(1)
        null = os.open(os.devnull, os.O_RDONLY)
        spawned = spawn("/bin/sh", ["-c", text], {**ENV, **(env or {})}, null)
        os.close(null)
        self.epoll = EpollSet(loop)
        orphans = Orphans(loop, "w", self.groups)
        orphans.add(spawned.popen.pid, "t", 1)
        host = Host(loop, self.epoll, orphans, null, OomKills(None), lambda: 0)
        self.process = Process(host, spawned, keep, self._ended)

    def _ended(self, process: Process) -> None:
        assert self.epoll._acts == {}
        assert list(self.groups._table) == [0]
        self.epoll.close()
        self.groups.close()
        self.end.set_result(process)

    async def stdout(self, text: bytes) -> None:
        """Wait until the program has written this."""
        while text not in self.process.stdout.kept():
            await asyncio.wait_for(_turn(), 30)


async def _turn() -> None:
    """One turn of the loop that waits for something to happen in it, at most a moment."""
    await asyncio.sleep(0.001)


async def run(text: str, env: dict[str, str] | None = None, *, keep: int = KEEP) -> Process:
    return await asyncio.wait_for(ScriptProcess(text, env, keep=keep).end, 30)


async def gone(pid: int) -> None:
    """Wait until a process that was killed is gone: it is not our child, and KILL takes its time."""
    while alive(pid):
        await asyncio.wait_for(_turn(), 30)


def stopped(pid: int) -> bool:
    return "T (stopped)" in Path(f"/proc/{pid}/status").read_text()


def elapsed() -> Callable[[], float]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    return lambda: loop.time() - start


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no zombie remains of any of these tests."""
    before = descriptors()
    yield
    assert descriptors() == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert [pid for pid in children if not alive(int(pid))] == []


async def test_status_and_both_outputs() -> None:
    process = await run("echo out; echo err >&2; exit 3")
    assert (process.returncode, process.stdout.kept(), process.stderr.kept()) == (3, b"out\n", b"err\n")
    assert (process.left_behind, process.escaped) == (False, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGUSR1])
async def test_death_by_signal(number: int) -> None:
    assert (await run(f"kill -{int(number)} $$")).returncode == -number


@pytest.mark.parametrize("status", [0, 1, 100, 126, 127, 255])
async def test_every_status_as_it_is(status: int) -> None:
    assert (await run(f"exit {status}")).returncode == status


async def test_large_output_comes_whole() -> None:
    process = await run("head -c 900000 /dev/zero | tr '\\0' x; head -c 900000 /dev/zero | tr '\\0' y >&2")
    assert process.stdout.kept() == b"x" * 900_000
    assert process.stderr.kept() == b"y" * 900_000


async def test_any_bytes_come_as_they_are() -> None:
    process = await run(r"printf '\000\377\033[31m\r\n'")
    assert process.stdout.kept() == b"\x00\xff\x1b[31m\r\n"


async def test_a_flood_is_counted_and_not_kept() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    process = await run(
        "echo begin; head -c 300000000 /dev/zero; head -c 50000000 /dev/zero >&2; echo the end", keep=4096
    )
    assert process.stdout.size == 300_000_014
    assert process.stderr.size == 50_000_000
    assert len(process.stdout.kept()) == len(process.stderr.kept()) == 4096
    assert process.stdout.kept().startswith(b"begin\n")
    assert process.stdout.kept().endswith(b"\0the end\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


async def test_a_background_process_that_holds_the_pipes_does_not_hold_the_end() -> None:
    time = elapsed()
    watched = ScriptProcess("sleep 300 & echo $!; exit 7")
    process = await asyncio.wait_for(watched.end, 30)
    assert process.returncode == 7
    assert (process.left_behind, process.escaped) == (True, False)
    assert time() < 30
    await gone(int(process.stdout.kept()))


async def test_what_is_written_within_the_grace_after_the_exit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kingtask.worker.exec.process.DRAIN_S", 3600)
    process = await run("(until grep -q '^State:.Z' /proc/$$/status; do :; done; echo late) & exit 0")
    assert (process.stdout.kept(), process.left_behind) == (b"late\n", False)


async def test_a_background_process_without_the_pipes_is_killed_with_the_group() -> None:
    process = await run("sleep 300 >/dev/null 2>&1 & echo $!")
    assert not process.left_behind
    await gone(int(process.stdout.kept()))


async def test_an_escapee_is_noted_and_found_by_its_environment(tmp_path: Path) -> None:
    env = {"KINGTASK_ID": str(tmp_path), "KINGTASK_ATTEMPT": "1", "there": str(tmp_path / "there")}
    process = await run("setsid sh -c ': > $there; exec sleep 300' & until [ -e $there ]; do :; done", env)
    assert (process.returncode, process.left_behind, process.escaped) == (0, True, True)
    mark = f"KINGTASK_ID={tmp_path}"
    assert any(alive(pid) for pid in marked(mark))
    assert kill_marked(mark.encode() + b"x") == 0
    assert kill_marked(mark.encode()) >= 1
    assert not any(alive(pid) for pid in marked(mark))


async def test_stop_ends_the_whole_group() -> None:
    watched = ScriptProcess("sleep 300 & sleep 300 & echo $! ; wait")
    await watched.stdout(b"\n")
    watched.process.stop(60)
    process = await asyncio.wait_for(watched.end, 30)
    assert process.returncode == -signal.SIGTERM
    await gone(int(process.stdout.kept()))


async def test_last_words_after_term_are_kept() -> None:
    watched = ScriptProcess("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 300 & wait $!; done")
    await watched.stdout(b"ready")
    watched.process.stop(60)
    process = await asyncio.wait_for(watched.end, 30)
    assert (process.returncode, process.stdout.kept()) == (5, b"ready\nbye\n")


async def test_kill_after_the_grace_and_not_before() -> None:
    watched = ScriptProcess("trap '' TERM; echo ready; while :; do sleep 300; done")
    await watched.stdout(b"ready")
    time = elapsed()
    watched.process.stop(0.3)
    process = await asyncio.wait_for(watched.end, 30)
    assert process.returncode == -signal.SIGKILL
    assert time() >= 0.3


async def test_a_second_stop_may_shorten_the_grace_but_not_extend_it() -> None:
    watched = ScriptProcess("trap '' TERM; echo ready; while :; do sleep 300; done")
    await watched.stdout(b"ready")
    watched.process.stop(0.3)
    watched.process.stop(3600)
    assert (await asyncio.wait_for(watched.end, 30)).returncode == -signal.SIGKILL
    watched = ScriptProcess("trap '' TERM; echo ready; while :; do sleep 300; done")
    await watched.stdout(b"ready")
    watched.process.stop(3600)
    watched.process.stop(0)
    assert (await asyncio.wait_for(watched.end, 30)).returncode == -signal.SIGKILL


async def test_a_stopped_process_hears_term() -> None:
    watched = ScriptProcess("trap 'exit 6' TERM; echo ready; kill -STOP $$; exit 1")
    await watched.stdout(b"ready")
    while not stopped(watched.process.pid):
        await asyncio.wait_for(_turn(), 30)
    watched.process.stop(60)
    assert (await asyncio.wait_for(watched.end, 30)).returncode == 6


async def test_stop_after_the_exit_leaves_the_others_their_grace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kingtask.worker.exec.process.DRAIN_S", 3600)
    watched = ScriptProcess("(until [ -e $gate ]; do :; done; echo late) & exit 0", {"gate": f"{tmp_path}/gate"})
    while watched.process.exited_s is None:
        await asyncio.wait_for(_turn(), 30)
    watched.process.stop(60)
    watched.process.stop(0)
    (tmp_path / "gate").touch()
    process = await asyncio.wait_for(watched.end, 30)
    assert (process.returncode, process.stdout.kept()) == (0, b"late\n")


async def test_closed_outputs_are_no_end() -> None:
    watched = ScriptProcess("exec >&- 2>&-; sleep 300")
    while len(watched.process._pipes):
        await asyncio.wait_for(_turn(), 30)
    assert not watched.end.done()
    assert watched.process.exited_s is None
    watched.process.stop(60)
    assert (await asyncio.wait_for(watched.end, 30)).returncode == -signal.SIGTERM


async def test_the_group_is_in_the_table_until_its_leader_is_reaped() -> None:
    watched = ScriptProcess("sleep 300")
    assert list(watched.groups._table) == [watched.process.pid]
    watched.process.stop(60)
    await asyncio.wait_for(watched.end, 30)  # which asserts that it is empty then


async def test_many_at_once_and_nothing_mixed_up() -> None:
    processes = await asyncio.gather(*(run(f"echo {i}; echo {i} >&2; exit {i}") for i in range(40)))
    for i, process in enumerate(processes):
        assert (process.returncode, process.stdout.kept(), process.stderr.kept()) == (i, b"%d\n" % i, b"%d\n" % i)


def test_the_graces_are_short() -> None:
    assert DRAIN_S + SETTLE_S <= 1, "a slot must be free within a second of the exit, whatever is left behind"
