"""One seed, one story: who there is, what is asked of them, what befalls them; then all is healed and must drain."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from kingtask.policy import Policy
from kingtask.states import TERMINAL
from tests.simulator.cast import Cast
from tests.simulator.client import SimulatedClient, Switchboard
from tests.simulator.faults import Faults
from tests.simulator.ledger import InvariantLedger, Violation
from tests.simulator.links import Surroundings
from tests.simulator.processes import HostedBroker, Plant, replaced
from tests.simulator.redis import Replica, SimulatedRedis
from tests.simulator.trouble import TroubleSchedule
from tests.simulator.work import Work
from tests.simulator.world import SimulatedWorld
from tests.store.model import Model

TROUBLE_S = 8.0
"""How long things go wrong."""
DRAIN_S = 90.0
"""By when all must have ended after that: a lease or two, the retries, the patience of clients."""
CHECK_S = 0.25


class SimulationRun:
    """Everything in it is drawn from the seed; `run` raises Violation."""

    def __init__(self, seed: int, *, model: type[Model] = Model) -> None:
        self.world = world = SimulatedWorld(seed)
        random = world.random
        lease_s = random.choice([1.5, 3.0, 3.0, 15.0])
        policy = Policy(lease_ms=round(lease_s * 1000), max_lost=random.choice([1, 3, 3]))
        self.ledger = InvariantLedger(policy)
        faults = Faults(random, lease_s)
        replica = Replica(faults.latency) if random.random() < 0.25 else None
        self._redis = SimulatedRedis(world, policy, self.ledger, model, replica)
        at = Surroundings(self._redis, faults, random.choice([lease_s / 3, 5.0]))
        switchboard = Switchboard(world, faults)
        self._cast = cast = Cast(world, faults, lease_s, policy.max_lost, self._broker_gone)
        self._work = work = Work(seed, world, self._redis, self.ledger, cast, lease_s=lease_s, seconds=TROUBLE_S)
        for number in range(random.choice([1, 2])):
            client = SimulatedClient(
                world, faults, f"client{number}", len(cast.brokers), lambda i: cast.brokers[i], work.done
            )
            switchboard.clients[client.name.encode()] = client
            work.clients.append(client)
        self._trouble = TroubleSchedule(world, faults, self._redis, cast, lease_s=lease_s, seconds=TROUBLE_S)
        self._plant = Plant(world, at, work.run_of, switchboard.reply, cast.wakeup, cast.die, self.ledger)

    def run(self) -> None:
        """Raises Violation; the trace is in `world`."""
        with replaced(self._plant), _silent():
            try:
                self._tell()
            finally:
                for process in self._cast.everyone:
                    process.loop.kill()

    def _tell(self) -> None:
        world = self.world
        self._cast.start()
        self._work.plan()
        self._trouble.plan()
        world.run(world.now + TROUBLE_S)
        self._work.healed = True
        self._trouble.heal()
        until = world.now + DRAIN_S
        while not self._at_rest:
            if world.now >= until:
                raise Violation(f"not drained {DRAIN_S:g} s after all was healed: {self._left()}")
            world.run(world.now + CHECK_S)
        self.ledger.close()

    def _broker_gone(self, broker: HostedBroker) -> None:
        for client in self._work.clients:
            client.gone(broker)

    @property
    def _at_rest(self) -> bool:
        return self.ledger.drained and not any(self._busy())

    def _busy(self) -> Iterator[bool]:
        yield any(client.pending for client in self._work.clients)
        yield any(worker is None or not worker.idle for worker in self._cast.workers)
        yield any(broker is None or broker.occupied > 0 for broker in self._cast.brokers)

    def _left(self) -> str:
        living = [task for task in self._redis.model.tasks.values() if task.state not in TERMINAL]
        clients, workers, brokers = self._busy()
        return f"{[(t.id[:8], t.state.value) for t in living]}, busy {clients=} {workers=} {brokers=}"


@contextmanager
def _silent() -> Iterator[None]:
    """The daemons log every fault."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
