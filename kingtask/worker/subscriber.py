"""The wakeup sockets: hints from the brokers that a task is ready or to be cancelled. `period` covers every lost hint.

A broker sends one hint per idle announcement (see topics.IDLE_TOPIC). A worker that became full reports it only in
answer to a hint. So no broker ever has more than two messages of a worker to read, even if the broker read nothing for
long. With a full queue of messages and a PING behind it, libzmq 4.3.5 would abort the broker when the connection ends
(its issue 4364).

One SUB socket per broker. libzmq reconnects a lost connection by itself, but not one whose peer broke the protocol
(measured: after one overlong hint the socket stays silent for good). So each socket has a monitor, and is replaced when
no event follows a disconnection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto

import zmq
from zmq.utils.monitor import parse_monitor_message

from kingtask import topics
from kingtask.clock import monotonic_s
from kingtask.curve import ClientKeys
from kingtask.errors import ConfigurationError
from kingtask.event import Event

log = logging.getLogger("kingtask.worker")

SOCKET_OPTIONS: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms
    zmq.HEARTBEAT_IVL: 1_000,  # ms; notices a stopped broker, and reconnects when it runs again
    zmq.HEARTBEAT_TIMEOUT: 3_000,
    zmq.HEARTBEAT_TTL: 4_000,  # the broker closes the connection after so long without a heartbeat of ours
    zmq.RECONNECT_IVL: 100,  # ms; doubled up to the next: a broker's restart costs little, its absence next to nothing
    zmq.RECONNECT_IVL_MAX: 2_000,
    # Unread hints. Never to be reached: libzmq 4.3.5 aborts the process when a connection ends behind a full queue
    # (its issues 3937 and 4364). A thousand a second for a minute and a half take some 10 MB.
    zmq.RCVHWM: 100_000,
    zmq.MAXMSGSIZE: 512,
    zmq.IPV6: 1,
    zmq.LINGER: 0,
}
DRAIN_FRAMES = 512
"""Read in one turn of the loop."""
REPLACE_S = 1.0
"""After a disconnection on which libzmq does not act."""
REPLACE_REFUSED_S = 5.0
"""The same after a broker refused our key, which it may learn later; libzmq would not retry."""
LOG_REFUSED_S = 60.0

_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)
"""Plain integers: pyzmq converts an enum at each call. To ask for events is faster than a receive without a message."""
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_MONITORED = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _REFUSED


class Exchange(Enum):
    """The last message to or from a broker about idleness."""

    FULL = auto()
    """No slot is free: hints since the last claim, and later ones, are for other workers."""
    IDLE = auto()
    """Slots are free, and the last claim found nothing more."""
    HINTED = auto()
    """The broker sent a hint; no claim was sent since then."""
    CLAIMED = auto()
    """The hint was used by a claim; the broker sends no other until the next idle announcement."""


class Subscriber:
    """Connected to all brokers. Calls `on_ready(early)` and `on_cancel(task id)` in the loop.

    `early`: the task may not be in Redis yet.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        keys: ClientKeys | None = None,
        *,
        queues: Sequence[str],
        worker: str,
        on_ready: Callable[[bool], None],
        on_cancel: Callable[[str], None],
    ) -> None:
        """Connect on the running loop; nothing is read before `start`. Raises ConfigurationError for a bad endpoint."""
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.keys = keys
        self.on_ready = on_ready
        self.on_cancel = on_cancel
        self._worker = worker
        wanted = self._topics(queues)
        self._peers: list[_Peer] = []
        try:
            for endpoint in endpoints:
                self._peers.append(_Peer(self, endpoint, wanted))
        except ConfigurationError:
            self.close()
            raise

    def start(self) -> None:
        for peer in self._peers:
            peer.start()

    def announce(self, news: Exchange) -> None:
        """Tell the brokers IDLE or FULL, as far as they need to know; or note that a claim was sent (CLAIMED)."""
        for peer in self._peers:
            peer.announce(news)

    def take_tokens(self) -> str:
        """Return the tokens of the hints since the last call, for a claim."""
        tokens = " ".join(peer.token for peer in self._peers if peer.token)
        for peer in self._peers if tokens else ():
            peer.token = ""
        return tokens

    def serve(self, queues: Sequence[str]) -> None:
        """Subscribe to these queues instead."""
        for peer in self._peers:
            peer.subscribe(self._topics(queues))

    def _topics(self, queues: Sequence[str]) -> set[bytes]:
        """A set: two queues may have the same topic, and libzmq would count it twice."""
        return {topics.cancel_topic(self._worker), *(topics.ready_topic(queue) for queue in queues)}

    @property
    def connected(self) -> dict[str, bool]:
        """By endpoint."""
        return {peer.endpoint: peer.connected for peer in self._peers}

    def close(self) -> None:
        """Idempotent."""
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self.context.destroy(0)


