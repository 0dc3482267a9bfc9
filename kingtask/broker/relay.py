"""The relay: every connection of a client or worker passes through here, byte by byte, on its way to libzmq.

libzmq 4.3.5 aborts the process if both directions of a connection are closed while its queue of messages is full and a
PING stands behind them (stream_engine_base.cpp, `!_io_error`), and if a peer claims the routing id that a ROUTER gives
to a later one (socket_base.cpp, `add_out_pipe`). Any peer can do both. So libzmq listens nowhere: for each connection
it connects to the relay, with a routing id of the relay's choice. Each end of a peer, also of one that this broker cuts
off, becomes the end of one direction only. The relay closes its end after libzmq has closed the other, never before.

libzmq also bounds neither the bytes of a message without an end, nor those of replies that a peer does not read, nor
the number of connections. All three are bounded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import resource
import secrets
import socket
import stat
import struct
import termios
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import zmq

from kingtask import failpoint, wire
from kingtask.broker import counters
from kingtask.broker.auth import CurveAuth, Peer
from kingtask.broker.counters import Counters
from kingtask.clock import monotonic_s
from kingtask.errors import ConfigurationError

BACKLOG = 1_024
ACCEPTS = 16
"""Connections accepted in one turn of the loop, for some 0.2 ms each."""
OTHER_FILES = 512
"""Descriptors left for everything else."""
FILES = 3
"""Descriptors of one connection: two here, one of libzmq."""
FEWEST = 64
REST_S = 1.0
"""No connection is accepted for so long after one failed, since no descriptor or memory was left."""
JOIN_S = 3.0
"""The longest wait for libzmq's end of a new connection."""
READ_BYTES = 16_384
"""Read from a peer at once. With 256 KiB, 500 peers that flood delayed a ping by 338 ms; with this by 6 ms."""
PASS_BYTES = 65_536
"""Passed on to a peer at once."""
OUTER_SEND_BYTES = 262_144
"""The kernel's buffer of replies to one peer, which would grow to 4 MB."""
CHECK_S = 0.25
POLL_S = 0.005
HELD_BYTES = 16 * 1024 * 1024
"""Unfinished messages of all connections, as sent: four of the longest. In memory a tiny frame takes 64 bytes."""
TO_ROUTER = 32_768, 2 * wire.MAX_MESSAGE_BYTES
TO_XPUB = 2_048, 65_536
"""For one connection: the kernel's buffer towards libzmq, which processes these bytes even after a cut; and the bytes
held with which it is not read until the broker has read messages of it."""
SMALL_BYTES = 8_192
"""A connection that holds less is read even if all together hold too much: requests without bulk always get through."""
FRAME_BYTES = 64
"""At least what ZMTP adds to a frame, also with CURVE."""
HANDSHAKE_BYTES = 1_024
"""At least what a handshake takes, also with CURVE."""
MORE, LONG = 1, 2
"""Flags of a frame in ZMTP 3.0 (rfc.zeromq.org/spec/23)."""
GREETING_BYTES = 64
MAX_FRAMES = 10_000
"""In one message, without CURVE. A ROUTER reads a message to its end before any other: 3 MB of frames of one byte
stopped all clients for 2 s, as many frames take 9 ms. With CURVE a frame has 36 bytes or more."""
PONG_BYTES = 128
"""Two lengths of the longest answer to a heartbeat."""
STALLED_CHECKS = 2
"""The first connection that waits is read. If it completes no message for so many checks, some are cut off."""
SHARES = 16
"""One connection may have this part of `max_reply_bytes` unread before replies of ops that only read become `busy`, and
twice as much before it is not read: it then waits for its own reading, and its heartbeats for it."""
QUEUED_BYTES = 256
"""Memory of a reply that libzmq does not have yet, beside its bytes."""
PROGRESS_BYTES = 65_536
SLOW_CHECKS = 40
"""A peer that has not taken PROGRESS_BYTES for so many checks does not read; it is cut off."""
CROWDED_CHECKS = 4
"""The same while the replies of all peers exceed `max_reply_bytes`, of an address or user with more than its share."""
END_CHECKS = 2
"""libzmq drops the messages of an ended connection that the broker has not read. So an end waits for so many checks:
`held` cannot show that all were read, since libzmq does not tell how many bytes a message took."""

