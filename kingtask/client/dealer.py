"""One connection to one broker: a DEALER that is never used for a second one, and what libzmq says of it.

libzmq would reconnect by itself, unseen, and what was on its way would be lost with nobody to send it again. So it is
told not to, and the core decides when to connect again and where. A monitor says at once that a connection is refused
or lost (0.1 to 2 ms on one host; a peer that vanished is noticed by the heartbeats).
"""

from __future__ import annotations

import errno
import struct
from enum import Enum
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from kingtask.curve import ClientKeys

OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.RECONNECT_IVL: -1,
    zmq.IMMEDIATE: 1,  # takes messages only while connected
    zmq.HEARTBEAT_IVL: 1_000,  # ms
    zmq.HEARTBEAT_TIMEOUT: 3_000,
    zmq.HEARTBEAT_TTL: 4_000,  # the broker ends the connection after so long without a sign of us
    zmq.SNDHWM: 1_000,
    # More than are ever under way: libzmq 4.3.5 aborts the process when a heartbeat falls due on a connection that has
    # ended behind a full queue (its issue 4364).
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
    BROKEN = "not connected, and never again"
    NO_HANDSHAKE = "the same, because one side asks for other keys than the other has"
    REFUSED = "the same, because the broker refused the key"


class Dealer:
    """Nothing here blocks. Use it from one thread at a time."""

    def __init__(self, context: Context, endpoint: str, keys: ClientKeys | None = None) -> None:
        """Begin to connect. Raises zmq.ZMQError if there can be no such socket (too many files, context closed)."""
        self.socket = context.socket(zmq.DEALER)
        try:
            for option, value in OPTIONS.items():
                self.socket.setsockopt(option, value)
            if "[" in endpoint:
                self.socket.setsockopt(zmq.IPV6, 1)
            if keys is not None:
                keys.put_on(self.socket)
            self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(_WATCHED)
            self.monitor.setsockopt(zmq.LINGER, 0)
        except BaseException:
            self.socket.close()
            raise
        try:
            self.socket.connect(endpoint)
        except BaseException:
            self.close()
            raise

    @property
    def descriptor(self) -> int:
        """Readable when something happened that `readable`, `receive` or `send` would see; says so only once."""
        return int(self.socket.getsockopt(zmq.FD))

    @property
    def monitor_descriptor(self) -> int:
        """The same for `news`."""
        return int(self.monitor.getsockopt(zmq.FD))

    def readable(self, *, or_writable: bool = False) -> bool:
        """Whether `receive` (or, if asked for, `send`) would succeed now."""
        wanted = zmq.POLLIN | zmq.POLLOUT if or_writable else zmq.POLLIN
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & wanted)

    def news(self) -> News | None:
        """The last thing that happened to the connection since the last look, or None."""
        found = None
        while int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, value = struct.unpack("=HI", self.monitor.recv_multipart(zmq.NOBLOCK)[0])  # zmq_socket_monitor(3)
            if found is None or found is News.UP:
                found = _meaning(event, value)
        return found

    def send(self, message: bytes) -> bool:
        """Hand one message over; False if that is not possible now."""
        try:
            self.socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """One message that has arrived, or None."""
        try:
            return self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Let go of the connection and of what is on its way. Idempotent."""
        self.socket.close()
        self.monitor.close()


def _meaning(event: int, value: int) -> News:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return News.REFUSED if value == 400 else News.BROKEN  # ZAP's status (RFC 27): 300 and 500 may pass
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value == errno.EPIPE:  # the other side closed it, unasked
        return News.NO_HANDSHAKE
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value in _MISFITS:
        return News.NO_HANDSHAKE
    return News.BROKEN if event & _GONE else News.UP
