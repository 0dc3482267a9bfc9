"""A client: the product's core, driven by a shell that opens no socket."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from kingtask.client.call import Call
from kingtask.client.core import Core
from tests.simulator.faults import Faults
from tests.simulator.processes import HostedBroker, Peer
from tests.simulator.world import SimulatedWorld


class SimulatedClient:
    """`brokers` gives the one that listens at an address now, or None; `on_done` gets each call that is done."""

    def __init__(
        self,
        world: SimulatedWorld,
        faults: Faults,
        name: str,
        addresses: int,
        brokers: Callable[[int], HostedBroker | None],
        on_done: Callable[[SimulatedClient, Call], None],
    ) -> None:
        self._world = world
        self._faults = faults
        self.name = name
        self._brokers = brokers
        self._on_done = on_done
        first = world.random.randrange(addresses)
        self._core = Core([f"broker{i}" for i in range(addresses)], world.random.random, first=first)
        self._connection = 0
        """Counts them; what was on an older one does not arrive."""
        self._to: HostedBroker | None = None
        self._up = False
        self._due_at = inf

    @property
    def pending(self) -> int:
        return self._core.pending

    def start(self, call: Call) -> None:
        if self._core.start(call, self._world.now):
            self._work()
        else:
            self._on_done(self, call)

    def hear(self, connection: int, message: bytes) -> None:
        if connection == self._connection and not self._core.closed:
            call = self._core.received(message, self._world.now)
            if call is not None:
                self._on_done(self, call)
            self._work()

    def gone(self, broker: HostedBroker) -> None:
        """That broker has died; its host tells us so, or not."""
        if self._to is broker and self._world.random.random() < 0.8:
            self._world.after(self._faults.latency(), self._broken, self._connection)

    # ── the shell ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        core, now = self._core, self._world.now
        if core.closed:
            self._up, self._to = False, None
            if core.wants_connection(now):
                self._connect()
        while self._up and (call := core.next_to_send()) is not None:
            core.sent(now)
            if not self._faults.message_lost():
                self._world.after(self._faults.latency(), self._carry, self._to, self._connection, call.message)
        at = core.next_at()
        if at < self._due_at:
            self._due_at = at
            self._world.at(at, self._due, at)

    def _due(self, at: float) -> None:
        if at != self._due_at:
            return
        self._due_at = inf
        for call in self._core.tick(self._world.now):
            self._on_done(self, call)
        self._work()

    def _connect(self) -> None:
        self._core.opened(self._world.now)
        self._connection += 1
        self._to = self._brokers(self._core.index)
        if self._to is None:
            self._world.after(self._faults.latency(), self._broken, self._connection)
        elif not self._to.loop.stopped:
            self._world.after(self._faults.latency(), self._connected, self._connection)

    def _connected(self, connection: int) -> None:
        if connection == self._connection and not self._core.closed:
            self._core.up()
            self._up = True
            self._work()

    def _broken(self, connection: int) -> None:
        if connection == self._connection:
            self._core.broken(self._world.now)
            self._work()

    def _carry(self, broker: HostedBroker, connection: int, message: bytes) -> None:
        peer: Peer = (self.name.encode(), str(connection).encode())
        broker.loop.call_soon(broker.router.arrived, peer, message)


class Switchboard:
    """Replies to the clients they are for."""

    def __init__(self, world: SimulatedWorld, faults: Faults) -> None:
        self._world = world
        self._faults = faults
        self.clients: dict[bytes, SimulatedClient] = {}

    def reply(self, peer: Peer, message: bytes) -> None:
        if not self._faults.message_lost():
            client, connection = self.clients[peer[0]], int(peer[1])
            self._world.after(self._faults.latency(), client.hear, connection, message)
