"""What befalls them: processes die, stop and are asked to stop, Redis goes, hangs, fails over, clocks jump."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.simulator.cast import Cast
from tests.simulator.faults import Faults
from tests.simulator.processes import HostedBroker
from tests.simulator.redis import SimulatedRedis
from tests.simulator.world import Loop, SimulatedWorld


class TroubleSchedule:
    """For `seconds`, of some kinds, until `heal`."""

    def __init__(
        self,
        world: SimulatedWorld,
        faults: Faults,
        redis: SimulatedRedis,
        cast: Cast,
        *,
        lease_s: float,
        seconds: float,
    ) -> None:
        self._world = world
        self._random = world.random
        self._faults = faults
        self._redis = redis
        self._cast = cast
        self._lease_s = lease_s
        self._seconds = seconds
        self.healed = False

    def plan(self) -> None:
        random = self._random
        kinds: list[Callable[[], None]] = [
            self._kill_broker,
            self._drain_broker,
            self._stop_broker,
            self._kill_worker,
            self._stop_worker,
            self._drain_worker,
            self._redis_outage,
            self._redis_hangs,
            self._cut_off,
            self._reset_connections,
            self._clock_jump,
        ]
        if self._redis.replica is not None:
            for _ in range(random.choice([0, 1, 1, 2])):
                self._world.after(random.uniform(0.1, self._seconds), self._cut_off_primary)
        some = random.sample(kinds, random.choice([0, 1, 2, 3, len(kinds)]))
        for _ in range(random.choice([1, 3, 8]) if some else 0):
            self._world.after(random.uniform(0.1, self._seconds), random.choice(some))

    def _kill_broker(self) -> None:
        broker = self._cast.some(self._cast.brokers)
        if broker is not None and not self.healed:
            self._cast.remove_broker(broker)

    def _kill_worker(self) -> None:
        worker = self._cast.some(self._cast.workers)
        if worker is not None and not self.healed:
            self._cast.die(worker.loop)

    def _drain_broker(self) -> None:
        """SIGTERM."""
        broker = self._cast.some(self._cast.brokers)
        if broker is not None and broker.router.open and not broker.draining and not self.healed:
            self._world.note(broker.loop.name, "SIGTERM")
            broker.loop.call_soon(self._stop_by_itself, broker)

    def _stop_by_itself(self, broker: HostedBroker) -> None:
        def stopped(task: Any) -> None:
            task.result()
            self._cast.remove_broker(broker)

        broker.loop.start(broker.stop()).add_done_callback(stopped)

    def _stop_broker(self) -> None:
        self._stop(self._cast.some(self._cast.brokers))

    def _stop_worker(self) -> None:
        self._stop(self._cast.some(self._cast.workers))

    def _stop(self, process: Any) -> None:
        if process is not None and not self.healed:
            self._world.note(process.loop.name, "stopped")
            process.loop.stop_process()
            self._world.after(self._random.uniform(0.1, 2.0) * self._lease_s, self._resume, process.loop)

    def _resume(self, loop: Loop) -> None:
        if loop.stopped:
            self._world.note(loop.name, "goes on")
            loop.resume()

    def _drain_worker(self) -> None:
        worker = self._cast.some(self._cast.workers)
        if worker is not None and signal.SIGTERM in worker.loop.signals and not self.healed:
            self._world.note(worker.name, "SIGTERM")
            for _ in range(self._random.choice([1, 1, 2, 3])):
                worker.loop.call_soon(worker.loop.signals[signal.SIGTERM])

    def _redis_outage(self) -> None:
        if self._redis.up and not self.healed:
            self._redis.go_down()
            self._world.after(self._random.choice([0.3, 2.0, 4.0]), self._redis.come_back)

    def _cut_off_primary(self) -> None:
        """From its replica, for a while; after that all is well again, or the replica has taken over."""
        replica, random = self._redis.replica, self._random
        if replica is not None and not self.healed:
            self._world.note("replica", "stalls")
            seconds = random.choice([0.05, 0.5, 3.0])
            replica.stall(self._world.now + seconds + 0.001)
            if random.random() < 0.7:
                self._world.after(seconds, self._fail_over)

    def _fail_over(self) -> None:
        if self._redis.up and not self.healed:
            self._redis.fail_over()
            self._world.after(self._random.choice([0.3, 2.0]), self._redis.come_back)

    def _redis_hangs(self) -> None:
        if self._redis.serves and not self.healed:
            self._redis.hang()
            self._world.after(self._random.uniform(0.1, 2.0) * self._lease_s, self._unhang)

    def _unhang(self) -> None:
        if self._redis.hung:
            self._redis.go_on()

    def _cut_off(self) -> None:
        process = self._cast.some(self._cast.everyone)
        if process is not None and not self.healed:
            self._world.note(process.loop.name, "cut off")
            self._faults.cut(process.loop)
            self._world.after(self._random.uniform(0.1, 2.0) * self._lease_s, partial(self._faults.mend, process.loop))

    def _reset_connections(self) -> None:
        process = self._cast.some(self._cast.everyone)
        if process is not None:
            process.store.reset()

    def _clock_jump(self) -> None:
        if not self.healed:
            self._redis.jump(self._random.choice([-5000, -50, 50, 2000, 5000]))

    def heal(self) -> None:
        self._world.note("world", "healed")
        self.healed = True
        self._faults.heal()
        if self._redis.hung:
            self._redis.go_on()
        for process in self._cast.everyone:
            self._resume(process.loop)
