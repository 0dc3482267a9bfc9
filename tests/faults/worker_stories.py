"""Stories about workers and what they run, and what must hold at their end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic_ns

from kingtask.result import Result
from tests.faults.history import Final, Sample, read
from tests.faults.play import TICK_S, Steps
from tests.faults.stage import FaultTestbed
from tests.faults.stories import back, running
from tests.integration.rig import Daemon
from tests.processes import alive, descriptors, until

LATER_S = 2.0
"""What a busy machine may add to any time that is checked here."""


def reasons(stage: FaultTestbed) -> Counter[str]:
    """Of all attempts that ended, as the records say."""
    finals = read(stage.histories / "final.jsonl", Final)
    readings = {final.id: final.reading for final in finals if final.reading is not None}
    return Counter(attempt.reason for reading in readings.values() for attempt in reading.attempts)


def tree(stage: FaultTestbed, worker: Daemon) -> list[int]:
    """The worker, its guard and whatever carries its mark."""
    mark = f"KINGTASK_WORKER={worker.config['name']}.".encode()
    found = {worker.pid}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes() or mark in (place / "cmdline").read_bytes():
                found.add(int(place.name))
        except OSError:  # gone, or a kernel thread
            continue
    return sorted(found)


def until_ended(stage: FaultTestbed, ids: Iterable[str], within_s: float) -> Iterator[float]:
    """Wait until all have ended; a complaint if they do not."""
    left, deadline_s = set(ids), stage.clock_s() + within_s
    while left and stage.clock_s() < deadline_s:
        left -= {one for one in left if (result := stage.get(one)) is not None and result.ended}
        yield 4 * TICK_S
    stage.expect(not left, f"{len(left)} tasks of a story had not ended after {within_s:g} s")


def ended(stage: FaultTestbed, task_id: str) -> Result:
    result = stage.get(task_id)
    assert result is not None, task_id
    return result


def until_in_flight(stage: FaultTestbed, worker: Daemon, count: int) -> Iterator[float]:
    mark = f"{worker.config['name']}."
    while sum(each.worker.startswith(mark) for each in stage.in_flight()) < count:
        yield TICK_S


def kill_the_tree(stage: FaultTestbed, random: Random) -> Steps:
    """The small kill test: 40 tasks, four at a time, everything of the worker killed with four in flight."""
    worker = stage.workers[0]
    ids = [stage.submit("work", "500") for _ in range(40)]
    yield from until_in_flight(stage, worker, 4)
    with stage.fault("SIGKILL worker 1 and all it runs"), stage.away("worker 1"):
        interrupted = {each.id for each in stage.in_flight()}
        killed_ns = monotonic_ns()
        for pid in tree(stage, worker):
            with suppress(ProcessLookupError):  # it has ended by itself, or with the worker
                os.kill(pid, signal.SIGKILL)
        stage.kill(worker)
        yield from back(stage, worker)
    yield from until_ended(stage, ids, 60)
    for one in interrupted:
        again = [each.mono_ns for each in stage.executed() if each.id == one and each.mono_ns > killed_ns]
        late_s = (min(again) - killed_ns) / 1e9 if again else float("inf")
        within_s = stage.layout.lease_s + LATER_S
        stage.expect(late_s <= within_s, f"{one} was back after {late_s:.1f} s, expected within {within_s:g} s")
    states = Counter(ended(stage, one).state.value for one in ids)
    stage.expect(states == {"succeeded": 40}, f"40 tasks were to succeed: {dict(states)}")


def kill_main_only(stage: FaultTestbed, random: Random) -> Steps:
    """SIGKILL to the worker's own process: what it ran is gone within a second."""
    worker = stage.workers[0]
    yield from until_in_flight(stage, worker, 1)
    with stage.fault("SIGKILL worker 1"), stage.away("worker 1"):
        mark = f"{worker.config['name']}."
        orphans = [each.pid for each in stage.in_flight() if each.worker.startswith(mark)]
        stage.kill(worker)
        killed_s = stage.clock_s()
        while any(alive(pid) for pid in orphans) and stage.clock_s() < killed_s + 10:
            yield TICK_S
        took_s = stage.clock_s() - killed_s
        stage.expect(took_s <= 1 + LATER_S, f"what a killed worker ran was there for {took_s:.1f} s")
        yield from back(stage, worker)


def drain(stage: FaultTestbed, random: Random) -> Steps:
    """SIGTERM to a worker amid long tasks: they begin elsewhere soon, and nothing counts as lost."""
    worker = stage.workers[0]
    yield from until_in_flight(stage, worker, 2)
    with stage.fault("SIGTERM worker 1"), stage.away("worker 1"):
        mark = f"{worker.config['name']}."
        held = {each.id for each in stage.in_flight() if each.worker.startswith(mark)}
        stage.kill(worker, signal.SIGTERM)
        gone_ns = monotonic_ns()
        yield 1.0
        yield from back(stage, worker)
    moved = [each for each in stage.executed() if each.id in held and each.event == "start" and each.mono_ns > gone_ns]
    late_s = max(((each.mono_ns - gone_ns) / 1e9 for each in moved), default=0.0)
    stage.expect(late_s <= 2 + LATER_S, f"what a stopped worker handed back began again after {late_s:.1f} s")


