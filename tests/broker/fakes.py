"""The broker's parts without sockets and without Redis: they record what they are asked, and the test answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kingtask import protocol, wire
from kingtask.broker.auth import Peer
from kingtask.broker.counters import Counters
from kingtask.broker.hint_ledger import WakeupPeer
from kingtask.broker.router import RouterSocket
from kingtask.broker.ticker import Ticker
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import ServerClock
from kingtask.errors import RequestRefused, StoreError
from kingtask.store.functions import FunctionCall, Submitted
from kingtask.store.store import BrokerStore

LOST = StoreError("lost", "no answer from Redis", stored="unknown")


class SentCall(NamedTuple):
    """A call under way; `answer` is how Redis returns."""

    call: FunctionCall
    answer: Callable[[Any], None]


class SubmitSent(NamedTuple):
    """A submit under way: `stored` is how Redis returns, `confirm` how its replicas do."""

    call: FunctionCall
    stored: Callable[[Submitted | StoreError], None]
    confirm: Callable[[bool], None]

    def succeed(self, *outcomes: str, due_ms: list[int] | None = None, reached: bool = True) -> None:
        """Return these outcomes: each task that is ready is one gained by the queue `default`."""
        ready = outcomes.count("ready")
        self.stored(Submitted(1, list(outcomes), [("default", ready)] if ready else [], due_ms or []))
        self.confirm(reached)


class FakeStore(BrokerStore):
    def __init__(self) -> None:
        self.connected = True
        self.clock = ServerClock()
        self.ack_level = "fsync"
        self.on_up = []
        self.sent: list[SentCall] = []
        self.submits: list[SubmitSent] = []
        self.confirms: list[Callable[[bool], None]] = []

    @property
    def up(self) -> bool:
        return self.connected

    @property
    def problem(self) -> str:
        return "connection refused"

    def send(self, call: FunctionCall, callback: Callable[[Any], None]) -> None:
        self.sent.append(SentCall(call, callback))

    def submit(self, call: FunctionCall, stored: Callable[[Any], None], confirmed: Callable[[bool], None]) -> None:
        self.submits.append(SubmitSent(call, stored, confirmed))

    def confirm(self, callback: Callable[[bool], None]) -> None:
        self.confirms.append(callback)

    def answer(self, function: str, value: Any) -> FunctionCall:
        """Answer the oldest call, which is one of this function."""
        call, answer = self.sent.pop(0)
        assert call.function == function
        answer(value)
        return call


class FakeRouter(RouterSocket):
    """Keeps the replies, decoded."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.replies: list[tuple[Peer, dict[str, Any]]] = []
        self.leaves_unread = False

    def reply(self, peer: Peer, message: bytes) -> None:
        self.replies.append((peer, wire.decode(message)))

    def overfull(self, peer: Peer) -> bool:
        return self.leaves_unread

    def refuse(self, peer: Peer, rid: protocol.Rid | None, error: RequestRefused) -> None:
        self._counters.refused(error)
        self.reply(peer, protocol.refusal(rid, error))


class FakeWakeups(Wakeups):
    """`workers` of them are idle."""

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers
        self.early: list[str] = []
        self.gained: list[tuple[str, int]] = []
        self.warmed_up = 0

    def notify_early(self, queue: str) -> bool:
        if self.workers:
            self.workers -= 1
            self.early.append(queue)
            return True
        return False

    def ready(self, queue: str, tasks: int) -> None:
        self.gained.append((queue, tasks))

    def check(self) -> None:
        pass

    def warm_up(self) -> None:
        self.warmed_up += 1


class CredulousWakeups(Wakeups):
    """Takes a worker's word that it is idle: the first hint is for a task."""

    def _send_hint(self, peer: WakeupPeer, hint: bytes) -> None:
        if hint:
            super()._send_hint(peer, hint)
        else:
            self._set_idle(peer)


class StoppedClock:
    """Stands still until a test sets it."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class FakeTicker(Ticker):
    def __init__(self) -> None:
        self.learned: list[int] = []

    def learn(self, due_ms: Any) -> None:
        self.learned += due_ms