TCP_OPTIONS = {
    socket.TCP_NODELAY: 1,
    socket.TCP_KEEPIDLE: 15,  # s
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,  # ms; a host that acknowledges nothing for so long is gone
}
SIOCGIFADDR = 0x8915
"""linux/sockios.h."""
RESET = struct.pack("ii", 1, 0)
"""Linger for 0 s: close resets the connection."""

_RANDOM = secrets.token_hex(8)
_names = itertools.count(1)

_block = memoryview(bytearray(PASS_BYTES))
"""The bytes that are passed on at this moment."""
_read_block = _block[:READ_BYTES]


class RelayedConnection:
    """One connection of a peer, `outer`, and the one of libzmq that belongs to it, `inner`."""

    __slots__ = (
        "_endpoint",
        "_frames",
        "_header",
        "_inner",
        "_joined",
        "_next_frame",
        "_outer",
        "_reading",
        "_relay",
        "_slow_checks",
        "_taken",
        "_target",
        "_timer",
        "_to_inner",
        "_to_outer",
        "ended",
        "finished",
        "front",
        "given",
        "held",
        "id",
        "key",
        "name",
        "replies",
        "since",
        "unread",
        "useful",
    )

    def __init__(self, front: Front, outer: socket.socket, name: str) -> None:
        """Have libzmq connect. Raises OSError."""
        self.front = front
        self._relay = relay = front.relay
        self._outer = outer
        self.name = name
        """The peer's address, or the user at the other end of a unix socket."""
        self.id = relay.new_id()
        """Its routing id, and the User-Id of its messages."""
        self.key = ""
        """The key of the client; empty without CURVE, and during the handshake."""
        self.finished = False
        """The peer sends nothing more."""
        self.useful = False
        """A message of it has come."""
        self.ended = False
        """Nothing reaches the peer any more."""
        self._next_frame, self._header, self._frames = GREETING_BYTES, b"", 0
        """Bytes until the peer's next frame; what has come of its header; and frames of the message so far."""
        self._to_inner = self._to_outer = b""
        """Bytes for which the other side had no room; their source is not read until they are sent."""
        self.held = 0
        """Bytes of messages that this broker has not read; also of what libzmq consumes itself, as far as not known."""
        self.since = relay.checks
        """The check before its last complete message."""
        self.replies: deque[tuple[Peer, bytes]] = deque()
        """Replies that libzmq does not have yet."""
        self.unread = self.given = 0
        """Bytes of replies that the peer's kernel has not taken, all of them and those that libzmq has."""
        self._taken = self._target = self._slow_checks = 0
        """Bytes that the peer's kernel has taken, and how many those must become before the next checks."""
        self._inner = listen_privately()
        """The socket to which libzmq connects; then its connection."""
        self._joined = self._reading = False
        try:
            self._endpoint = front.connect(self.id, self._inner)
        except zmq.ZMQError as error:
            self._inner.close()
            raise OSError(error.errno, str(error)) from None
        self._timer = relay.loop.call_later(JOIN_S, relay.cut, self, "libzmq did not connect")
        relay.loop.add_reader(self._inner, self._join)

    def _join(self) -> None:
        """Accept libzmq's connection. Any local process may connect here; another one is sent away."""
        try:
            inner = accept_own(self._inner)
        except OSError as error:  # no descriptor is left
            self._relay.cut(self, str(error))
            return
        if inner is not None:
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.front.send_bytes)
            self._timer.cancel()
            self._relay.loop.remove_reader(self._inner)
            self._inner.close()
            self._inner, self._joined = inner, True
            self._relay.loop.add_reader(inner, self._read_inner)
            self.review()

    # ── from the peer to libzmq ─────────────────────────────────────────────────────────────────────────────────────

    def _read_outer(self) -> None:
        try:
            size = self._outer.recv_into(_read_block)
        except BlockingIOError:
            return
        except OSError:
            self.end()
            return
        if not size:
            self._finish()
            return
        if self._relay.auth is None and self._too_many_frames(_read_block[:size]):
            self._relay.cut(self, f"a message of more than {MAX_FRAMES:,} frames")
            return
        if not self.held:
            self.since = self._relay.checks
        self.held += size
        self._relay.held += size
        sent = _send(self._inner, _read_block[:size])
        if sent < size:
            self._to_inner = bytes(_read_block[sent:size])
            self._relay.loop.add_writer(self._inner, self._write_inner)
            self.review()
        if self.held > SMALL_BYTES and (self.held > self.front.most_held or self._relay.held > HELD_BYTES):
            self._relay.hold(self)

    def _too_many_frames(self, data: bytes | memoryview) -> bool:
        """Follow the peer's frames. Return True once a message has more than MAX_FRAMES."""
        if self._header:
            data, self._header = self._header + bytes(data), b""
        at, size = self._next_frame, len(data)
        while at < size:
            header = 9 if data[at] & LONG else 2
            if at + header > size:
                self._header, at = bytes(data[at:]), size
                break
            self._frames = self._frames + 1 if data[at] & MORE else 0
            if self._frames >= MAX_FRAMES:
                return True
            at += header + int.from_bytes(data[at + 1 : at + header], "big")
        self._next_frame = at - size
        return False

    def _write_inner(self) -> None:
        self._to_inner = self._to_inner[_send(self._inner, self._to_inner) :]
        if not self._to_inner:
            self._relay.loop.remove_writer(self._inner)
            self.review()

    def review(self) -> None:
        """Read from the peer, or no longer, as the bounds allow."""
        reading = self._joined and not (self.finished or self._to_inner or self._relay.makes_wait(self))
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._relay.loop.add_reader(self._outer, self._read_outer)
            else:
                self._relay.loop.remove_reader(self._outer)

    def completed(self, size: int) -> None:
        """The broker has read a message of so many bytes, and FRAME_BYTES for each frame but the last."""
        self.consumed(size + FRAME_BYTES)
        self.since = self._relay.checks
        if not self.useful:
            self.useful = True
            self._relay.useless[self.name].pop(self, None)
        if not self._reading or self._relay.waiting:
            self._relay.resume(self)

    def consumed(self, size: int) -> None:
        """So many of the bytes held are no part of an unfinished message."""
        size = min(size, self.held)
        self.held -= size
        self._relay.held -= size

    def _finish(self) -> None:
        """The peer sends nothing more."""
        self.finished = True
        self.review()
        self._relay.finish(self)
        self.front.served.left(self)

    def pass_end(self) -> None:
        """Let libzmq see the end of what it reads; it will close its end."""
        with contextlib.suppress(OSError):
            self._inner.shutdown(socket.SHUT_WR)

    # ── from libzmq to the peer ─────────────────────────────────────────────────────────────────────────────────────

    def _read_inner(self) -> None:
        try:
            size = self._inner.recv_into(_block)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._close_inner()
        elif not self.ended:
            if size <= PONG_BYTES and not self.given:  # it may answer a heartbeat, whose bytes are no message
                self.consumed(size + 2)
            sent = self._write(_block[:size])
            if not self.ended and sent < size:
                self._to_outer = bytes(_block[sent:size])
                self._relay.loop.remove_reader(self._inner)
                self._relay.loop.add_writer(self._outer, self._write_outer)
                self._target = self._slow_checks = 0
                self._relay.slow(self)

    def _write_outer(self) -> None:
        sent = self._write(self._to_outer)
        if self.ended:
            return
        self._to_outer = self._to_outer[sent:]
        if not self._to_outer:
            self._relay.slow_ones.discard(self)
            self._relay.loop.remove_writer(self._outer)
            self._relay.loop.add_reader(self._inner, self._read_inner)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            sent = self._outer.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.end()
            return 0
        self._taken += sent
        if self.given:
            taken = min(sent, self.given)
            self.given -= taken
            self.account(-taken)
        if self.replies:
            self.front.served.taken(self)
        return sent

    def account(self, size: int) -> None:
        """Count bytes of replies to this peer; negative if they are no longer here."""
        self.unread += size
        self._relay.unread += size
        by_name = self._relay.unread_by_name
        by_name[self.name] += size
        if not by_name[self.name]:
            del by_name[self.name]
        if self._reading == (self.unread > 2 * self._relay.share):
            self.review()

    def slow_checks(self) -> int:
        """Return for how many checks, with this one, the peer has not read."""
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._outer, termios.TIOCOUTQ, bytes(4)))
        if self._taken - waiting >= self._target:
            self._target = self._taken - waiting + min(PROGRESS_BYTES, waiting + len(self._to_outer))
            self._slow_checks = 0
        else:
            self._slow_checks += 1
        return self._slow_checks

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def cut(self) -> None:
        """Cut the peer off: nothing more of what it sent is passed on."""
        if not self.ended:
            with contextlib.suppress(OSError):
                self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.end()

    def end(self) -> None:
        """The peer is gone. libzmq sees the end of what it reads, and closes. Idempotent."""
        if self.ended:
            return
        finished, self.ended, self.finished = self.finished, True, True
        loop = self._relay.loop
        for file in self._outer, self._inner:
            loop.remove_writer(file) if file.fileno() >= 0 else None
        self.review()
        self._outer.close()
        self._to_inner = self._to_outer = b""
        self._relay.useless.get(self.name, {}).pop(self, None)
        self.replies.clear()
        self.given = 0
        self.account(-self.unread)
        self._relay.slow_ones.discard(self)
        self.consumed(self.held)
        self._relay.resume(self)
        if not finished:
            self.front.served.left(self)
        if not self._joined:
            self._timer.cancel()
            self._close_inner()
        elif self._inner.fileno() >= 0:
            loop.add_reader(self._inner, self._read_inner)
            self.pass_end()

    def _close_inner(self) -> None:
        """libzmq has closed its end, or has none yet."""
        self._relay.loop.remove_reader(self._inner)
        self._inner.close()
        self.front.disconnect(self._endpoint)
        self._relay.forget(self)
        self.end()

    def close(self) -> None:
        """Close everything; libzmq must be gone."""
        self.end()
        if self._inner.fileno() >= 0:
            self._close_inner()