def nothing_lost_something_released(stage: FaultTestbed) -> None:
    found = reasons(stage)
    stage.expect(found["lost"] == 0, f"{found['lost']} attempts of an orderly stop count as lost")
    stage.expect(found["released"] > 0, "no attempt was handed back")


def poison(stage: FaultTestbed, random: Random) -> Steps:
    """A task that kills its worker: failed as lost after max_lost, and the others go on."""
    stage.mortal.update(stage.workers)
    victim = stage.submit("poison", on_lost="retry")
    deadline_s = stage.clock_s() + 60
    while stage.clock_s() < deadline_s:
        for worker in stage.workers:
            if not running(worker):
                with stage.fault(f"{stage.name(worker)} was killed by what it ran"), stage.away(stage.name(worker)):
                    yield from back(stage, worker)
        result = stage.get(victim)
        if result is not None and result.ended:
            found = (result.state.value, result.reason)
            stage.expect(found == ("failed", "lost"), f"the poisonous task came to {found}")
            break
        yield 4 * TICK_S
    else:
        stage.complain("the poisonous task did not end")
    stage.mortal.clear()


def flood(stage: FaultTestbed, random: Random) -> Steps:
    """Output without measure: the worker's memory stays flat, the result says how much it was."""
    sizes = {name: peak(stage, name) for name in ("worker 1", "worker 2")}
    ids = [stage.submit("work", "0", "0", str(FLOOD)) for _ in range(2)]
    yield from until_ended(stage, ids, 60)
    for one in ids:
        result = ended(stage, one)
        told = (result.success, result.stdout_size, result.truncated)
        stage.expect(told == (True, FLOOD, True), f"of {FLOOD:,} bytes the result says {told}")
    for name, size in sizes.items():
        grown = peak(stage, name) - size
        stage.expect(grown < 64 * 2**20, f"{name} grew by {grown / 2**20:.0f} MiB under a flood of output")


FLOOD = 200_000_000


def peak(stage: FaultTestbed, name: str) -> int:
    samples = read(stage.histories / "samples.jsonl", Sample)
    return max((sample.rss_bytes for sample in samples if sample.proc == name), default=0)


def daemonize(stage: FaultTestbed, random: Random) -> Steps:
    """A process that leaves its session and keeps the pipes: the attempt ends with its leader, and it dies."""
    ids = [stage.submit("daemonizes") for _ in range(4)]
    yield from until_ended(stage, ids, 20)
    for one in ids:
        exited = [each.mono_ns for each in stage.executed() if each.id == one and each.event == "end"]
        attempt = ended(stage, one).attempts[-1]
        stage.expect(len(exited) == 1, f"{one} ran {len(exited)} times")
        took_s = attempt.ended_at - attempt.started_at
        stage.expect(took_s < 1 + LATER_S, f"an attempt that left a process behind took {took_s:.1f} s")


def deaf(stage: FaultTestbed, random: Random) -> Steps:
    """A program that ignores TERM is gone a grace after its limit."""
    ids = [stage.submit("deaf", "60000", time_limit_s=1.0) for _ in range(3)]
    yield from until_ended(stage, ids, 30)
    for one in ids:
        result = ended(stage, one)
        attempt = result.attempts[-1]
        took_s = attempt.ended_at - attempt.started_at
        stage.expect(result.reason == "time_limit", f"it failed for {result.reason!r}")
        stage.expect(1.9 < took_s < 2.5 + LATER_S, f"limit 1 s and grace 1 s came to {took_s:.2f} s")


def self_stopping(stage: FaultTestbed, random: Random) -> Steps:
    """A program that is stopped is ended by its time limit."""
    ids = [stage.submit("stops", time_limit_s=1.0) for _ in range(3)]
    yield from until_ended(stage, ids, 30)
    for one in ids:
        stage.expect(ended(stage, one).reason == "time_limit", "a stopped program was not ended by its limit")


def no_descriptor_more(stage: FaultTestbed) -> None:
    """Once nothing runs, workers hold as many descriptors as when nothing had run yet."""
    samples = list(read(stage.histories / "samples.jsonl", Sample))
    before = {worker: next(each.fds for each in samples if each.proc == stage.name(worker)) for worker in stage.workers}

    def now() -> dict[str, int]:
        return {stage.name(worker): len(descriptors(worker.pid)) for worker in before}

    until(
        lambda: all(len(descriptors(worker.pid)) <= fds for worker, fds in before.items()),
        lambda: f"the descriptors of the beginning, not {now()}",
    )


def some_fenced(stage: FaultTestbed) -> None:
    """The case did what it is for: somebody was told that its lease was given away."""
    stage.expect(stage.logged("its lease was given away") > 0, "nothing was fenced: the case proves nothing")


def no_exec_failure(stage: FaultTestbed) -> None:
    """A host that cannot start a process is no failure of the task."""
    found = reasons(stage)
    stage.expect(not found["exec"], f"{found['exec']} attempts failed because the host was short of something")
    stage.expect(stage.logged("spawn=failed") > 0, "every process could be started: the case proves nothing")
