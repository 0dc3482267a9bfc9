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
import resource
import select
import socket
import struct
import termios
from collections import Counter, defaultdict, deque
from collections.abc import Callable

import zmq

from kingtask import failpoint, wire
from kingtask.broker import counters, listening
from kingtask.broker.auth import CurveAuth, Peer
from kingtask.broker.broker_socket import BrokerSocket
from kingtask.broker.counters import Counters
from kingtask.clock import monotonic_s

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
HELD_BYTES = 4 * wire.MAX_MESSAGE_BYTES
"""Unfinished messages of all connections. Without CURVE each frame but the last counts FRAME_BYTES more."""
SMALL_BYTES = 8_192
"""A connection that holds less is read even if all together hold too much: requests without bulk always get through."""
FRAME_BYTES = 64
"""Memory of a frame beside its content; and more than ZMTP adds to it, also with CURVE."""
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
"""If a connection holds too much, or waits as the first one, and completes no message for more checks, it is cut off,
or those that hold most."""
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
"""libzmq drops the messages of an ended connection that the broker has not read. So it sees an end so many checks after
the last message: `held` cannot show that all were read, since libzmq does not tell how many bytes a message took."""
RESET = struct.pack("ii", 1, 0)
"""Linger for 0 s: close resets the connection."""

_block = memoryview(bytearray(PASS_BYTES))
"""The bytes that are passed on at this moment."""
_read_block = _block[:READ_BYTES]


