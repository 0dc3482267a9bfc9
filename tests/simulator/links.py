"""The store as broker and worker see it, over connections that lose, delay and reorder as connections do.

What the product's `Store` promises is kept: replies come in the order of the calls, nothing is sent twice, a connection
that is lost or overdue answers all that is under way with `unknown`, and comes back by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from kingtask.clock import ServerClock, monotonic_us
from kingtask.errors import StoreError
from kingtask.store.functions import BULK, FunctionCall
from tests.simulator.faults import Fate, Faults
from tests.simulator.redis import SimulatedRedis
from tests.simulator.world import Loop, here

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

Callback = Callable[[Any], None]


class Surroundings(NamedTuple):
    """What a process finds outside itself."""

    redis: SimulatedRedis
    faults: Faults
    timeout_s: float


class CallUnderWay(NamedTuple):
    call: FunctionCall
    callback: Callback
    sent_us: int


class Connection:
    def __init__(self, link: SupervisedConnection, loop: Loop, at: Surroundings) -> None:
        self._link = link
        self._loop = loop
        self._at = at
        self.life = at.redis.life
        self._pending: deque[CallUnderWay] = deque()
        self._executed_at = 0.0
        self._replied_at = 0.0
        self._cut = self._deaf = False
        self._watch: Any = None
        self.open = True

    def send(self, call: FunctionCall, callback: Callback) -> None:
        world, faults = self._loop.world, self._at.faults
        sent = CallUnderWay(call, callback, monotonic_us())
        self._pending.append(sent)
        fate = Fate.LOST if self._cut else faults.of_call(self._loop)
        arrives = max(self._executed_at, world.now + faults.latency())
        if fate is not Fate.WELL:
            world.note(self._loop.name, fate.value, call.function)
        if fate is Fate.LATE:
            self._deaf = True
            arrives = max(arrives, world.now + faults.lateness(self._loop))
        self._executed_at = arrives
        if fate is Fate.LOST:
            self._cut = True
            world.at(arrives, self._break)
        else:
            world.at(arrives, self._arrive, sent, fate)
        if self._watch is None:
            self._watch = self._loop.call_later(self._at.timeout_s, self._check_overdue)

    def _arrive(self, sent: CallUnderWay, fate: Fate) -> None:
        """At the server: what its network stack has taken is executed, whether or not the sender is still there."""
        redis = self._at.redis
        if not redis.up or redis.life != self.life:
            return
        if redis.hung:
            redis.deferred.append(lambda: self._arrive(sent, fate))
            return
        if fate is Fate.REFUSED:
            value: Any = self._at.faults.refusal()
        else:
            value = redis.execute(self._loop.name, sent.call)
        if fate is Fate.UNHEARD:
            self._deaf = True
            self._loop.world.after(self._at.faults.latency(), self._break)
        if not self._deaf:
            delay = self._at.faults.latency() + (self._at.faults.slowness() if fate is Fate.SLOW else 0.0)
            self._replied_at = max(self._replied_at, self._loop.world.now + delay)
            self._loop.call_at(self._replied_at, self._received, sent, value)

    def _received(self, sent: CallUnderWay, value: Any) -> None:
        if not self.open:
            return
        assert self._pending.popleft() is sent
        self._link.observe(value, sent.sent_us)
        sent.callback(value)

    def _check_overdue(self) -> None:
        self._watch = None
        if not self._pending or not self.open:
            return
        left_s = self._at.timeout_s - (monotonic_us() - self._pending[0].sent_us) / 1e6
        if left_s <= 0:
            self.abort()
        else:
            self._watch = self._loop.call_later(left_s, self._check_overdue)

    def _break(self) -> None:
        """Seen from outside: the process learns of it when its loop turns."""
        self._loop.call_soon(self.abort)

    def abort(self) -> None:
        if not self.open:
            return
        self.open = False
        if self._watch is not None:
            self._watch.cancel()
        pending, self._pending = self._pending, deque()
        self._link.dropped(self)
        for sent in pending:
            sent.callback(StoreError("lost", "no answer", stored="unknown"))


class SupervisedConnection:
    """One purpose's connection, kept up."""

    def __init__(self, at: Surroundings, clock: ServerClock, on_up: Callable[[], None], on_down: Callable[[], None]):
        self._at = at
        self._clock = clock
        self._on_up = on_up
        self._on_down = on_down
        self._connection: Connection | None = None
        self._pause_s = FIRST_PAUSE_S
        self._closed = False
        self._loop = here()
        at.redis.on_down.append(self._lost)

    @property
    def up(self) -> bool:
        return self._connection is not None

    @property
    def life(self) -> int:
        """Of the server that it is connected to; -1 if it is not."""
        return -1 if self._connection is None else self._connection.life

    def open(self) -> None:
        self._connect()

    def close(self) -> None:
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None and not self._loop.dead:
            connection.abort()

    def send(self, call: FunctionCall, callback: Callback) -> None:
        if self._connection is None:
            callback(StoreError("away", "Redis is not reachable"))
        else:
            self._connection.send(call, callback)

    def observe(self, value: Any, sent_us: int) -> None:
        now_us = getattr(value, "now_us", None)
        if now_us is not None:
            self._clock.observe(now_us, sent_us, monotonic_us())

    def reset(self) -> None:
        """From outside."""
        if self._connection is not None:
            self._loop.call_soon(self._connection.abort)

    def _lost(self) -> None:
        if not self._loop.dead:
            self._loop.call_later(self._at.faults.latency(), self._aborted, self._connection)

    def _aborted(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.abort()

    def _connect(self) -> None:
        if self._closed or self._connection is not None:
            return
        if self._at.redis.serves and not self._at.faults.cut_off(self._loop):
            self._connection = Connection(self, self._loop, self._at)
            self._pause_s = FIRST_PAUSE_S
            self._on_up()
        else:
            self._connect_later()

    def _connect_later(self) -> None:
        pause_s = self._pause_s * self._loop.world.random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._loop.call_later(pause_s, self._connect)

    def dropped(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._connect_later()
            self._on_down()


class WorkerStore:
    """Stands for `kingtask.store.store.Store`."""

    def __init__(self, at: Surroundings) -> None:
        self.clock = ServerClock()
        self.problem = "as the world wills"
        self.on_up: list[Callable[[], None]] = []
        self.on_down: list[Callable[[], None]] = []
        self.at = at
        self._link = self.link(
            lambda: [listener() for listener in list(self.on_up)], lambda: [listener() for listener in self.on_down]
        )

    def link(self, on_up: Callable[[], Any], on_down: Callable[[], Any]) -> SupervisedConnection:
        return SupervisedConnection(self.at, self.clock, on_up, on_down)

    @property
    def up(self) -> bool:
        return self._link.up

    async def open(self) -> None:
        self._link.open()

    async def close(self) -> None:
        self._link.close()

    def send(self, call: FunctionCall, callback: Callback) -> None:
        self._link.send(call, callback)

    def confirm(self, callback: Callable[[bool], None]) -> None:
        self._confirm(self._link, callback)

    def _confirm(self, link: SupervisedConnection, callback: Callable[[bool], None]) -> None:
        """The replica has it in time, and all is one history: what the link was answered, and what the replica has."""
        redis, loop, life = self.at.redis, here(), link.life
        wait_s = self.at.faults.latency()
        if redis.replica is not None:
            wait_s = max(wait_s, redis.replica.has_all_at - loop.world.now)
        lost = self.at.faults.unconfirmed() or wait_s > self.at.timeout_s
        loop.call_later(min(wait_s, self.at.timeout_s), lambda: callback(not lost and life == redis.life))

    def reset(self) -> None:
        self._link.reset()


class BrokerStore(WorkerStore):
    """Stands for `kingtask.store.store.BrokerStore`."""

    def __init__(self, at: Surroundings) -> None:
        super().__init__(at)
        self.ack_level = "replicas"
        self._submits = self.link(lambda: None, lambda: None)
        self._reads = self.link(lambda: None, lambda: None)
        self._resubscribed: Callable[[], None] = lambda: None
        self._events: dict[str, Callable[[str], None]] = {}
        self._subscription = self.link(self._stands_anew, lambda: None)
        at.redis.subscribers.append(self._published)
        self._loop = here()

    def listen(self, events: dict[str, Callable[[str], None]], on_resubscribed: Callable[[], None]) -> None:
        self._events = events
        self._resubscribed = on_resubscribed

    def _stands_anew(self) -> None:
        self._resubscribed()

    async def open(self) -> None:
        self._submits.open()
        self._reads.open()
        self._subscription.open()
        await super().open()

    async def close(self) -> None:
        self._submits.close()
        self._reads.close()
        self._subscription.close()
        await super().close()

    def send(self, call: FunctionCall, callback: Callback) -> None:
        (self._reads if call.function in BULK else self._link).send(call, callback)

    def submit(self, call: FunctionCall, stored: Callback, confirmed: Callable[[bool], None]) -> None:
        def answered(value: Any) -> None:
            stored(value)
            if not isinstance(value, StoreError):
                self._confirm(self._submits, confirmed)

        self._submits.send(call, answered)

    def _published(self, what: str, text: str) -> None:
        if self._subscription.up and not self._loop.dead and not self.at.faults.cut_off(self._loop):
            for delay in self.at.faults.hints():
                self._loop.call_later(delay, self._events[what], text)
