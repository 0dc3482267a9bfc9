"""A world without sockets and without time: a core, brokers that misbehave on schedule, and a clock that jumps.

`ClientSimulation.run` does the work of the shells without waiting; one seeded generator decides latencies and faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any

from kingtask import protocol, wire
from kingtask.client.call import Call
from kingtask.client.core import Core
from kingtask.errors import Busy, NotConfirmed


class Mood(Enum):
    """What a broker does to its peers."""

    WELL = "answers within 5 ms"
    SLOW = "answers after 1.5 to 2.5 s"
    FLAKY = "loses, repeats and reorders replies"
    BUSY = "refuses for now"
    UNSURE = "stores, but cannot confirm it"
    MUTE = "takes requests and says nothing"
    DEAF = "takes connections and does not shake hands"
    DEAD = "refuses connections and drops those it has"


@dataclass
class Broker:
    moods: list[tuple[float, Mood]]
    """Since when which mood, in order; the first at 0."""
    stored: set[str] = field(default_factory=set)
    seen: list[bytes] = field(default_factory=list)

    def mood(self, now: float) -> Mood:
        return [mood for since, mood in self.moods if since <= now][-1]


class ClientSimulation:
    """`done` has every call that is done, and when."""

    def __init__(self, brokers: Sequence[Broker], seed: int = 0) -> None:
        self.brokers = list(brokers)
        self.random = Random(seed)
        self.now = 0.0
        self.core = Core([f"broker{i}" for i in range(len(brokers))], self.random.random)
        self.done: list[tuple[float, Call]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.connections = 0
        """How many were begun; what was on an older one than this does not arrive."""
        self._up = False
        for broker in brokers:
            for since, mood in broker.moods:
                if mood is Mood.DEAD:
                    self._at(since, self._broker_died, broker)

    def start(self, call: Call) -> Call:
        if not self.core.start(call, self.now):
            self.done.append((self.now, call))
        return call

    def start_at(self, when: float, call: Call) -> Call:
        self._at(when, self.start, call)
        return call

    def run(self, until: float = inf) -> None:
        """Let time pass until then, or until nothing more happens."""
        while True:
            self._work()
            due_at = min(self.core.next_at(), self._events[0][0] if self._events else inf)
            if due_at == inf or due_at > until:
                self.now = max(self.now, until) if until < inf else self.now
                return
            self.now = max(self.now, due_at)
            while self._events and self._events[0][0] <= self.now:
                heappop(self._events)[2]()
            self.done += [(self.now, call) for call in self.core.tick(self.now)]

    def _work(self) -> None:
        """What a shell does each time round."""
        core = self.core
        if core.closed:
            self._up = False
            if core.wants_connection(self.now):
                self._connect()
        while self._up and (call := core.next_to_send()) is not None:
            core.sent(self.now)
            self._carry(call.message)

    def _connect(self) -> None:
        core = self.core
        core.opened(self.now)
        self.connections += 1
        mood = self.brokers[core.index].mood(self.now)
        if mood is Mood.DEAD:
            self._later(0.001, self._broken, self.connections)
        elif mood is not Mood.DEAF:
            self._later(0.001, self._connected, self.connections)

    def _connected(self, connection: int) -> None:
        if connection == self.connections and not self.core.closed:
            self.core.up()
            self._up = True

    def _broken(self, connection: int) -> None:
        if connection == self.connections:
            self.core.broken(self.now)

    def _broker_died(self, broker: Broker) -> None:
        if self.brokers[self.core.index] is broker:
            self._broken(self.connections)

    def _carry(self, message: bytes) -> None:
        self._later(0.001, self._arrive, self.brokers[self.core.index], message, self.connections)

    def _arrive(self, broker: Broker, message: bytes, connection: int) -> None:
        mood = broker.mood(self.now)
        if mood is Mood.DEAD:
            return
        broker.seen.append(message)
        envelope = wire.decode(message)
        rid = envelope["rid"]
        reply = protocol.ok(rid, {"echo": envelope.get("id"), "id": envelope.get("id")})
        delays = [0.001 + 0.004 * self.random.random()]
        if mood is Mood.BUSY:
            reply = protocol.refusal(rid, Busy("later", retry_after_s=self.random.choice([None, 0.2, 1.0])))
        else:
            broker.stored.add(str(envelope.get("id")))
        match mood:
            case Mood.SLOW:
                delays = [1.5 + self.random.random()]
            case Mood.UNSURE:
                reply = protocol.refusal(rid, NotConfirmed("later"))
            case Mood.FLAKY:
                delays = [3 * self.random.random() for _ in range(self.random.choice([0, 0, 1, 2]))]
            case Mood.MUTE:
                delays = []
        for delay in delays:
            self._later(delay, self._deliver, reply, connection)

    def _deliver(self, reply: bytes, connection: int) -> None:
        if connection != self.connections or self.core.closed:
            return
        call = self.core.received(reply, self.now)
        if call is not None:
            self.done.append((self.now, call))

    def _later(self, delay: float, action: Callable[..., Any], *args: Any) -> None:
        self._at(self.now + delay, action, *args)

    def _at(self, when: float, action: Callable[..., Any], *args: Any) -> None:
        heappush(self._events, (when, next(self._order), lambda: action(*args)))