class Served(Protocol):
    """The owner of a socket of libzmq."""

    @property
    def amid_message(self) -> bool:
        """Whether only a part of a message was read so far."""

    def left(self, connection: RelayedConnection) -> None:
        """This peer sends nothing more."""

    def taken(self, connection: RelayedConnection) -> None:
        """This peer has taken a part of its replies, and more of them wait."""

    def drain_again(self) -> None:
        """Read from the socket soon: another call may have taken the event of its edge-triggered descriptor."""


class Front:
    """The listening sockets of one socket of libzmq."""

    def __init__(
        self,
        relay: Relay,
        target: zmq.Socket[bytes],
        listeners: list[socket.socket],
        served: Served,
    ) -> None:
        self.relay = relay
        self.socket = target
        self.listeners = listeners
        self.served = served
        self.is_router = target.getsockopt(zmq.TYPE) == zmq.ROUTER
        self.send_bytes, self.most_held = TO_ROUTER if self.is_router else TO_XPUB

    def connect(self, connection_id: bytes, listener: socket.socket) -> str:
        """Have libzmq connect to this listener; return its endpoint. Raises ZMQError."""
        if not (failpoint.ACTIVE and failpoint.variant("empty_domain") is not None):
            self.socket.setsockopt(zmq.ZAP_DOMAIN, connection_id)
        if self.is_router:
            self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, connection_id)
        endpoint = endpoint_of(listener)
        self.socket.connect(endpoint)
        self.served.drain_again()
        return endpoint

    def disconnect(self, endpoint: str) -> None:
        """Drop the endpoint and what is unread of it, but not amid a message: libzmq would abort (fq.cpp, `!_more`)."""
        if self.served.amid_message:
            self.relay.loop.call_soon(self.disconnect, endpoint)
            return
        with contextlib.suppress(zmq.ZMQError):
            self.socket.disconnect(endpoint)
        self.served.drain_again()

    def accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            try:
                outer, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.relay.rest(self, listener, error)
                    return
                continue  # the peer has left (accept(2))
            try:
                name = _name_of(outer, address)
            except OSError:  # likewise
                outer.close()
                continue
            self.relay.admit(self, outer, name)

    def listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self.relay.loop.add_reader(listener, self.accept, listener)

    def stop(self) -> None:
        for listener in self.listeners:
            if self.relay.opened and listener.fileno() >= 0:
                self.relay.loop.remove_reader(listener)
            close_listener(listener)