class _Peer:
    """The socket to one broker, with its monitor."""

    def __init__(self, owner: Subscriber, endpoint: str, wanted: set[bytes]) -> None:
        self._owner = owner
        self.endpoint = endpoint
        self.connected = False
        self.token = ""
        """The token of a hint that no claim followed yet."""
        self._refused = False
        self._logged_s = -LOG_REFUSED_S
        self._topics = wanted
        self._exchange = Exchange.FULL
        self._loop = asyncio.get_running_loop()
        self._replacement: asyncio.TimerHandle | None = None
        self._frames: list[bytes] = []
        self._socket, self._monitor = self._connect()

    def _connect(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        socket = self._owner.context.socket(zmq.SUB)
        for option, value in SOCKET_OPTIONS.items():
            socket.setsockopt(option, value)
        if self._owner.keys is not None:
            self._owner.keys.put_on(socket)
        for topic in self._topics:
            socket.subscribe(topic)
        if self._exchange is not Exchange.FULL:
            socket.subscribe(topics.IDLE_TOPIC)
        monitor = socket.get_monitor_socket(_MONITORED)
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise ConfigurationError(f"wakeup: cannot connect to {self.endpoint}: {error}") from None
        return socket, monitor

    def start(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.add_reader(self._monitor.fileno(), self._drain_monitor)
        self._read()
        self._drain_monitor()

    def subscribe(self, wanted: set[bytes]) -> None:
        for topic in wanted - self._topics:
            self._socket.subscribe(topic)
        for topic in self._topics - wanted:
            self._socket.unsubscribe(topic)
        self._topics = wanted

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._monitor.fileno())
        self._cancel_replacement()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    # ── idleness ────────────────────────────────────────────────────────────────────────────────────────────────────

    def announce(self, news: Exchange) -> None:
        match self._exchange, news:
            case Exchange.FULL, Exchange.IDLE:
                self._socket.subscribe(topics.IDLE_TOPIC)
            case Exchange.CLAIMED, Exchange.IDLE:  # libzmq counts subscriptions: it sends only the first of these
                self._socket.subscribe(topics.IDLE_TOPIC)
                self._socket.unsubscribe(topics.IDLE_TOPIC)
            case Exchange.HINTED, Exchange.FULL:
                self._socket.unsubscribe(topics.IDLE_TOPIC)
            case Exchange.HINTED, Exchange.CLAIMED:
                pass
            case _:
                return
        self._exchange = news

    def _received(self, frames: list[bytes]) -> None:
        if not frames[0].startswith(topics.IDLE_TOPIC):
            if len(frames) == 2:
                self._owner.on_cancel(frames[1].decode("ascii", "replace"))
        elif self._exchange is not Exchange.FULL:
            self._exchange = Exchange.HINTED
            self.token = topics.token_in(frames[0]) or self.token
            self._owner.on_ready(frames[-1][topics.READY_TOPIC_BYTES :] == topics.EARLY)

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        # The descriptor is edge-triggered: read until nothing is there, or call again at once.
        for _ in range(DRAIN_FRAMES):
            if self._socket.closed or not int(self._socket.getsockopt(_EVENTS)) & _POLLIN:
                return
            frame = self._socket.recv(_NOBLOCK, copy=False)
            if len(self._frames) < 3:  # a hint has two at most
                self._frames.append(frame.bytes)
            if not frame.more:
                frames, self._frames = self._frames, []
                self._received(frames)
        self._loop.call_soon(self._read)

    def _drain_monitor(self) -> None:
        while not self._monitor.closed:
            try:
                message = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.ZMQError:  # nothing there
                return
            self._cancel_replacement()
            event = message["event"]
            if event & _REFUSED:
                self._handshake_failed(event, message["value"])
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._refused = False
                self.connected = True
                log.info(Event("wakeup=connected", endpoint=self.endpoint))
            elif event == zmq.EVENT_DISCONNECTED:
                self.connected = False
                if not self._refused:
                    log.info(Event("wakeup=disconnected", endpoint=self.endpoint))
                pause_s = REPLACE_REFUSED_S if self._refused else REPLACE_S
                self._replacement = self._loop.call_later(pause_s, self._replace)

    def _handshake_failed(self, event: int, value: int) -> None:
        self._refused = True
        if monotonic_s() - self._logged_s < LOG_REFUSED_S:
            return
        self._logged_s = monotonic_s()
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            why = f"the broker does not know this worker's key, or not as a worker's (status {value})"
        else:
            why = "the connection ended in the handshake; do the keys (curve) fit those of the broker?"
        log.warning(Event("wakeup=refused", f"{why}. Tasks are found by polling alone", endpoint=self.endpoint))

    def _cancel_replacement(self) -> None:
        if self._replacement is not None:
            self._replacement.cancel()
            self._replacement = None

    def _replace(self) -> None:
        if not self._refused:
            log.warning(Event("wakeup=stalled", "the peer broke the protocol; reconnecting", endpoint=self.endpoint))
        self.close()
        self._frames = []
        self._socket, self._monitor = self._connect()
        self.start()
