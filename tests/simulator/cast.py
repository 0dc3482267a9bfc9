"""Who is there: the brokers and workers of one world, started, ended and started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kingtask.config import BrokerConfig, WorkerConfig
from tests.simulator.faults import Faults
from tests.simulator.processes import HostedBroker, HostedWorker
from tests.simulator.world import Loop, SimulatedWorld


class Cast:
    """`on_gone` is told of each broker that has died. Whoever is gone comes back a little later, as another one."""

    def __init__(
        self,
        world: SimulatedWorld,
        faults: Faults,
        lease_s: float,
        max_lost: int,
        on_gone: Callable[[HostedBroker], None],
    ) -> None:
        self._world = world
        self._random = random = world.random
        self._faults = faults
        self._lease_s = lease_s
        self._max_lost = max_lost
        self._on_gone = on_gone
        self.brokers: list[HostedBroker | None] = [None] * random.choice([1, 2, 2, 3])
        self.workers: list[HostedWorker | None] = [None] * random.choice([1, 2, 2, 3])
        self.queues = ["default", "other"][: random.choice([1, 2])]
        self._names = 0

    @property
    def everyone(self) -> list[HostedBroker | HostedWorker]:
        return [process for process in [*self.brokers, *self.workers] if process is not None]

    def start(self) -> None:
        for i in range(len(self.brokers)):
            self._world.after(0.0, self._start_broker, i)
        for i in range(len(self.workers)):
            self._world.after(self._random.choice([0.0, 0.1, 2.0]), self._start_worker, i)

    def some(self, processes: list[Any]) -> Any:
        alive = [process for process in processes if process is not None]
        return self._random.choice(alive) if alive else None

    def remove_broker(self, broker: HostedBroker) -> None:
        self._world.note(broker.loop.name, "gone")
        i = self.brokers.index(broker)
        broker.loop.kill()
        self.brokers[i] = None
        self._on_gone(broker)
        self._world.after(self._random.uniform(0.0, 3.0), self._start_broker, i)

    def die(self, loop: Loop) -> None:
        """A worker, and what it runs."""
        self._world.note(loop.name, "killed")
        loop.kill()
        for i, worker in enumerate(self.workers):
            if worker is not None and worker.loop is loop:
                self.workers[i] = None
                self._world.after(self._random.uniform(0.0, 3.0), self._start_worker, i)

    def _start_broker(self, i: int) -> None:
        if self.brokers[i] is None:
            loop = self._new_loop("broker")
            config = BrokerConfig(lease=self._lease_s, max_lost=self._max_lost)
            loop.call_soon(self._run_broker, i, config, loop)

    def _run_broker(self, i: int, config: BrokerConfig, loop: Loop) -> None:
        broker = HostedBroker(config, loop)
        self.brokers[i] = broker
        loop.start(broker.start())

    def _start_worker(self, i: int) -> None:
        if self.workers[i] is None:
            loop = self._new_loop("worker")
            config = WorkerConfig(
                bin_path=("/",),
                lease=self._lease_s,
                renew=self._lease_s / 3,
                max_lost=self._max_lost,
                concurrency=self._random.choice([1, 2, 4]),
                queues=tuple(self.queues),
                period=self._random.choice([0.3, 1.0]),
                drain_timeout=self._random.choice([0.5, 3.0]),
                kill_grace=0.3,
            )
            loop.call_soon(self._run_worker, i, config, loop)

    def _run_worker(self, i: int, config: WorkerConfig, loop: Loop) -> None:
        worker = HostedWorker(config, loop.name, loop)
        self.workers[i] = worker
        task = loop.start(worker.serve())
        task.add_done_callback(lambda task: self._left_by_itself(i, worker, task))

    def _left_by_itself(self, i: int, worker: HostedWorker, task: Any) -> None:
        """After SIGTERM."""
        task.result()
        self._world.note(worker.name, "left")
        worker.loop.kill()
        self.workers[i] = None
        self._world.after(self._random.uniform(0.0, 2.0), self._start_worker, i)

    def wakeup(self, _broker: Loop, topic: str, task_id: str) -> None:
        for worker in self.workers:
            if worker is None or worker.loop.subscriber is None:
                continue
            for delay in self._faults.hints():
                if not topic.startswith("cancel:"):
                    worker.loop.call_later(delay, worker.loop.subscriber.on_ready, topic.startswith("soon:"))
                elif topic == f"cancel:{worker.name}":
                    worker.loop.call_later(delay, worker.loop.subscriber.on_cancel, task_id)

    def _new_loop(self, what: str) -> Loop:
        self._names += 1
        return Loop(self._world, f"{what}{self._names}")
