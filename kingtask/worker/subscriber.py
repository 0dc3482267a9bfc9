"""The wakeup sockets: what the brokers say without being asked. Hints only; `period` makes up for every lost one.

A broker tells a worker of a task after that has said that it is idle, once: `idle`, `asked` and `full` say it to all of
them, as protocol.IDLE_TOPIC has it. A worker that becomes full says so only to a broker that tells it of a task all the
same, so that none has more than two words to read from it, however long it was away: libzmq 4.3.5 aborts the process of
a broker whose queue of words is full when the connection ends (with a PING behind the words; its issue 4364).

One SUB socket for each broker. libzmq reconnects by itself after a lost connection, but not after one that broke its
protocol (measured: a hint that is too long leaves the socket deaf for good), so each has a monitor, and is made anew
when nothing follows a disconnection.
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

log = logging.getLogger("kingtask.worker")

SOCKET_OPTIONS: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms
    zmq.HEARTBEAT_IVL: 1_000,  # ms; a stopped broker is noticed, and connected to again when it is back
    zmq.HEARTBEAT_TIMEOUT: 3_000,
    zmq.HEARTBEAT_TTL: 4_000,  # the broker ends the connection after so long without a sign of us
    zmq.RECONNECT_IVL: 100,  # ms; doubled up to the next: a broker's restart costs little, its absence next to nothing
    zmq.RECONNECT_IVL_MAX: 2_000,
    # Hints that are not read yet. Never to be reached: libzmq 4.3.5 aborts the process when a connection ends behind a
    # full queue (its issues 3937 and 4364). A thousand a second for a minute and a half take some 10 MB.
    zmq.RCVHWM: 100_000,
    zmq.MAXMSGSIZE: 512,
    zmq.IPV6: 1,
    zmq.LINGER: 0,
}
DRAIN_FRAMES = 512
"""Read before the loop goes on with something else."""
REVIVE_S = 1.0
"""After a disconnection that libzmq does nothing about."""

REFUSED_S = 5.0
"""The same where the broker refuses our key: it may learn it. libzmq would not ask again."""
TELL_REFUSED_S = 60.0

_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_SEEN = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _REFUSED


class Subscriber:
    """Connected to all brokers. `on_ready(soon)` and `on_cancel(task id)` are called in the loop.

    `soon`: the task may not be there yet.
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
        """Raises ConfigurationError if an endpoint is none. Nothing is read before `start`."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._worker = worker
        topics = self._topics(queues)

        def cancelled(frames: list[bytes]) -> None:
            if len(frames) == 2:
                on_cancel(frames[1].decode("ascii", "replace"))

        self._lines: list[_Line] = []
        try:
            for endpoint in endpoints:
                self._lines.append(_Line(self._context, endpoint, keys, topics, on_ready, cancelled))
        except ConfigurationError:
            self.close()
            raise

    def start(self) -> None:
        for line in self._lines:
            line.start(asyncio.get_running_loop())

    def idle(self) -> None:
        """There is room, and nothing was there to claim."""
        for line in self._lines:
            line.idle()

    def asked(self) -> None:
        """A claim has just been sent, with which all was looked for of which the brokers told until now."""
        for line in self._lines:
            line.asked()

    def full(self) -> None:
        """There is no room: what the brokers told since the last claim, or tell from now on, is for others."""
        for line in self._lines:
            line.full()

    def serve(self, queues: Sequence[str]) -> None:
        """Listen for these queues instead."""
        topics = self._topics(queues)
        for line in self._lines:
            line.listen(topics)

    def _topics(self, queues: Sequence[str]) -> set[bytes]:
        """Two queues may share one, and libzmq would count it twice."""
        return {topics.cancel_topic(self._worker), *(topics.ready_topic(queue) for queue in queues)}

    @property
    def connected(self) -> dict[str, bool]:
        """By endpoint."""
        return {line.endpoint: line.connected for line in self._lines}

    def close(self) -> None:
        """Idempotent."""
        for line in self._lines:
            line.close()
        self._lines.clear()
        self._context.term()


class _Word(Enum):
    """What was said to a broker, or heard from it, last."""

    FULL = auto()
    IDLE = auto()
    TOLD = auto()
    """By the broker, of a task; no claim was sent since then."""
    ASKED = auto()
    """The broker tells nothing more, but the socket is still subscribed."""


class _Line:
    """The socket to one broker, and the monitor that says how it fares."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: ClientKeys | None,
        topics: set[bytes],
        on_ready: Callable[[bool], None],
        on_cancel: Callable[[list[bytes]], None],
    ) -> None:
        self._context = context
        self.endpoint = endpoint
        self.connected = False
        self._keys = keys
        self._refused = False
        self._told_s = -TELL_REFUSED_S
        self._topics = topics
        self._on_ready = on_ready
        self._on_cancel = on_cancel
        self._word = _Word.FULL
        self._loop: asyncio.AbstractEventLoop | None = None
        self._revival: asyncio.TimerHandle | None = None
        self._connect()

    def _connect(self) -> None:
        self._frames: list[bytes] = []
        self._socket = self._context.socket(zmq.SUB)
        for option, value in SOCKET_OPTIONS.items():
            self._socket.setsockopt(option, value)
        if self._keys is not None:
            self._keys.put_on(self._socket)
        for topic in self._topics:
            self._socket.subscribe(topic)
        if self._word is not _Word.FULL:
            self._socket.subscribe(topics.IDLE_TOPIC)
        self._monitor = self._socket.get_monitor_socket(_SEEN)
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"wakeup: cannot connect to {self.endpoint}: {error}") from None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._read)
        loop.add_reader(self._monitor.fileno(), self._look)
        self._read()
        self._look()

    def listen(self, topics: set[bytes]) -> None:
        for topic in topics - self._topics:
            self._socket.subscribe(topic)
        for topic in self._topics - topics:
            self._socket.unsubscribe(topic)
        self._topics = topics

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_reader(self._monitor.fileno())
            self._keep_waiting()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    # ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def idle(self) -> None:
        if self._word is _Word.FULL:
            self._socket.subscribe(topics.IDLE_TOPIC)
        elif self._word is _Word.ASKED:  # libzmq counts: the broker hears the first of these only
            self._socket.subscribe(topics.IDLE_TOPIC)
            self._socket.unsubscribe(topics.IDLE_TOPIC)
        else:
            return
        self._word = _Word.IDLE

    def asked(self) -> None:
        if self._word is _Word.TOLD:
            self._word = _Word.ASKED

    def full(self) -> None:
        if self._word is _Word.TOLD:
            self._socket.unsubscribe(topics.IDLE_TOPIC)
            self._word = _Word.FULL

    def _heard(self, frames: list[bytes]) -> None:
        if not frames[0].startswith(topics.IDLE_TOPIC):
            self._on_cancel(frames)
        elif self._word is not _Word.FULL:
            self._word = _Word.TOLD
            self._on_ready(frames[-1][topics.READY_TOPIC_BYTES :] == topics.EARLY)

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        # The descriptor is edge-triggered: read until there is nothing, or come back at once.
        for _ in range(DRAIN_FRAMES):
            if self._socket.closed:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:  # nothing there
                return
            if len(self._frames) < 3:  # two are a hint; what follows them is of no use
                self._frames.append(frame.bytes)
            if not frame.more:
                frames, self._frames = self._frames, []
                self._heard(frames)
        assert self._loop is not None
        self._loop.call_soon(self._read)

    def _look(self) -> None:
        while not self._monitor.closed:
            try:
                told = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.ZMQError:  # nothing there
                return
            assert self._loop is not None
            self._keep_waiting()
            event = told["event"]
            if event & _REFUSED:
                self._handshake_failed(told["event"], told["value"])
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._refused = False
                self.connected = True
                log.info("wakeup=connected endpoint=%s", self.endpoint)
            elif event == zmq.EVENT_DISCONNECTED:
                self.connected = False
                if not self._refused:
                    log.info("wakeup=disconnected endpoint=%s", self.endpoint)
                self._revival = self._loop.call_later(REFUSED_S if self._refused else REVIVE_S, self._revive)

    def _handshake_failed(self, event: int, value: int) -> None:
        self._refused = True
        if monotonic_s() - self._told_s < TELL_REFUSED_S:
            return
        self._told_s = monotonic_s()
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            why = f"the broker does not know this worker's key (status {value})"
        else:
            why = "the connection ended in the handshake; do the keys (curve) fit those of the broker?"
        log.warning("wakeup=refused endpoint=%s: %s. Tasks are found by polling alone", self.endpoint, why)

    def _keep_waiting(self) -> None:
        if self._revival is not None:
            self._revival.cancel()
            self._revival = None

    def _revive(self) -> None:
        assert self._loop is not None
        if not self._refused:
            log.warning(
                "wakeup=stalled endpoint=%s: what answers there broke the protocol; connecting anew", self.endpoint
            )
        self.close()
        self._connect()
        self.start(self._loop)
