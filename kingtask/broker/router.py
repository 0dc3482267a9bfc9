"""The ROUTER socket: receives whole messages and sends replies, without ever blocking the loop.

A ROUTER that is not read buffers without limit. So reading never stops, and the dispatcher answers `busy` over its
bounds. The socket's descriptor is edge-triggered, so its events are checked again after each batch of sends and
receives. Every frame is hostile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import zmq
import zmq.backend

from kingtask import protocol, wire
from kingtask.broker import counters
from kingtask.broker.auth import AuthenticatedPeer, Peer
from kingtask.broker.counters import Counters
from kingtask.broker.relay import QUEUED_BYTES, Relay, RelayedConnection
from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError, InvalidRequest, RequestRefused

NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Plain integers: to combine the enums takes longer than to send a frame."""

_send, _get = zmq.backend.Socket.send, zmq.backend.Socket.get
"""Without their wrappers, which take longer than sending does (1.5 against 0.5 µs)."""
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

MAX_FRAME_BYTES = wire.MAX_MESSAGE_BYTES + 65_536
"""A message slightly over the limit gets an error; a larger frame closes the connection."""
WINDOW_BYTES = 65_536
"""Replies that libzmq has for one peer, and the last one beyond; the rest stays here, where it is counted."""
HEADER_BYTES = 2
"""Length of a short frame's header. A longer one has 9, one of CURVE 33 more. Too few bytes are safe, too many not."""
DRAIN_MESSAGES = 256
DRAIN_FRAMES = 2_048
"""A message may have any number of frames. Those of a message that is refused are dropped over several drains."""
DRAIN_US = 2_000
"""A drain ends at any of these three bounds, so that timers and replies from Redis do not wait longer."""

SOCKET_OPTIONS: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms; a connection without a ZMTP handshake is closed after it
    # No heartbeats from here: libzmq 4.3.5 aborts the process when one falls due on a connection that has ended while
    # its messages are still unread (libzmq issue 4364). Our clients and workers send heartbeats with a time to live,
    # after which libzmq ends their connection here. For other peers the kernel sends probes (relay).
    zmq.SNDHWM: 1_000,  # messages per peer
    zmq.RCVHWM: 256,
    zmq.LINGER: 0,
    # Never passes: the relay ends each endpoint itself. With -1 libzmq ends it at once, also amid a message that is
    # being read, and then aborts (fq.cpp, `!_more`).
    zmq.RECONNECT_IVL: 2**30,  # ms
    # A domain, which the relay sets for each connection, also makes libzmq refuse peers of ZMTP 1 and 2
    # (zmtp_engine.cpp). Random bytes mostly pass for such a peer, and its messages do not name their connection.
    zmq.ZAP_ENFORCE_DOMAIN: 1,
}


