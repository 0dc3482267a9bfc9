"""The ROUTER socket: receives whole messages and sends replies, without ever blocking the loop.

A ROUTER that is not read buffers without limit. So reading never stops, and the dispatcher answers `busy` over its
bounds. The socket's descriptor is edge-triggered, so its events are checked again after each batch of sends and
receives. Every frame is hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import zmq
import zmq.backend

from kingtask import protocol, wire
from kingtask.broker import counters
from kingtask.broker.auth import AuthenticatedPeer, Peer
from kingtask.broker.broker_socket import DRAIN_US, NOBLOCK, NOBLOCK_MORE, BrokerSocket
from kingtask.broker.counters import Counters
from kingtask.broker.relay import QUEUED_BYTES, Relay, RelayedConnection
from kingtask.clock import monotonic_us
from kingtask.errors import InvalidRequest, RequestRefused

_send = zmq.backend.Socket.send
"""Without its wrapper, which takes longer than sending does (1.5 against 0.5 µs)."""

MAX_FRAME_BYTES = wire.MAX_MESSAGE_BYTES + 65_536
"""A message slightly over the limit gets an error; a larger frame closes the connection."""
WINDOW_BYTES = 65_536
"""Replies that libzmq has for one peer, and the last one beyond; the rest stays here, where it is counted."""
HEADER_BYTES = 2
"""Length of a short frame's header. A longer one has 9, one of CURVE 33 more. Too few bytes are safe, too many not."""
DRAIN_MESSAGES = 256
DRAIN_FRAMES = 2_048
"""A drain ends at each of these bounds, and at DRAIN_US. A message may have any number of frames; those of a message
that is refused are dropped over several drains."""


class RouterSocket(BrokerSocket):
    """Owns the ROUTER socket."""

    send_bytes, most_held = 32_768, 2 * wire.MAX_MESSAGE_BYTES

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        relay: Relay,
        endpoints: Sequence[str],
        counters: Counters,
    ) -> None:
        """Raises ConfigurationError if an endpoint cannot be bound."""
        options: dict[int, int] = {zmq.ROUTER_MANDATORY: 1, zmq.MAXMSGSIZE: MAX_FRAME_BYTES, zmq.SNDHWM: 0}
        super().__init__(context.socket(zmq.ROUTER), options, relay.auth, endpoints, "addr")
        relay.sockets.append(self)
        self._relay = relay
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

    def taken(self, connection_id: bytes) -> None:
        connection = self._relay.connections[connection_id]
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
