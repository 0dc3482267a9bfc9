"""Plays a case: starts its processes, lets its faults happen, heals, drains, and asks for everything once more."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from time import monotonic_ns
from typing import Any

import redis

from kingtask import AsyncClient
from kingtask.errors import KingtaskError, TaskNotFound
from tests.faults.fleet import FleetStage
from tests.faults.history import Final, Op, Reading, Residue, RunRecord, read, write, write_run
from tests.faults.layout import Layout
from tests.faults.rules import Rules
from tests.faults.stage import FaultTestbed

Steps = Generator[float, None, None]
FaultStory = Callable[[FaultTestbed, Random], Steps]
"""A fault, or any other story: does something, yields how many seconds to wait, goes on. It takes back what it did."""

TICK_S = 0.05
HEAL_S = 60.0
DRAIN_S = 120.0
RESIDUE_S = 5.0
ASK_AT_ONCE = 50


@dataclass(frozen=True, kw_only=True)
class Again:
    """A story that begins again and again: first after `after` seconds, then each time so long after its beginning."""

    story: FaultStory
    every: tuple[float, float]
    after: float = 1.0
    times: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is started, what is asked of it, and what happens to it meanwhile."""

    name: str
    what: str
    loads: dict[str, float]
    """Tasks a second of each workload, over all clients."""
    faults: tuple[Again, ...] = ()
    story: FaultStory | None = None
    """Played once beside the faults; the case lasts until it has ended, too."""
    rules: Rules = field(default_factory=Rules)
    caught_by: frozenset[str] = frozenset()
    """A control, whose layout names a variant of the product: one of these invariants must be seen to be broken."""
    check: Callable[[FaultTestbed], None] | None = None
    """What must hold beside the invariants, once all is drained; tells the stage what does not."""
    layout: Layout = field(default_factory=Layout)
    seconds: float = 10.0
    long_seconds: float = 60.0
    short: bool = True
    """Part of the short matrix."""
    alone: bool = False
    """Not beside other cases: it measures time."""


class _Schedule:
    """What is due when, in seconds of the case."""

    def __init__(self, stage: FaultTestbed, case: Case, random: Random) -> None:
        self._stage = stage
        self._random = random
        self._number = count()
        self.planned = 0
        """Stories begun: each should show as a fault at least."""
        self._due: list[tuple[float, int, Steps]] = []
        for again in case.faults:
            self._add(stage.clock_s() + again.after * random.uniform(0.8, 1.2), self._repeat(again))
        self._story = None if case.story is None else case.story(stage, random)
        if self._story is not None:
            self._add(stage.clock_s(), self._story)

    @property
    def story_goes_on(self) -> bool:
        return any(steps is self._story for _, _, steps in self._due)

    @property
    def busy(self) -> bool:
        return bool(self._due)

    def turn(self) -> None:
        """Do what is due."""
        while self._due and self._due[0][0] <= self._stage.clock_s():
            _, _, steps = heapq.heappop(self._due)
            with contextlib.suppress(StopIteration):
                self._add(self._stage.clock_s() + next(steps), steps)

    def _add(self, due_s: float, steps: Steps) -> None:
        heapq.heappush(self._due, (due_s, next(self._number), steps))

    def _repeat(self, again: Again) -> Steps:
        begun = 0
        while not self._stage.over and (again.times is None or begun < again.times):
            self._add(self._stage.clock_s(), again.story(self._stage, self._random))
            begun += 1
            self.planned += 1
            next_s = self._stage.clock_s() + self._random.uniform(*again.every)
            while not self._stage.over and self._stage.clock_s() < next_s:
                yield TICK_S


def play(case: Case, *, seed: int, seconds: float, directory: Path) -> FaultTestbed:
    """Play the case and write its history into `directory`; returns the stage, whose processes have ended."""
    random = Random(f"{case.name}-{seed}")
    kind = FaultTestbed if case.layout.fleet is None else FleetStage
    with kind(case.layout, case.loads, seed, directory) as stage:
        stage.start()
        schedule = _Schedule(stage, case, random)
        ends_s = stage.clock_s() + seconds
        _run(stage, schedule, lambda: stage.clock_s() < ends_s or schedule.story_goes_on)
        stage.over = True
        given_up_s = stage.clock_s() + HEAL_S
        _run(stage, schedule, lambda: schedule.busy and stage.clock_s() < given_up_s)
        stage.expect(not schedule.busy, f"a fault could not be taken back within {HEAL_S:g} s")
        stage.heal()
        healed_ns = monotonic_ns()
        _end_clients(stage, case.layout.client_timeout_s)
        drained_ns = _drain(stage)
        _ask_for_all(stage)
        _dump(stage)
        if case.check is not None:
            case.check(stage)
        with stage.away(*(stage.name(daemon) for daemon in stage.daemons)):
            stage.observe_no_more()
            _end_daemons(stage)
        run = RunRecord(
            case=case.name,
            seed=seed,
            lease_ms=round(case.layout.lease_s * 1000),
            max_lost=case.layout.max_lost,
            planned_faults=schedule.planned,
            healed_ns=healed_ns,
            drained_ns=drained_ns,
        )
        write_run(directory, run)
        return stage


