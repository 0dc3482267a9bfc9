"""A whole stack of one checkout: Redis, broker, worker and client run the code that lies there."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.measure import cpu_s
from tests.bench.stage import ClientProcess, Durability, Failed
from tests.integration.rig import Daemon, StackHarness

DRIVER = Path(__file__).with_name("client_driver.py")
SETTLE_S = 0.003
"""From the last result of a burst until the worker and Redis are idle again."""

Costs = dict[str, float]
"""By row: seconds for one task."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts that both stacks of a comparison share."""

    probe: Path
    durability: Durability
    bytecode: Path
    """Where compiled modules go: nothing is written into a checkout."""
    hash_seed: int
    """The same for both: else one build has luckier dictionaries than the other for a whole round."""


class Build:
    """One checkout; as a context, its running stack. Each sample raises Failed if that stack fails."""

    def __init__(self, checkout: Path, setup: Setup) -> None:
        self._checkout = checkout
        self._setup = setup
        self._stack = ExitStack()
        self._pids: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        """Of its client and its broker."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            rig = stack.enter_context(BuildHarness(self._checkout, self._setup))
            shutil.copy(self._setup.probe, rig.bin_path / "probe")
            broker = rig.start_broker(ack=self._setup.durability.ack)
            worker = rig.start_worker()
            environment = {**os.environ, **rig.environment, "BENCH_BROKER": broker.endpoint}
            self._client = ClientProcess([sys.executable, str(DRIVER)], environment, rig.directory / "client.log")
            stack.callback(self._client.close)
            loaded = Path(self._client.hello["kingtask"])
            if not loaded.is_relative_to(self._checkout):
                raise Failed(f"the client of {self._checkout} has loaded {loaded}")
            self.versions = self._client.hello["versions"]
            self._pids = {
                "cpu-client": self._client.pid,
                "cpu-broker": broker.pid,
                "cpu-redis": rig.redis.pid,
                "cpu-worker": worker.pid,
            }
            pin([self._client.pid, broker.pid, rig.redis.pid])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def trip(self, _: int) -> Costs:
        """One task by itself: start, reply and round trip."""
        return self._client.call("trip")

    def execute(self, tasks: int) -> Costs:
        """Tasks submitted one by one and run four at a time, and the processor time of each process."""
        before = {row: cpu_s([pid]) for row, pid in self._pids.items()}
        taken = self._client.call("execute", n=tasks)["seconds"]
        time.sleep(SETTLE_S)
        used = {row: (cpu_s([pid]) - before[row]) / tasks for row, pid in self._pids.items()}
        return {"executables": taken / tasks, **used}

    def submit(self, tasks: int) -> Costs:
        return {"submits": self._client.call("submit", n=tasks)["seconds"] / tasks}

    def pipeline(self, tasks: int) -> Costs:
        return {"pipelined": self._client.call("pipeline", n=tasks)["seconds"] / tasks}

    def plan(self, instants: list[float]) -> None:
        """Submit a task for each of these instants (epoch seconds)."""
        self._client.call("plan", instants=instants)

    def late(self) -> list[float]:
        """Wait for the planned tasks; return the seconds from each one's instant to its main()."""
        samples: list[float] = self._client.call("late")["samples"]
        early = min(samples)
        if early <= 0:
            raise Failed(f"a task of {self._checkout} started {-early:.6f} s before its instant")
        return samples


def pin(pids: Sequence[int]) -> None:
    """Bind each process, with its threads, to a processor of its own, or to the same ones in turn if there are few.

    Both builds have the same places then. Otherwise the kernel would leave one build's client for seconds on the
    processor that somebody else uses. Workers stay free, for their executables inherit their place.
    """
    processors = sorted(os.sched_getaffinity(0))
    for nth, pid in enumerate(pids):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {processors[nth % len(processors)]})


class BuildHarness(StackHarness):
    def __init__(self, checkout: Path, setup: Setup) -> None:
        super().__init__(tcp=True, appendonly="yes", appendfsync=setup.durability.appendfsync, loglevel="notice")
        # PYTHONSAFEPATH leaves the working directory out: PYTHONPATH alone chooses the build.
        self.environment = {
            "PYTHONPATH": str(checkout),
            "PYTHONSAFEPATH": "1",
            "PYTHONPYCACHEPREFIX": str(setup.bytecode),
            "PYTHONHASHSEED": str(setup.hash_seed),
        }

    def dress(self, daemon: Daemon) -> None:
        daemon.environment = self.environment