class RelayedConnection:
    """One connection of a peer, `outer`, and the one of libzmq that belongs to it, `inner`."""

    def __init__(self, relay: Relay, broker_socket: BrokerSocket, outer: socket.socket, name: str) -> None:
        """Have libzmq connect. Raises OSError, ZMQError."""
        self._relay = relay
        self.broker_socket = broker_socket
        self._outer = outer
        self.name = name
        """The peer's address, or the user at the other end of a unix socket."""
        self.id = b"%d" % next(relay.ids)
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
        """The check before it last got on: began or completed a message, came to hold too much, or sent its end."""
        self.replies: deque[tuple[Peer, bytes]] = deque()
        """Replies that libzmq does not have yet."""
        self.unread = self.given = 0
        """Bytes of replies that the peer's kernel has not taken, all of them and those that libzmq has."""
        self._taken = self._target = self._read_at = 0
        """Bytes that the peer's kernel has taken, how many those must become, and the check when they last were so."""
        self._reading = self._joined = False
        self._inner = listening.listen_privately()
        """The socket to which libzmq connects; then its connection."""
        self._endpoint = listening.endpoint_of(self._inner)
        broker_socket.connect(self.id, self._endpoint)
        relay.loop.add_reader(self._inner, self._join)
        self._timer = relay.loop.call_later(JOIN_S, relay.cut, self, "libzmq did not connect")

    def _join(self) -> None:
        """Accept libzmq's connection. Any local process may connect here; another one is sent away."""
        try:
            inner = listening.accept_own(self._inner)
        except OSError as error:  # no descriptor is left
            self._relay.cut(self, str(error))
            return
        if inner is not None:
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.broker_socket.send_bytes)
            self._timer.cancel()
            self._relay.loop.remove_reader(self._inner)
            self._inner.close()
            self._inner, self._joined = inner, True
            self._relay.joined(inner, self.broker_socket, self._endpoint)
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
        weight = size
        if self._relay.auth is None:
            weight += FRAME_BYTES * self._follow_frames(_read_block[:size])
            if self._frames >= MAX_FRAMES:
                self._relay.cut(self, f"a message of more than {MAX_FRAMES:,} frames")
                return
        if not self.held:
            self.since = self._relay.checks
        self.held += weight
        self._relay.held += weight
        sent = _send(self._inner, _read_block[:size])
        if sent < size:
            self._to_inner = bytes(_read_block[sent:size])
            self._relay.loop.add_writer(self._inner, self._write_inner)
            self.review()
        if self.held > SMALL_BYTES and (self.held > self.broker_socket.most_held or self._relay.held > HELD_BYTES):
            self._relay.hold(self)

    def _follow_frames(self, data: bytes | memoryview) -> int:
        """Count the frames of the message so far, up to MAX_FRAMES. Return how many frames here have a successor."""
        if self._header:
            data, self._header = self._header + bytes(data), b""
        at, size, followed = self._next_frame, len(data), 0
        while at < size and self._frames < MAX_FRAMES:
            header = 9 if data[at] & LONG else 2
            if at + header > size:
                self._header, at = bytes(data[at:]), size
                break
            if data[at] & MORE:
                self._frames += 1
                followed += 1
            else:
                self._frames = 0
            at += header + int.from_bytes(data[at + 1 : at + header], "big")
        self._next_frame = at - size
        return followed

    def _write_inner(self) -> None:
        self._to_inner = self._to_inner[_send(self._inner, self._to_inner) :]
        if not self._to_inner:
            self._relay.loop.remove_writer(self._inner)
            self.review()

    def review(self) -> None:
        """Read from the peer, or no longer, as the bounds allow."""
        reading = self._joined and not (self.finished or self._to_inner or self._must_wait())
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._relay.loop.add_reader(self._outer, self._read_outer)
            else:
                self._relay.loop.remove_reader(self._outer)

    def _must_wait(self) -> bool:
        if self.held > self.broker_socket.most_held or self.unread > 2 * self._relay.share:
            return True
        return self in self._relay.waiting and next(iter(self._relay.waiting)) is not self

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
        """The peer sends nothing more. libzmq sees it after END_CHECKS."""
        self.finished, self.since = True, self._relay.checks
        self.review()
        self._relay.watch(self)
        self.broker_socket.left(self.id)

    def _pass_end(self) -> None:
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
            self.close()
        elif not self.ended:
            if size <= PONG_BYTES and not self.given:  # it may answer a heartbeat, whose bytes are no message
                self.consumed(size + 2)
            self._write(_block[:size])

    def _write_rest(self) -> None:
        self._write(self._to_outer)

    def _write(self, data: bytes | memoryview) -> None:
        """Send to the peer. Read nothing more from libzmq while there is no room for all of it."""
        try:
            sent = self._outer.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.end()
            return
        had_room, self._to_outer = not self._to_outer, bytes(data[sent:])
        if had_room and self._to_outer:
            self._relay.loop.remove_reader(self._inner)
            self._relay.loop.add_writer(self._outer, self._write_rest)
            self._target, self._read_at = 0, self._relay.checks
            self._relay.watch(self)
        elif not (had_room or self._to_outer):
            self._relay.loop.remove_writer(self._outer)
            self._relay.loop.add_reader(self._inner, self._read_inner)
        self._taken += sent
        if self.given:
            taken = min(sent, self.given)
            self.given -= taken
            self.account(-taken)
        if self.replies:
            self.broker_socket.taken(self.id)

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

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> bool:
        """Cut the peer off if it stalls, or let libzmq see its end. Return whether another check is needed."""
        if self.finished and not self.ended and _queued(self._inner):  # libzmq has not read all of it
            self.since = self._relay.checks
        since = self._relay.checks - self.since
        too_much = self.held > self.broker_socket.most_held
        slow = self._checks_unread() if self._to_outer else 0
        if slow >= SLOW_CHECKS or (slow >= CROWDED_CHECKS and self._relay.crowds_out(self)):
            self._relay.cut(self, f"{self.unread:,} bytes of replies that it does not read")
        elif self.finished and since >= END_CHECKS:
            self._pass_end()
        elif too_much and since > STALLED_CHECKS:
            self._relay.cut(self, f"{self.held:,} bytes of a message without an end")
        return bool(self._to_outer) or too_much or (self.finished and since < END_CHECKS)

    def _checks_unread(self) -> int:
        """Return for how many checks the peer has not read."""
        waiting = _queued(self._outer)
        if self._taken - waiting >= self._target:
            self._target = self._taken - waiting + min(PROGRESS_BYTES, waiting + len(self._to_outer))
            self._read_at = self._relay.checks
        return self._relay.checks - self._read_at

    def end(self, *, reset: bool = False) -> None:
        """The peer is gone, or is cut off. libzmq sees the end of what it reads, and closes. Idempotent."""
        if self.ended:
            return
        self.ended = self.finished = True
        loop = self._relay.loop
        loop.remove_writer(self._outer)
        loop.remove_writer(self._inner)
        self.review()
        if reset:
            with contextlib.suppress(OSError):
                self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._outer.close()
        self._to_inner = self._to_outer = b""
        self._relay.useless[self.name].pop(self, None)
        self.replies.clear()
        self.given = 0
        self.account(-self.unread)
        self.consumed(self.held)
        self._relay.resume(self)
        self.broker_socket.left(self.id)
        if self._joined:
            loop.add_reader(self._inner, self._read_inner)
            self._pass_end()
        else:
            self.close()

    def close(self) -> None:
        """libzmq has closed its end, or has none. Idempotent."""
        self.end()
        if self._inner.fileno() >= 0:
            self._timer.cancel()
            self._relay.loop.remove_reader(self._inner)
            self._inner.close()
            self.broker_socket.disconnect(self._endpoint)
            self._relay.forget(self)


