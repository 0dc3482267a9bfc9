"""One socket of libzmq, behind the relay and read on the loop: the common part of ROUTER and XPUB."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import zmq
import zmq.backend

from kingtask import failpoint
from kingtask.broker import listening
from kingtask.broker.auth import CurveAuth

NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Plain integers: to combine the enums takes longer than to send a frame."""
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)

_get = zmq.backend.Socket.get
"""Without its wrapper, as `_send` of the router."""

DRAIN_US = 2_000
"""The longest time of a drain, so that timers and replies from Redis do not wait longer."""

SOCKET_OPTIONS: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms; a connection without a ZMTP handshake is closed after it
    # No heartbeats from here: libzmq 4.3.5 aborts the process when one falls due on a connection that has ended while
    # its messages are still unread (libzmq issue 4364). Our clients and workers send heartbeats with a time to live,
    # after which libzmq ends their connection here. For other peers the kernel sends probes (listening).
    zmq.SNDHWM: 1_000,  # messages per peer
    zmq.RCVHWM: 256,
    zmq.LINGER: 0,
    # Never passes: the relay ends each endpoint itself. With -1 libzmq ends it at once, also amid a message that is
    # being read, and then aborts (fq.cpp, `!_more`).
    zmq.RECONNECT_IVL: 2**30,  # ms
    # A domain, which `connect` sets for each connection, also makes libzmq refuse peers of ZMTP 1 and 2
    # (zmtp_engine.cpp). Random bytes mostly pass for such a peer, and its messages do not name their connection.
    zmq.ZAP_ENFORCE_DOMAIN: 1,
}


class BrokerSocket:
    """Give it to a relay, which accepts peers and has libzmq connect; then call `_read`."""

    send_bytes: ClassVar[int]
    """The kernel's buffer of one connection towards libzmq, which processes these bytes even after a cut."""
    most_held: ClassVar[int]
    """Bytes held with which a connection is not read until the broker has read messages of it."""

    def __init__(
        self,
        zmq_socket: zmq.Socket[bytes],
        options: Mapping[int, int],
        auth: CurveAuth | None,
        endpoints: Sequence[str],
        setting: str,
    ) -> None:
        """Listen. Raises ConfigurationError that names the setting if an endpoint cannot be bound."""
        self.listeners = listening.listen_at(endpoints, setting)
        for option, value in {**SOCKET_OPTIONS, **options}.items():
            zmq_socket.setsockopt(option, value)
        if auth is not None:
            auth.secure(zmq_socket)
        self.type = int(zmq_socket.getsockopt(zmq.TYPE))
        self._socket = zmq_socket
        self._fd = int(zmq_socket.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_scheduled = False

    def connect(self, connection_id: bytes, endpoint: str) -> None:
        """Have libzmq connect. The id becomes the domain of ZAP, and the routing id. Raises ZMQError."""
        if not (failpoint.ACTIVE and failpoint.variant("empty_domain") is not None):
            self._socket.setsockopt(zmq.ZAP_DOMAIN, connection_id)
        if self.type == zmq.ROUTER:
            self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, connection_id)
        self._socket.connect(endpoint)
        self.drain_again()  # to connect may have taken the event of the descriptor

    def disconnect(self, endpoint: str) -> None:
        """Drop the endpoint and what is unread of it, but not amid a message: libzmq would abort (fq.cpp, `!_more`)."""
        if self.amid_message and self._loop is not None:
            self._loop.call_soon(self.disconnect, endpoint)
            return
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disconnect(endpoint)
        self.drain_again()

    def left(self, connection_id: bytes) -> None:
        """This peer sends nothing more."""

    def taken(self, connection_id: bytes) -> None:
        """This peer has taken a part of its replies, and more of them wait."""

    def stop(self, linger_ms: int = 0) -> None:
        """Stop reading; messages sent before get `linger_ms` to leave. Idempotent."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close(linger_ms)

    def _read(self) -> None:
        """Call `_drain` from now on whenever the descriptor has an event."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_event)
        self.drain_again()

    def _on_event(self) -> None:
        if not self._drain_scheduled:  # a drain beside the scheduled one would schedule another each time
            self._drain()

    def _on_schedule(self) -> None:
        self._drain_scheduled = False
        self._drain()

    @property
    def amid_message(self) -> bool:
        """Whether only a part of a message was read so far."""
        return False

    def drain_again(self) -> None:
        if not self._drain_scheduled and self._loop is not None:
            self._drain_scheduled = True
            self._loop.call_soon(self._on_schedule)

    def _readable(self) -> bool:
        """Whether there is a message: 1 µs. The exception of a receive without one takes 3."""
        return bool(int(_get(self._socket, EVENTS)) & POLLIN)

    def _drain(self) -> None:
        """Read what there is, within bounds. The descriptor is edge-triggered: after sends `drain_again` is due."""
        raise NotImplementedError
