"""The product's own `Broker` and `Worker`, whole, on a loop of the world; only what touches the outside is another."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import kingtask.broker.server as broker_module
import kingtask.worker.worker as worker_module
from kingtask import clock, protocol
from kingtask.broker.counters import Counters
from kingtask.config import BrokerConfig, WorkerConfig
from kingtask.errors import RequestRefused
from kingtask.store import codec
from kingtask.store.functions import Claimed, EndedTask, Fence
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.exec.outcome import Stop, judge
from kingtask.worker.outbox import Report
from tests.simulator.links import BrokerStore, Surroundings, WorkerStore
from tests.simulator.world import Loop, SimulatedWorld, here

Peer = tuple[bytes, ...]


class AttemptPlan(NamedTuple):
    """How one attempt goes."""

    seconds: float
    status: int
    obstinate: bool = False
    """It ends only when it is killed."""
    deadly: bool = False
    """It takes its worker with it."""


class Plant(NamedTuple):
    """What all processes of one world share. `run_of` says how an attempt will go."""

    world: SimulatedWorld
    at: Surroundings
    run_of: Callable[[Fence], AttemptPlan]
    replies: Callable[[Peer, bytes], None]
    wakeup: Callable[[Loop, str, str], None]
    """Broker, queue or `cancel:` and worker, id: carries a hint."""
    kill: Callable[[Loop], None]
    ledger: Any


class HostedBroker(broker_module.Broker):
    """A broker with its loop, and the edges that the world talks to."""

    def __init__(self, config: BrokerConfig, loop: Loop) -> None:
        super().__init__(config, lambda: config)
        self.loop = loop

    @property
    def router(self) -> SimulatedRouter:
        router: Any = self._router
        return router

    @property
    def store(self) -> BrokerStore:
        store: Any = self._store
        return store

    @property
    def draining(self) -> bool:
        return self._dispatcher.draining

    @property
    def occupied(self) -> int:
        """Requests and waits that are not answered."""
        return self._dispatcher.pending + self._dispatcher.waiting


class SimulatedRouter:
    def __init__(self, plant: Plant, counters: Counters) -> None:
        self._plant = plant
        self._counters = counters
        self._on_request: Callable[[Peer, bytes], None] = lambda peer, message: None
        self._on_drained: Callable[[], None] = lambda: None
        self._draining = False
        self.open = False

    def start(self, on_request: Callable[[Peer, bytes], None], on_drained: Callable[[], None]) -> None:
        self._on_request = on_request
        self._on_drained = on_drained
        self.open = True

    def stop(self, linger_ms: int = 0) -> None:
        self.open = False

    def reply(self, peer: Peer, message: bytes) -> None:
        self._plant.replies(peer, message)

    def overfull(self, peer: Peer) -> bool:
        return False

    def refuse(self, peer: Peer, rid: protocol.Rid | None, error: RequestRefused) -> None:
        self._counters.refused(error)
        self.reply(peer, protocol.refusal(rid, error))

    def arrived(self, peer: Peer, message: bytes) -> None:
        """In the broker's loop; what arrives at one instant is one drain."""
        if not self.open:
            return
        self._on_request(peer, message)
        if not self._draining:
            self._draining = True
            here().call_soon(self._drained)

    def _drained(self) -> None:
        self._draining = False
        if self.open:
            self._on_drained()


class SimulatedWakeups:
    def __init__(self, plant: Plant, loop: Loop) -> None:
        self._plant = plant
        self._loop = loop

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def ready(self, queue: str, tasks: int) -> None:
        self._plant.wakeup(self._loop, queue, "")

    def notify_early(self, queue: str) -> bool:
        self._plant.wakeup(self._loop, f"soon:{queue}", "")
        return True

    def warm_up(self) -> None:
        self._plant.wakeup(self._loop, "any", "")

    def cancel(self, worker: str, task_id: str) -> None:
        self._plant.wakeup(self._loop, f"cancel:{worker}", task_id)

    def claimed(self, tokens: str) -> None: ...

    def check(self) -> None: ...


class _Subscriber:
    """Both hints of the worker; `plant.wakeup` finds it on the worker's loop."""

    def __init__(self, *, on_ready: Callable[[bool], None], on_cancel: Callable[[str], None], **_more: Any) -> None:
        self.on_ready = on_ready
        self.on_cancel = on_cancel
        here().subscriber = self

    # Whatever it says, hints come or do not, as chance has it.

    def start(self) -> None: ...

    def announce(self, news: Any) -> None: ...

    def take_tokens(self) -> str:
        return ""

    def close(self) -> None: ...


class _NoOrphans:
    def adopt(self, reaper: Any) -> None: ...

    def scan(self) -> None: ...

    def close(self) -> None: ...