def _run(stage: FaultTestbed, schedule: _Schedule, goes_on: Callable[[], bool]) -> None:
    while goes_on():
        schedule.turn()
        stage.sample()
        time.sleep(TICK_S)


# ── the end of a case ───────────────────────────────────────────────────────────────────────────────────────────────


def _end_clients(stage: FaultTestbed, timeout_s: float) -> None:
    """Have each end with what it has under way."""
    for client in stage.clients:
        client.send_signal(signal.SIGTERM)
    for client in stage.clients:
        try:
            status = client.wait(timeout_s + 4 * stage.layout.lease_s + 10)
        except subprocess.TimeoutExpired:
            stage.complain("a client did not end")
            client.kill()
        else:
            stage.expect(status in (0, -signal.SIGKILL), f"a client ended with {status}")


def _drain(stage: FaultTestbed) -> int:
    """Wait until no task is scheduled, ready or running; returns when that was, 0 if it was not reached."""
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        stage.sample()
        with contextlib.suppress(redis.RedisError):
            if not stage.living():
                return monotonic_ns()
        time.sleep(TICK_S)
    return 0


def _ask_for_all(stage: FaultTestbed) -> None:
    """Every id that a client ever sent, and every task in Redis, twice, through the API."""
    ids = {op.id for path in stage.histories.glob("client-*.jsonl") for op in read(path, Op)}
    with contextlib.suppress(redis.RedisError):
        ids |= stage.stored_ids()
    for _ in range(2):
        write(stage.histories / "final.jsonl", asyncio.run(_ask(stage.client_endpoints(), stage.keys, sorted(ids))))


async def _ask(brokers: list[str], keys: dict[str, Any], ids: list[str]) -> list[Final]:
    room = asyncio.Semaphore(ASK_AT_ONCE)

    async def one(task_id: str) -> Final:
        async with room:
            try:
                result = await client.get(task_id)
            except TaskNotFound:
                return Final(mono_ns=monotonic_ns(), id=task_id)
            except KingtaskError as error:
                code = getattr(error, "code", type(error).__name__)
                return Final(mono_ns=monotonic_ns(), id=task_id, code=code)
            return Final(mono_ns=monotonic_ns(), id=task_id, reading=Reading.of(result))

    async with AsyncClient(brokers, timeout=30, **keys) as client:
        return await asyncio.gather(*(one(task_id) for task_id in ids))


def _dump(stage: FaultTestbed) -> None:
    try:
        write(stage.histories / "dump.jsonl", stage.dump())
    except redis.RedisError as error:
        stage.complain(f"Redis cannot be read at the end: {error}")


def _end_daemons(stage: FaultTestbed) -> None:
    """In good order; then nothing of what the workers ran may be left."""
    for worker in stage.workers:
        for zombie in _children(worker.pid, "Z") if worker.process is not None else ():
            record = Residue(mono_ns=monotonic_ns(), kind="zombie", what=f"{zombie} of {stage.name(worker)}")
            stage.record("residue.jsonl", record)
    for daemon in reversed(stage.daemons):
        if daemon.process is not None and daemon.process.poll() is None:
            stage.note_exit(daemon, daemon.stop(), wanted=True)
    deadline = time.monotonic() + RESIDUE_S
    while (left := list(_left(stage.label))) and time.monotonic() < deadline:
        time.sleep(TICK_S)
    for what in left:
        stage.record("residue.jsonl", Residue(mono_ns=monotonic_ns(), kind="process", what=what))


def _children(pid: int, state: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] == state and int(fields[1]) == pid:
                yield int(path.parent.name)


def _left(label: str) -> Iterator[str]:
    """Processes that a worker of this stage has started, known by their environment, or its guard."""
    mark = f"KINGTASK_WORKER={label}-".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_bytes()
            if mark in (path / "environ").read_bytes() or mark in command:
                yield f"{path.name} {command[:200].decode(errors='replace')!r}"
