"""One connection to one broker: a DEALER socket with its monitor, used for this connection only.

libzmq would reconnect on its own, and requests in progress would be lost unnoticed. So reconnecting is off, and the
core decides when and where to connect again. The monitor reports a refused or lost connection at once (0.1 to 2 ms on
one host); heartbeats detect a peer that vanished.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from typing import Protocol
from weakref import WeakSet

import zmq

from kingtask.curve import ClientKeys

OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.RECONNECT_IVL: -1,
    zmq.IMMEDIATE: 1,  # takes messages only while connected
    zmq.HEARTBEAT_IVL: 1_000,  # ms
    zmq.HEARTBEAT_TIMEOUT: 3_000,
    zmq.HEARTBEAT_TTL: 4_000,  # the broker closes the connection after this time without a heartbeat
    zmq.SNDHWM: 1_000,
    # More than are ever in progress: libzmq 4.3.5 aborts the process when a heartbeat is due on a connection that ended
    # behind a full queue (its issue 4364).
    zmq.RCVHWM: 100_000,
}

_GONE = (
    zmq.EVENT_CLOSED  # the connection was refused
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_MISFITS = (zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | _GONE

Context = zmq.Context[zmq.Socket[bytes]]


class News(Enum):
    UP = "connected"
    BROKEN = "connection lost or refused"
    NO_HANDSHAKE = "handshake failed, probably because of the keys"
    REFUSED = "the broker refused the key"


class Dealer:
    """Never blocks. Use it from one thread at a time. The descriptors of both sockets are edge-triggered."""

    def __init__(self, context: Context, endpoint: str, keys: ClientKeys | None = None) -> None:
        """Begin to connect. Raises zmq.ZMQError if no socket can be made (too many files, context closed)."""
        with ExitStack() as opened:
            self.socket = opened.enter_context(context.socket(zmq.DEALER))
            for option, value in OPTIONS.items():
                self.socket.setsockopt(option, value)
            if "[" in endpoint:
                self.socket.setsockopt(zmq.IPV6, 1)
            if keys is not None:
                keys.put_on(self.socket)
            self.monitor: zmq.Socket[bytes] = opened.enter_context(self.socket.get_monitor_socket(_WATCHED))
            self.monitor.setsockopt(zmq.LINGER, 0)
            self.socket.connect(endpoint)
            opened.pop_all()  # nothing failed, so both stay open until `close`

    def readable(self, *, or_writable: bool = False) -> bool:
        """True if `receive` (or, with `or_writable`, `send`) would succeed now."""
        wanted = zmq.POLLIN | zmq.POLLOUT if or_writable else zmq.POLLIN
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & wanted)

    def news(self) -> News | None:
        """Return the latest event of the connection since the last call, or None."""
        found = None
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, value = struct.unpack("=HI", self.monitor.recv_multipart(zmq.NOBLOCK)[0])  # zmq_socket_monitor(3)
            if found is None or found is News.UP:
                found = _meaning(event, value)
        return found

    def send(self, message: bytes) -> bool:
        """Hand one message to libzmq; False if that is not possible now."""
        try:
            self.socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return one message that has arrived, or None."""
        try:
            return self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Close the connection; messages in progress are lost. Idempotent."""
        self.socket.close()
        self.monitor.close()


def _meaning(event: int, value: int) -> News:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return News.REFUSED if value == 400 else News.BROKEN  # ZAP's status (RFC 27): 300 and 500 may pass
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EPIPE:  # the broker closed the connection
        return News.NO_HANDSHAKE
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value in _MISFITS:
        return News.NO_HANDSHAKE
    return News.BROKEN if event & _GONE else News.UP


class Forkable(Protocol):
    def disown(self) -> Sequence[object]:
        """In the child: drop the parent's sockets and context without touching them, and return them."""


_watched: WeakSet[Forkable] = WeakSet()

_parents: list[object] = []
"""Kept forever: closing the parent's contexts and sockets in the child could hang, even in the garbage collector."""


def disown_after_fork(owner: Forkable) -> None:
    """Call `owner.disown` in every forked child: ZeroMQ's threads exist only in the parent."""
    _watched.add(owner)


def _after_fork() -> None:
    for owner in _watched:
        _parents.extend(owner.disown())


os.register_at_fork(after_in_child=_after_fork)