class Relay:
    """All connections of a broker. Call `serve` for each socket, then `start`, `stop`, and `close` after libzmq ended.

    It also answers libzmq's requests for authentication (ZAP, rfc.zeromq.org/spec/27), on the broker's own loop and not
    on a thread that could die unnoticed. The answer has the connection's id, which libzmq adds to each of its messages.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        counters: Counters,
        auth: CurveAuth | None = None,
        max_reply_bytes: int = 2**28,
    ) -> None:
        self._counters = counters
        self.max_reply_bytes = max_reply_bytes
        self.auth = auth
        self.fronts: list[Front] = []
        self.connections: dict[bytes, RelayedConnection] = {}
        """By id, until libzmq has closed its end."""
        self.opened = False
        self._ids = itertools.count(1)
        self.most = max(FEWEST, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES) // FILES)
        """Connections at once; of one address or user half as many."""
        self._numbers = Counter[str]()
        """Connections by address or user."""
        self.useless: defaultdict[str, dict[RelayedConnection, None]] = defaultdict(dict)
        """Connections without a message yet, by address or user, the oldest first."""
        self.held = 0
        """The sum over all connections."""
        self.unread = 0
        self.unread_by_name = Counter[str]()
        """Bytes of replies: of all peers, and of each address or user."""
        self.slow_ones: set[RelayedConnection] = set()
        """Peers whose kernel has no room for replies."""
        self.waiting: dict[RelayedConnection, None] = {}
        """Connections that are not read since all together hold too much; but the first one is."""
        self._full: dict[RelayedConnection, int] = {}
        """Connections that hold too much by themselves, and since which check."""
        self._stalled: tuple[RelayedConnection | None, int] = (None, 0)
        """The first one that waits, and for how many checks."""
        self._finishing: dict[RelayedConnection, int] = {}
        """Peers that send nothing more, and the check at which libzmq sees that, if it has messages until then."""
        self.checks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self._zap: zmq.Socket[bytes] | None = None
        if not (failpoint.ACTIVE and failpoint.variant("no_authenticator") is not None):
            self._zap = context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind("inproc://zeromq.zap.01")

    def new_id(self) -> bytes:
        return b"%d" % next(self._ids)

    def serve(
        self,
        target: zmq.Socket[bytes],
        endpoints: Sequence[str],
        setting: str,
        served: Served,
    ) -> None:
        """Listen for this socket. Raises ConfigurationError that names the setting if an endpoint cannot be bound."""
        listeners: list[socket.socket] = []
        for endpoint in endpoints:
            try:
                listeners.append(listen(endpoint))
            except OSError as error:
                for listener in listeners:
                    close_listener(listener)
                raise ConfigurationError(f"{setting}: cannot listen on {endpoint}: {_advice(error)}") from None
        self.fronts.append(Front(self, target, listeners, served))

    def _open(self) -> None:
        """Let libzmq authenticate. Idempotent."""
        if not self.opened:
            self.opened = True
            self.loop = asyncio.get_running_loop()
            if self._zap is not None:
                self.loop.add_reader(int(self._zap.getsockopt(zmq.FD)), self._authenticate)
                self._authenticate()

    def start(self) -> None:
        """Accept peers. Idempotent."""
        self._open()
        for front in self.fronts:
            for listener in front.listeners:
                front.listen(listener)

    def stop(self) -> None:
        """Accept no more peers. Idempotent."""
        for front in self.fronts:
            front.stop()

    async def sent(self, timeout_s: float) -> None:
        """Wait until every reply has left, at most so long."""
        until_s = monotonic_s() + timeout_s
        while self.unread and monotonic_s() < until_s:  # noqa: ASYNC110 - once, as this process ends
            await asyncio.sleep(POLL_S)

    async def closed(self, timeout_s: float) -> None:
        """Wait until libzmq has ended all connections, at most so long."""
        if self.connections:
            self._closed = self.loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed, timeout_s)
        self.stop_authenticator()

    def stop_authenticator(self) -> None:
        """Call this after the sockets were closed. Idempotent."""
        if self._zap is not None and not self._zap.closed:
            if self.opened:
                self.loop.remove_reader(int(self._zap.getsockopt(zmq.FD)))
            self._zap.close()

    def close(self) -> None:
        """Close everything. The context must have ended."""
        self.stop()
        for connection in list(self.connections.values()):
            connection.close()
        if self._timer is not None:
            self._timer.cancel()

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, front: Front, outer: socket.socket, name: str) -> None:
        """Connect libzmq with a new peer, or close its connection if there are too many."""
        outer.setblocking(False)
        try:
            self._make_room(name)
            outer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, OUTER_SEND_BYTES)
            connection = RelayedConnection(front, outer, name)
        except OSError as error:
            self._counters.count(counters.CONNECTION, f"{name}: {error}")
            outer.close()
            return
        self.connections[connection.id] = connection
        self._numbers[name] += 1
        self.useless[name][connection] = None

    def _make_room(self, name: str) -> None:
        """At the limit, close the oldest connection without a message, of the address or user with the most of them.

        Raises OSError if there is none.
        """
        if self._numbers[name] < self.most // 2:
            if len(self.connections) < self.most:
                return
            name = max(self._numbers, key=lambda name: self._numbers[name])
        oldest = next(iter(self.useless.get(name, ())), None)
        if oldest is None:
            raise OSError(
                errno.EMFILE, f"{self._numbers[name]:,} connections of {name}, {len(self.connections):,} in all"
            )
        self._counters.count(counters.CONNECTION, f"{name}: a newer one took the place of one without a message")
        oldest.cut()

    def rest(self, front: Front, listener: socket.socket, error: OSError) -> None:
        """Accept nothing for REST_S: the connection that waits would make the listener readable again and again."""
        self._counters.count(counters.CONNECTION, str(error))
        self.loop.remove_reader(listener)
        self.loop.call_later(REST_S, front.listen, listener)

    def own_endpoints(self) -> list[tuple[str, int]]:
        """Return an endpoint for one connection of this process itself to each socket, and the socket's type."""
        self._open()
        return [(self._own_endpoint(front), int(front.socket.getsockopt(zmq.TYPE))) for front in self.fronts]

    def _own_endpoint(self, front: Front) -> str:
        listener = listen_privately()

        def admit() -> None:
            if (outer := accept_own(listener)) is not None:
                self.loop.remove_reader(listener)
                listener.close()
                self.admit(front, outer, "this process")

        self.loop.add_reader(listener, admit)
        return endpoint_of(listener)

    def forget(self, connection: RelayedConnection) -> None:
        if self.connections.pop(connection.id, None) is not None:
            self._numbers[connection.name] -= 1
            if not self._numbers[connection.name]:
                del self._numbers[connection.name]
                self.useless.pop(connection.name, None)
        self._finishing.pop(connection, None)
        self._full.pop(connection, None)
        if not self.connections and self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def cut(self, connection: RelayedConnection, why: str) -> None:
        """Cut the peer off, and count it."""
        if not connection.ended:
            self._counters.count(counters.CUT_OFF, f"{connection.name}: {why}")
            connection.cut()

    def cut_revoked(self) -> None:
        """Cut off every connection with a key that is no longer authorized."""
        assert self.auth is not None
        for connection in list(self.connections.values()):
            names = self.auth.names if connection.front.is_router else self.auth.workers
            if connection.key and connection.key not in names:
                self.cut(connection, "its key was revoked")

    # ── bounds ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def makes_wait(self, connection: RelayedConnection) -> bool:
        """Whether this connection is not read for now."""
        if connection.held > connection.front.most_held or connection.unread > 2 * self.share:
            return True
        return connection in self.waiting and next(iter(self.waiting)) is not connection

    def hold(self, connection: RelayedConnection) -> None:
        """Make this connection wait if it holds too much, or if all do together."""
        if connection.held > connection.front.most_held:
            self._full[connection] = self.checks
        if self.held > HELD_BYTES:
            self.waiting.setdefault(connection)
        self._check_later()
        connection.review()

    def resume(self, connection: RelayedConnection) -> None:
        """Read connections again as far as there is room, now that this one holds less."""
        if connection.held <= SMALL_BYTES:
            self.waiting.pop(connection, None)
        connection.review()
        while self.waiting:
            first = next(iter(self.waiting))
            if self.held <= HELD_BYTES:
                del self.waiting[first]
            first.review()
            if first in self.waiting:
                return

    @property
    def share(self) -> int:
        """Bytes of replies that one connection may have unread."""
        return self.max_reply_bytes // SHARES

    def overfull(self, connection: RelayedConnection) -> bool:
        """Whether this peer leaves too many replies unread."""
        return connection.unread > self.share or self._crowds_out(connection)

    def _crowds_out(self, connection: RelayedConnection) -> bool:
        if self.unread <= self.max_reply_bytes:
            return False
        return self.unread_by_name[connection.name] * len(self.unread_by_name) >= self.max_reply_bytes

    def slow(self, connection: RelayedConnection) -> None:
        """Watch whether this peer reads."""
        self.slow_ones.add(connection)
        self._check_later()

    def finish(self, connection: RelayedConnection) -> None:
        """Let libzmq see the end of this connection after END_CHECKS."""
        self._finishing[connection] = self.checks + END_CHECKS
        self._check_later()

    def _check_later(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(CHECK_S, self._check)

    def _check(self) -> None:
        self._timer = None
        self.checks += 1
        try:
            for connection in [connection for connection, at in self._finishing.items() if at <= self.checks]:
                del self._finishing[connection]
                connection.pass_end()
            for connection in list(self.slow_ones):
                checks = connection.slow_checks()
                if checks >= SLOW_CHECKS or (checks >= CROWDED_CHECKS and self._crowds_out(connection)):
                    self.cut(connection, f"{connection.unread:,} bytes of replies that it does not read")
            for connection, at in list(self._full.items()):
                if connection.held <= connection.front.most_held:
                    del self._full[connection]
                elif self.checks - max(at, connection.since) > STALLED_CHECKS:
                    self._cut_unfinished_one(connection)
            first, checks = next(iter(self.waiting), None), self._stalled[1]
            self._stalled = first, checks + 1 if first is self._stalled[0] else 0
            if first is not None and checks >= STALLED_CHECKS:
                self._cut_unfinished()
        finally:
            if self.waiting or self._finishing or self._full or self.slow_ones:
                self._check_later()

    def _cut_unfinished(self) -> None:
        """Cut off connections of the address or user that holds most, first those that completed nothing longest."""
        held = Counter[str]()
        for connection in self.connections.values():
            held[connection.name] += connection.held
        heaviest = max(held, key=lambda name: held[name])
        large = [one for one in self.connections.values() if one.name == heaviest and one.held > SMALL_BYTES]
        for connection in sorted(large, key=lambda connection: connection.since):
            if self.held <= HELD_BYTES // 2:
                break
            self._cut_unfinished_one(connection)

    def _cut_unfinished_one(self, connection: RelayedConnection) -> None:
        self.cut(connection, f"{connection.held:,} bytes of a message without an end")

    def _authenticate(self) -> None:
        zap = self._zap
        while zap is not None and not zap.closed:
            try:
                _version, request, domain, _address, _identity, _mechanism, *credentials = zap.recv_multipart(
                    zmq.NOBLOCK
                )
            except zmq.Again:
                return
            status, why = b"400", b"unknown key"
            try:
                connection = self.connections.get(domain)
                worker = connection is not None and not connection.front.is_router
                key = "" if self.auth is None else self.auth.key_of(*credentials, worker=worker)
                if key is not None and connection is not None:
                    connection.key = key
                    connection.consumed(HANDSHAKE_BYTES)
                    status, why = b"200", b""
            except Exception as error:  # noqa: BLE001  (any error is a refusal)
                self._counters.count(counters.AUTHENTICATOR, repr(error))
                status, why = b"500", b"the authenticator failed"
            zap.send_multipart([b"1.0", request, status, why, domain if status == b"200" else b"", b""])


# ── sockets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _send(to: socket.socket, data: bytes | memoryview) -> int:
    """Send to libzmq as much as there is room for. Once libzmq has closed, all is dropped: `_read_inner` sees it."""
    try:
        return to.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def listen_privately() -> socket.socket:
    """Listen at a new abstract name, by which libzmq ends its connection. Use `accept_own`. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(f"\0kingtask.{_RANDOM}.{next(_names)}")
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def accept_own(listener: socket.socket) -> socket.socket | None:
    """Accept a connection of this process; None if there is none. Connections of others are closed. Raises OSError."""
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        if _credentials(connection)[0] == os.getpid():
            connection.setblocking(False)
            return connection
        connection.close()


def endpoint_of(listener: socket.socket) -> str:
    """Return ZeroMQ's form of an abstract name."""
    return f"ipc://@{listener.getsockname()[1:].decode()}"


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a unix socket."""
    pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _name_of(outer: socket.socket, address: tuple[str, int]) -> str:
    """Return who may have this connection: an address (a network, of IPv6) or a local user. Set options of TCP."""
    if outer.family == socket.AF_UNIX:
        return f"uid {_credentials(outer)[1]}"
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in TCP_OPTIONS.items():
        outer.setsockopt(socket.IPPROTO_TCP, option, value)
    host = address[0].partition("%")[0].removeprefix("::ffff:")
    if host.startswith("127.") or host == "::1":
        return "127.0.0.1"
    if ":" not in host:
        return host
    network = socket.inet_pton(socket.AF_INET6, host)[:8] + bytes(8)
    return socket.inet_ntop(socket.AF_INET6, network) + "/64"


def listen(endpoint: str) -> socket.socket:
    """Bind and listen, at one of the endpoints that ZeroMQ's bind takes. Raises OSError."""
    scheme, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    family = socket.AF_UNIX if scheme == "ipc" else socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    listener = socket.socket(family)
    try:
        bound: str | tuple[Any, ...] = rest
        if family == socket.AF_UNIX:
            _check_path(rest)
        elif family == socket.AF_INET:
            bound = (_address_of(listener, host), int(port))
        else:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # [::] serves IPv4 too
            flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
            bound = socket.getaddrinfo(host[1:-1], int(port), family, socket.SOCK_STREAM, 0, flags)[0][4]
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(bound)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _address_of(any_socket: socket.socket, host: str) -> str:
    """Return the IPv4 address of `*`, of an address or of a network interface. Raises OSError."""
    if host == "*":
        return "0.0.0.0"  # noqa: S104 - as asked for
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        request = struct.pack("16s24x", host.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket, SIOCGIFADDR, request)[20:24])
    return host


def _check_path(path: str) -> None:
    """Remove the socket of a broker that has ended. Raises OSError if the path is in use."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path as text
    except OSError:
        return  # bind reports it
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the file exists")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):  # else no process listens
            raise OSError(errno.EADDRINUSE, "in use")
    Path(path).unlink(missing_ok=True)


def close_listener(listener: socket.socket) -> None:
    """Close a listener and remove its path. Idempotent."""
    if listener.fileno() >= 0:
        if listener.family == socket.AF_UNIX:
            Path(listener.getsockname()).unlink(missing_ok=True)
        listener.close()


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "it is in use; is another broker running? Stop it, or choose another port or path"
        case errno.EEXIST:
            return "the file exists and is no socket; choose another path"
        case errno.ENOENT:
            return "its directory does not exist; make it (for /run/kingtask: RuntimeDirectory=kingtask in the unit)"
        case errno.EACCES:
            return "permission denied; choose a port above 1023 or a directory this user may write to"
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return "this host has no such address"
        case _:
            return error.strerror or str(error)
