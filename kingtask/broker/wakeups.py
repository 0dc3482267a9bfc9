"""The XPUB socket: hints to workers that a queue has ready tasks, or that a task is to be cancelled.

An idle worker subscribes to IDLE_TOPIC and gets one hint. It claims, then subscribes again while it has free slots. A
worker that filled up meanwhile unsubscribes, and its hint goes to another worker. So a task wakes one worker, not all,
and a hint that no idle worker could get goes to the next one that becomes idle. A lost hint delays the task by at most
the worker's `period`, its pause between two claims. `hint_ledger.py` decides which idle peers get hints.

Until a connection ends, libzmq keeps every topic that it subscribed to, also a topic that this broker ignores (200
bytes took 10 KB), and walks all of them whenever a connection ends. So topics are short, longer messages are not
read at all, and a connection that sends too many is cut off.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import Sequence

import zmq

from kingtask import topics
from kingtask.broker import counters
from kingtask.broker.broker_socket import DRAIN_US, NOBLOCK, NOBLOCK_MORE, BrokerSocket
from kingtask.broker.counters import Counters
from kingtask.broker.hint_ledger import HintLedger, WakeupPeer
from kingtask.broker.relay import Relay
from kingtask.clock import monotonic_s, monotonic_us

MAX_MESSAGE_BYTES = 48
"""A topic has three; the handshake, which must fit as well, has some forty."""
MAX_CURVE_BYTES = 512
"""The same with CURVE: its handshake has some 330, and it adds 33 to each message."""
MAX_TOPICS = 258
"""A worker subscribes to each of its queues (256 at most), to its own name and to IDLE_TOPIC."""
MESSAGES_A_SECOND = 5_000
"""Messages of one connection. A worker sends at most two for each hint; one takes this broker some 10 µs."""
MAX_UNKNOWN = 4
"""Unknown topics of one connection: a newer worker may have new ones."""
MAX_UNREAD = 16
"""Messages of one connection that libzmq takes in before they are counted here. With 1,000 messages of 200 bytes, 64
hostile connections stopped the loop for 6 s when they ended."""


class Wakeups(BrokerSocket):
    """Owns the XPUB socket."""

    send_bytes, most_held = 2_048, 65_536

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], relay: Relay, endpoints: Sequence[str], counters: Counters
    ) -> None:
        """Raises ConfigurationError if an endpoint cannot be bound."""
        options: dict[int, int] = {
            zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES if relay.auth is None else MAX_CURVE_BYTES,
            zmq.RCVHWM: MAX_UNREAD,
            zmq.XPUB_MANUAL: 1,
        }
        super().__init__(context.socket(zmq.XPUB), options, relay.auth, endpoints, "wakeup")
        relay.sockets.append(self)
        self._relay = relay
        self._counters = counters
        self._peers: dict[bytes, WakeupPeer] = {}
        """By the id of the connection."""
        self._numbers = itertools.count(1)
        # By the topic of a queue: its idle peers, the longest idle first, and how many tasks found none.
        self._idle: dict[bytes, dict[WakeupPeer, None]] = {}
        self._undelivered = Counter[bytes]()
        self._last_queue = b""
        """The topic of the latest hint."""
        self._ledger = HintLedger()
        self.hints_sent = 0

    @property
    def idle(self) -> int:
        """The number of idle connections that get hints."""
        return sum(peer.idle and self._ledger.admits(peer) for peer in self._peers.values())

    def start(self) -> None:
        self._read()

    # ── hints ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def ready(self, queue: str, tasks: int) -> None:
        """Send one hint per task, as far as there are idle workers; the rest stays undelivered."""
        self._deliver(topics.ready_topic(queue), tasks)

    def notify_early(self, queue: str) -> bool:
        """Send a hint for a task on its way to Redis. Return False if no worker is idle; then call `ready` later."""
        self._last_queue = topics.ready_topic(queue)
        return self._hint_idle(self._last_queue + topics.EARLY)

    def warm_up(self) -> None:
        """Make one worker poll, so that it is awake for the next task."""
        for queue in (self._last_queue, *self._idle):
            if self._hint_idle(queue):
                return

    def cancel(self, worker: str, task_id: str) -> None:
        self._publish(topics.cancel_topic(worker), task_id.encode())

    def claimed(self, tokens: str) -> None:
        """Claims with the tokens of these hints, of any broker, were made."""
        for token in tokens.split():
            if (peer := self._ledger.confirmed(token, monotonic_s())) is not None:
                self._set_idle(peer)  # perhaps it is not, and gives a hint back

    def check(self) -> None:
        """Send hints that no claim followed to other workers, and ask those without hints for a claim."""
        now_s = monotonic_s()
        for hint in self._ledger.overdue(now_s):
            self._deliver(hint, 1)
        for peer in self._ledger.to_ask(now_s):
            self._send_hint(peer, b"")

    def _deliver(self, hint: bytes, tasks: int) -> None:
        queue = self._last_queue = hint[: topics.READY_TOPIC_BYTES]
        while tasks and self._hint_idle(hint):
            tasks -= 1
        if tasks:
            self._undelivered[queue] = min(self._undelivered[queue] + tasks, len(self._peers))

    def _hint_idle(self, hint: bytes) -> bool:
        """Send a hint to the peer of its queue that has been idle longest. Return False if there is none."""
        idle = self._idle.get(hint[: topics.READY_TOPIC_BYTES])
        while idle:
            peer = next(iter(idle))
            self._set_busy(peer)
            if self._ledger.admits(peer):
                self._send_hint(peer, hint)
                return True
        return False

    def _send_hint(self, peer: WakeupPeer, hint: bytes) -> None:
        peer.hint = hint
        self.hints_sent += bool(hint)
        token = self._ledger.sent(peer, hint, monotonic_s())
        self._publish(peer.topic + token.encode(), hint)

    def _publish(self, topic: bytes, body: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):  # a full pipe drops the hint; the worker polls
            self._socket.send(topic, NOBLOCK_MORE)
            self._socket.send(body, NOBLOCK)
        self.drain_again()  # the descriptor is edge-triggered

    # ── subscriptions ───────────────────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        """Read messages for at most DRAIN_US, so that the loop is not blocked."""
        until_us = monotonic_us() + DRAIN_US
        while monotonic_us() < until_us:
            if self._socket.closed or not self._readable():
                return
            self._receive(self._socket.recv(NOBLOCK, copy=False))
        self.drain_again()

    def _receive(self, frame: zmq.Frame) -> None:
        """Handle a message: 1 (subscribe) or 0, then the topic. libzmq sends 0 itself when a connection has ended."""
        try:
            connection = self._relay.connections.get(str(frame.get("User-Id")).encode())
        except zmq.ZMQError:  # libzmq's own message
            return
        if connection is None or connection.ended:
            return
        connection.completed(len(frame))
        if connection.finished:
            return
        peer = self._peers.get(connection.id)
        if peer is None:
            peer = self._peers[connection.id] = WakeupPeer()
        second = monotonic_us() // 1_000_000
        if second != peer.second:
            peer.second, peer.messages = second, 0
        peer.messages += 1
        message = frame.bytes
        on, topic = message[:1] == b"\1", message[1:]
        if not (message[:1] in {b"\0", b"\1"} and topics.is_topic(topic) and self._subscribe(peer, topic, on)):
            peer.unknown += 1
            self._counters.count(counters.UNKNOWN_TOPIC, repr(message))
        subscribed = len(peer.queues) + len(peer.names)
        if peer.messages > MESSAGES_A_SECOND or peer.unknown > MAX_UNKNOWN or subscribed > MAX_TOPICS:
            self._relay.cut(connection, f"messages={peer.messages} topics={subscribed} unknown={peer.unknown}")

    def _subscribe(self, peer: WakeupPeer, topic: bytes, on: bool) -> bool:
        """Subscribe or unsubscribe. Return False if no worker would have sent this."""
        if topic == topics.IDLE_TOPIC:
            if on:
                self._set_idle(peer)
            elif peer.hint:
                hint, peer.hint = peer.hint, b""  # it was given back
                self._deliver(hint, 1)
            else:
                self._set_busy(peer)
            return True
        subscribed = peer.queues if topic[:1] == b"r" else peer.names
        if on == (topic in subscribed):
            return on
        idle = peer.idle  # after a reconnect libzmq subscribes again in sorted order: IDLE_TOPIC before the queues
        self._set_busy(peer)
        if on:
            subscribed.add(topic)
        else:
            subscribed.remove(topic)
        if subscribed is peer.names:
            self._socket.setsockopt(zmq.SUBSCRIBE if on else zmq.UNSUBSCRIBE, topic)
        if idle:
            self._set_idle(peer)
        return True

    def _set_idle(self, peer: WakeupPeer) -> None:
        """Send a hint that found no idle worker, else keep the peer for the next one."""
        if not peer.topic:
            peer.topic = topics.IDLE_TOPIC + (next(self._numbers) & 0xFFFFFFFF).to_bytes(4, "big")
            self._socket.setsockopt(zmq.SUBSCRIBE, peer.topic)
            self._ledger.add(peer, secrets.token_hex(8), monotonic_s())
            self._send_hint(peer, b"")
            return
        peer.hint = b""
        for queue in peer.queues if self._ledger.admits(peer) else ():
            if self._undelivered[queue]:
                self._undelivered[queue] -= 1
                self._set_busy(peer)
                self._send_hint(peer, queue)
                return
        peer.idle = True
        for queue in peer.queues:
            self._idle.setdefault(queue, {})[peer] = None

    def _set_busy(self, peer: WakeupPeer) -> None:
        if peer.idle:
            peer.idle = False
            for queue in peer.queues:
                del self._idle[queue][peer]

    def left(self, connection_id: bytes) -> None:
        if (peer := self._peers.pop(connection_id, None)) is not None:
            self._set_busy(peer)
            self._ledger.forget(peer)