class Relay:
    """All connections of a broker. Make its sockets, then call `start`, `stop`, and `close` after libzmq ended.

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
        self.sockets: list[BrokerSocket] = []
        self.connections: dict[bytes, RelayedConnection] = {}
        """By id, until libzmq has closed its end."""
        self._ended = select.epoll()
        """Has an event once for each connection that libzmq has closed."""
        self._endpoints: dict[int, tuple[BrokerSocket, str]] = {}
        """By descriptor, of its latest connection."""
        self._opened = False
        self.ids = itertools.count(1)
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
        self.waiting: dict[RelayedConnection, None] = {}
        """Connections that are not read since all together hold too much; but the first one is."""
        self._first: tuple[RelayedConnection | None, int] = None, 0
        """The first one that waits, and since which check."""
        self._watched: set[RelayedConnection] = set()
        """Connections that hold too much by themselves, do not read their replies, or have finished."""
        self.checks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._zap: zmq.Socket[bytes] | None = None
        if not (failpoint.ACTIVE and failpoint.variant("no_authenticator") is not None):
            self._zap = context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind("inproc://zeromq.zap.01")

    def _open(self) -> None:
        """Let libzmq authenticate. Idempotent."""
        if not self._opened:
            self._opened = True
            self.loop = asyncio.get_running_loop()
            if self._zap is not None:
                self.loop.add_reader(int(self._zap.getsockopt(zmq.FD)), self._authenticate)
                self._authenticate()

    def start(self) -> None:
        """Accept peers. Idempotent."""
        self._open()
        for broker_socket in self.sockets:
            for listener in broker_socket.listeners:
                self._listen(broker_socket, listener)

    def stop(self) -> None:
        """Accept no more peers. Idempotent."""
        for broker_socket in self.sockets:
            for listener in broker_socket.listeners:
                if self._opened and listener.fileno() >= 0:
                    self.loop.remove_reader(listener)
                listening.close(listener)

    async def sent(self, timeout_s: float) -> None:
        """Wait until every reply has left, at most so long."""
        await self._until(lambda: not self.unread, timeout_s)

    async def closed(self, timeout_s: float) -> None:
        """Wait until libzmq has ended all connections, at most so long; then stop to authenticate. Idempotent."""
        await self._until(lambda: not self.connections, timeout_s)
        if self._zap is not None and not self._zap.closed:
            if self._opened:
                self.loop.remove_reader(int(self._zap.getsockopt(zmq.FD)))
            self._zap.close()

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        until_s = monotonic_s() + timeout_s
        while not condition() and monotonic_s() < until_s:  # noqa: ASYNC110 - once, as this process ends
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        """Close everything. The context must have ended, if a peer was accepted."""
        self.stop()
        for connection in list(self.connections.values()):
            connection.close()
        if self._timer is not None:
            self._timer.cancel()
        self._ended.close()

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self, broker_socket: BrokerSocket, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self.loop.add_reader(listener, self._accept, broker_socket, listener)

    def _accept(self, broker_socket: BrokerSocket, listener: socket.socket) -> None:
        if (
            broker_socket.amid_message
        ):  # `disconnect` would be too late; the listener is still readable at the next turn
            return
        for _ in range(ACCEPTS):
            try:
                outer, name = listening.accept(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    # The connection that waits would make the listener readable again and again.
                    self._counters.count(counters.CONNECTION, str(error))
                    self.loop.remove_reader(listener)
                    self.loop.call_later(REST_S, self._listen, broker_socket, listener)
                    return
                continue  # the peer has left (accept(2))
            self._admit(broker_socket, outer, name)

    def _admit(self, broker_socket: BrokerSocket, outer: socket.socket, name: str) -> None:
        """Connect libzmq with a new peer, or close its connection if there are too many."""
        try:
            self._make_room(name)
            self._disconnect_ended()
            outer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, OUTER_SEND_BYTES)
            connection = RelayedConnection(self, broker_socket, outer, name)
        except (OSError, zmq.ZMQError) as error:
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
        self.cut(oldest, "a newer connection took the place of one without a message", counters.CONNECTION)

    def joined(self, inner: socket.socket, broker_socket: BrokerSocket, endpoint: str) -> None:
        self._endpoints[inner.fileno()] = broker_socket, endpoint
        self._ended.register(inner, select.EPOLLET)

    def _disconnect_ended(self) -> None:
        """Drop the endpoints of connections that libzmq has closed, before it connects again.

        If a peer broke the protocol, libzmq keeps the endpoint with a pointer to a session that it frees, and may use
        again for the next connection. It would end that one if the endpoint were dropped later.
        """
        for fd, _ in self._ended.poll(0):
            broker_socket, endpoint = self._endpoints[fd]
            broker_socket.disconnect(endpoint)

    def own_endpoints(self) -> list[tuple[str, int]]:
        """Return an endpoint for one connection of this process itself to each socket, and the socket's type."""
        self._open()
        return [(self._own_endpoint(broker_socket), broker_socket.type) for broker_socket in self.sockets]

    def _own_endpoint(self, broker_socket: BrokerSocket) -> str:
        listener = listening.listen_privately()

        def admit() -> None:
            if (outer := listening.accept_own(listener)) is not None:
                self.loop.remove_reader(listener)
                listener.close()
                self._admit(broker_socket, outer, "this process")

        self.loop.add_reader(listener, admit)
        return listening.endpoint_of(listener)

    def forget(self, connection: RelayedConnection) -> None:
        """libzmq has ended this connection."""
        del self.connections[connection.id]
        self._numbers[connection.name] -= 1
        if not self._numbers[connection.name]:
            del self._numbers[connection.name], self.useless[connection.name]

    def cut(self, connection: RelayedConnection, why: str, kind: str = counters.CUT_OFF) -> None:
        """Cut the peer off, and count it: nothing more of what it sent is passed on. Idempotent."""
        if not connection.ended:
            self._counters.count(kind, f"{connection.name}: {why}")
            connection.end(reset=True)

    def cut_revoked(self) -> None:
        """Cut off every connection with a key that is no longer authorized."""
        assert self.auth is not None
        for connection in list(self.connections.values()):
            names = self.auth.names if connection.broker_socket.type == zmq.ROUTER else self.auth.workers
            if connection.key and connection.key not in names:
                self.cut(connection, "its key was revoked")

    # ── bounds ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, connection: RelayedConnection) -> None:
        """Make this connection wait if it holds too much, or if all do together."""
        if connection.held > connection.broker_socket.most_held:
            connection.since = self.checks
        if self.held > HELD_BYTES:
            self.waiting.setdefault(connection)
        self.watch(connection)
        connection.review()

    def resume(self, connection: RelayedConnection) -> None:
        """Read connections again as far as there is room, now that this one holds less."""
        if connection in self.waiting:
            del self.waiting[connection]
            if connection.held > SMALL_BYTES:
                self.waiting[connection] = None  # behind the others
        connection.review()
        if self.held <= HELD_BYTES:
            resumed, self.waiting = self.waiting, {}
            for one in resumed:
                one.review()
        elif self.waiting:
            next(iter(self.waiting)).review()

    @property
    def share(self) -> int:
        """Bytes of replies that one connection may have unread."""
        return self.max_reply_bytes // SHARES

    def overfull(self, connection: RelayedConnection) -> bool:
        """Whether this peer leaves too many replies unread."""
        return connection.unread > self.share or self.crowds_out(connection)

    def crowds_out(self, connection: RelayedConnection) -> bool:
        """Whether all replies are too many, and too many of them this peer's."""
        if self.unread <= self.max_reply_bytes:
            return False
        return self.unread_by_name[connection.name] * len(self.unread_by_name) >= self.max_reply_bytes

    def watch(self, connection: RelayedConnection) -> None:
        """Check this connection until it needs no more."""
        self._watched.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(CHECK_S, self._check)

    def _check(self) -> None:
        self.checks += 1
        try:
            for connection in list(self._watched):
                if not connection.check():
                    self._watched.discard(connection)
            first = next(iter(self.waiting), None)
            if first is not self._first[0]:
                self._first = first, self.checks
            if first is not None and self.checks - max(first.since, self._first[1]) > STALLED_CHECKS:
                self._cut_heaviest()
        finally:
            again = self._watched or self.waiting
            self._timer = self.loop.call_later(CHECK_S, self._check) if again else None

    def _cut_heaviest(self) -> None:
        """Cut off connections of the address or user that holds most, first those that completed nothing longest."""
        held = Counter[str]()
        for connection in self.connections.values():
            held[connection.name] += connection.held
        heaviest = max(held, key=lambda name: held[name])
        large = [one for one in self.connections.values() if one.name == heaviest and one.held > SMALL_BYTES]
        for connection in sorted(large, key=lambda connection: connection.since):
            if self.held > HELD_BYTES // 2:
                self.cut(connection, f"{connection.held:,} bytes of a message without an end")

    # ── authentication ──────────────────────────────────────────────────────────────────────────────────────────────

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
                worker = connection is not None and connection.broker_socket.type != zmq.ROUTER
                key = "" if self.auth is None else self.auth.key_of(*credentials, worker=worker)
                if key is not None and connection is not None:
                    connection.key = key
                    connection.consumed(HANDSHAKE_BYTES)
                    status, why = b"200", b""
            except Exception as error:  # noqa: BLE001  (any error is a refusal)
                self._counters.count(counters.AUTHENTICATOR, repr(error))
                status, why = b"500", b"the authenticator failed"
            zap.send_multipart([b"1.0", request, status, why, domain if status == b"200" else b"", b""])


def _queued(sender: socket.socket) -> int:
    """Return the bytes that the other side has not acknowledged (TCP) or read (unix)."""
    return int(struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))[0])


def _send(to: socket.socket, data: bytes | memoryview) -> int:
    """Send to libzmq as much as there is room for. Once libzmq has closed, all is dropped: `_read_inner` sees it."""
    try:
        return to.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