class HostedWorker:
    """A worker and its processes: those go on while it is stopped, and die with it."""

    def __init__(self, config: WorkerConfig, name: str, loop: Loop) -> None:
        reaper: Any = SimpleNamespace(check=lambda: None, groups=None)
        self.worker = worker_module.Worker(config, name, reaper, None, lambda: config, "worker.yaml")
        self.name = name
        self.loop = loop

    @property
    def store(self) -> WorkerStore:
        store: Any = self.worker._store
        return store

    @property
    def idle(self) -> bool:
        state = self.worker._state
        return not state.busy and not state.unconfirmed

    async def serve(self) -> None:
        self.loop.add_signal_handler(signal.SIGTERM, self.worker.signalled)
        try:
            await self.worker.start()
            await self.worker.done
        finally:
            await self.worker.stop()


class _Attempt:
    """Stands for `kingtask.worker.attempt.RunningAttempt`: a process that runs as the story says."""

    def __init__(
        self,
        plant: Plant,
        conditions: Any,
        fence: Fence,
        claimed: Claimed,
        on_end: Callable[[Fence, Report | Shortage], None],
    ) -> None:
        self._plant = plant
        self._at = conditions
        self._fence = fence
        self._claimed = claimed
        self._on_end = on_end
        self._run = plant.run_of(fence)
        self._stopped: Stop | None = None
        self._exited = False
        self._killed = False
        self.claimed = claimed

    def start(self) -> bool:
        plant, loop = self._plant, self._at.host.loop
        if plant.at.faults.shortage():
            self._on_end(self._fence, Shortage("no process could be started"))
            return False
        plant.world.note(loop.name, "spawns", f"{self._fence.id[:8]}/{self._fence.number}")
        plant.ledger.spawned(self._fence, self._at.worker)
        plant.world.after(self._run.seconds, self._exit, self._run.status)
        return True

    def stop(self, why: Stop) -> None:
        if self._exited:
            return
        self._stopped = self._stopped or why
        if why == "fenced" or not self._run.obstinate:
            self._plant.world.after(0.002, self._exit, -15)
        else:
            self._plant.world.after(self._at.config.kill_grace, self._exit, -9)

    def kill(self) -> None:
        self._plant.world.after(0.001, self._exit, -9)

    def _exit(self, status: int) -> None:
        if self._run.deadly and not self._at.host.loop.dead:
            self._plant.kill(self._at.host.loop)
        elif not self._exited and not self._at.host.loop.dead:
            self._exited = True
            self._at.host.loop.call_soon(self._gone, status)

    def _gone(self, status: int) -> None:
        claimed = self._claimed
        if self._stopped == "released":
            packed = codec.pack_attempt(claimed.number, self._at.worker, 0, 0, "released")
            self._on_end(self._fence, packed)
            return
        verdict = judge(status, b"", 0, keep_stderr=True, stopped=self._stopped, limit_s=0.0)
        packed = codec.pack_attempt(claimed.number, self._at.worker, 0, 0, verdict.reason)
        out = b"%d" % claimed.number
        end = EndedTask(self._fence, verdict.verdict, verdict.reason, packed, out, b"", len(out), 0)
        self._on_end(self._fence, end)


class _Os:
    """`os`, but with the seed's random numbers and no descriptors."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world

    def urandom(self, size: int) -> bytes:
        return self._world.random.randbytes(size)

    def open(self, *_: Any) -> int:
        return -1

    def close(self, _: int) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@contextmanager
def replaced(plant: Plant) -> Iterator[None]:
    """While this lasts, what the product makes of sockets, connections, processes and clocks is the plant's."""
    no_zmq = SimpleNamespace(
        Context=lambda: SimpleNamespace(setsockopt=lambda *_: None, term=lambda: None), MAX_SOCKETS=0
    )

    def router(_context: Any, _relay: Any, _endpoints: Sequence[str], counters: Counters) -> SimulatedRouter:
        return SimulatedRouter(plant, counters)

    async def closed(_timeout_s: float) -> None: ...

    def attempt(*arguments: Any) -> _Attempt:
        return _Attempt(plant, *arguments)

    with ExitStack() as stack:
        for module, names in (
            (clock, {"time": plant.world}),
            (
                broker_module,
                {
                    "zmq": no_zmq,
                    "RouterSocket": router,
                    "Relay": lambda *_: SimpleNamespace(
                        start=lambda: None, stop=lambda: None, close=lambda: None, closed=closed, sent=closed
                    ),
                    "Wakeups": lambda *_: SimulatedWakeups(plant, here()),
                    "BrokerStore": lambda *_, **_more: BrokerStore(plant.at),
                },
            ),
            (
                worker_module,
                {
                    "os": _Os(plant.world),
                    "Store": lambda *_, **_more: WorkerStore(plant.at),
                    "Subscriber": lambda *_, **callbacks: _Subscriber(**callbacks),
                    "EpollSet": lambda _loop: SimpleNamespace(close=lambda: None),
                    "Orphans": lambda *_: _NoOrphans(),
                    "RunningAttempt": attempt,
                },
            ),
        ):
            stack.enter_context(mock.patch.multiple(module, **names))
        yield