class BrokerSocket:
    """One socket of a broker, behind the relay and read on the loop: the common part of ROUTER and XPUB."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        options: Mapping[int, int],
        relay: Relay,
        endpoints: Sequence[str],
        setting: str,
    ) -> None:
        """Listen. Raises ConfigurationError that names the setting if an endpoint cannot be bound."""
        for option, value in {**SOCKET_OPTIONS, **options}.items():
            socket.setsockopt(option, value)
        if relay.auth is not None:
            relay.auth.secure(socket)
        self._socket = socket
        self._relay = relay
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_scheduled = False
        try:
            relay.serve(socket, endpoints, setting, self)
        except ConfigurationError:
            socket.close()
            raise

    def left(self, connection: RelayedConnection) -> None:
        """This peer sends nothing more."""

    def _read(self) -> None:
        """Call `_drain` from now on whenever the descriptor has an event."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)
        self.drain_again()

    def stop(self, linger_ms: int = 0) -> None:
        """Stop reading; messages sent before get `linger_ms` to leave. Idempotent."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close(linger_ms)

    def taken(self, connection: RelayedConnection) -> None:
        """This peer has taken a part of its replies, and more of them wait."""

    @property
    def amid_message(self) -> bool:
        """Whether only a part of a message was read so far."""
        return False

    def drain_again(self) -> None:
        if not self._drain_scheduled and self._loop is not None:
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)

    def _readable(self) -> bool:
        """Whether there is a message: 1 µs. The exception of a receive without one takes 3."""
        return bool(int(_get(self._socket, EVENTS)) & POLLIN)

    def _drain(self) -> None:
        """Read what there is, within bounds. The descriptor is edge-triggered: after sends `drain_again` is due."""
        raise NotImplementedError


class RouterSocket(BrokerSocket):
    """Owns the ROUTER socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        relay: Relay,
        endpoints: Sequence[str],
        counters: Counters,
    ) -> None:
        """Raises ConfigurationError if an endpoint cannot be bound."""
        options: dict[int, int] = {zmq.ROUTER_MANDATORY: 1, zmq.MAXMSGSIZE: MAX_FRAME_BYTES, zmq.SNDHWM: 0}
        super().__init__(context.socket(zmq.ROUTER), options, relay, endpoints, "addr")
        self._counters = counters
        self._on_request: Callable[[Peer, bytes], None] = lambda peer, message: None
        self._on_drained: Callable[[], None] = lambda: None
        self._refusing: tuple[Peer, int] | None = None
        """The peer of a message with too many frames, and how many were read so far."""

    def start(self, on_request: Callable[[Peer, bytes], None], on_drained: Callable[[], None]) -> None:
        """Read from now on: `on_request` gets each message, `on_drained` is called after each batch of them."""
        self._on_request, self._on_drained = on_request, on_drained
        self._read()

    def reply(self, peer: Peer, message: bytes) -> None:
        """Send without blocking, once the peer has taken most of the replies before. A peer that left loses it."""
        connection = self._relay.connections.get(peer[0])
        if connection is None or connection.ended:
            self._counters.count(counters.DROPPED_REPLY, "peer gone")
            return
        size = len(message) + HEADER_BYTES * len(peer)  # the routing id is not sent, the message has a header too
        connection.account(size)
        if connection.replies or connection.given >= WINDOW_BYTES:
            connection.account(QUEUED_BYTES)
            connection.replies.append((peer, message))
        else:
            self._give(connection, peer, message, size)
        self.drain_again()

    def _give(self, connection: RelayedConnection, peer: Peer, message: bytes, size: int) -> None:
        try:
            for frame in peer:
                _send(self._socket, frame, NOBLOCK_MORE)
            _send(self._socket, message, NOBLOCK)
            connection.given += size
        except zmq.ZMQError:
            connection.account(-size)
            self._counters.count(counters.DROPPED_REPLY, "peer gone")

    def taken(self, connection: RelayedConnection) -> None:
        while connection.replies and connection.given < WINDOW_BYTES:
            peer, message = connection.replies.popleft()
            connection.account(-QUEUED_BYTES)
            self._give(connection, peer, message, len(message) + HEADER_BYTES * len(peer))
        self.drain_again()

    @property
    def amid_message(self) -> bool:
        return self._refusing is not None and not self._socket.closed

    def overfull(self, peer: Peer) -> bool:
        """Whether this peer leaves too many replies unread."""
        connection = self._relay.connections.get(peer[0])
        return connection is not None and self._relay.overfull(connection)

    def refuse(self, peer: Peer, rid: protocol.Rid | None, error: RequestRefused) -> None:
        """Count the error, and send it as the reply."""
        self._counters.refused(error)
        self.reply(peer, protocol.refusal(rid, error))

    def _drain(self) -> None:
        self._drain_scheduled = False
        if self._socket.closed:
            return
        until_us = monotonic_us() + DRAIN_US
        for number in range(DRAIN_MESSAGES):
            if number < 2 and not self._readable():  # most drains find one message or none
                break
            amid_message = self._refusing is not None
            try:
                request = self._receive()
            except zmq.Again:
                break
            if request is not None:
                self._on_request(*request)
            if amid_message or self._refusing is not None or (number % 8 == 7 and monotonic_us() > until_us):
                self.drain_again()
                break
        else:
            self.drain_again()
        self._on_drained()

    def _receive(self) -> tuple[Peer, bytes] | None:
        """Read one message, frame by frame; None if it is dropped or refused. Raises zmq.Again if there is none."""
        if self._refusing is not None:
            self._refuse_frames(*self._refusing)
            return None
        peer: Peer = (self._socket.recv(NOBLOCK),)
        last = self._socket.recv(NOBLOCK, copy=False)  # a Frame knows whether more follow; getsockopt takes longer
        if last.more:
            if not len(last):
                peer = (*peer, b"")
                last = self._socket.recv(NOBLOCK, copy=False)
            if last.more:
                self._refuse_frames(peer, len(peer))
                return None
        message = last.bytes
        connection = self._relay.connections.get(peer[0])
        if connection is None or connection.ended:
            return None
        connection.completed(len(message))
        if not message:
            self._counters.count(counters.EMPTY_MESSAGE, "nothing in it" if len(peer) == 1 else "only a delimiter")
            return None
        if self._relay.auth is None:
            return peer, message
        return AuthenticatedPeer(peer, self._relay.auth.names[connection.key]), message

    def _refuse_frames(self, peer: Peer, frames: int) -> None:
        """Drop the rest of a message of which `frames` were read, at most DRAIN_FRAMES at a time; then refuse it."""
        connection = self._relay.connections.get(peer[0])
        for _ in range(DRAIN_FRAMES):
            frames += 1
            frame = self._socket.recv(NOBLOCK, copy=False)
            if connection is not None:
                connection.completed(len(frame))
            if not frame.more:
                break
        else:
            self._refusing = (peer, frames)
            return
        self._refusing = None
        why = f"expected one frame, or an empty delimiter and one frame; got {frames:,}"
        self.refuse(peer, None, InvalidRequest(why, code="bad_frames"))
