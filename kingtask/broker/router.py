"""The ROUTER: every frame is hostile, the loop is never blocked, and the socket is always read.

A ROUTER that is not read buffers without limit, so reading never stops: what is too much is answered `busy` by `ops`.
Its descriptor is edge-triggered, so EVENTS is looked at again after each batch of sends and receives.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket as _socket
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import zmq
import zmq.backend

from kingtask import protocol, wire
from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.broker.flood_guard import PartialMessageGuard
from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError, InvalidRequest

if TYPE_CHECKING:
    from kingtask.broker.auth import CurveAuth

Peer = tuple[bytes, ...]
"""The frames in front of a message: the routing id and, from a REQ, the empty delimiter; a reply goes behind them.
With a gate it is a `gate.Known`."""

NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""As plain integers: combining the enums costs more than sending a frame."""

_send = zmq.backend.Socket.send
"""Without the wrapper that serializes and routes by keyword: it costs more than sending does (1.5 against 0.5 µs)."""

MAX_FRAME_BYTES = wire.MAX_MESSAGE_BYTES + 65_536
"""A message a little over the limit is answered, one far over it costs the sender the connection."""
DRAIN_MESSAGES = 256
DRAIN_FRAMES = 2_048
"""A message may have any number of frames; those of no use are thrown away in as many drains as it takes."""
DRAIN_US = 2_000
"""A drain ends at any of these, so that timers and Redis's answers are never kept waiting longer."""

SOCKET_OPTIONS: dict[int, int | bytes] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms; a connection that does not speak ZMTP is closed after it
    # No heartbeats of our own: libzmq 4.3.5 aborts the process when one falls due on a connection that has ended while
    # what it had sent is still waiting to be read (libzmq issue 4364). Our clients and workers send theirs with a time
    # to live, after which libzmq ends their connection here; for others the kernel asks.
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,  # s
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 30_000,  # ms; a peer that does not read for so long is let go, and its replies with it
    zmq.SNDHWM: 1_000,  # messages per peer; a peer that does not read loses replies, not our memory
    zmq.RCVHWM: 256,
    zmq.BACKLOG: 1_024,
    zmq.LINGER: 0,
}
ZAP_DOMAIN = b"kingtask"
"""Without an authenticator a domain changes one thing: peers of ZMTP 1 and 2 are turned away (libzmq's
zmtp_engine.cpp). What random bytes become is mostly their framing, and their messages tell no connection."""


def prepare(socket: zmq.Socket[bytes], gate: CurveAuth | None) -> None:
    """Set what both sockets of a broker have in common."""
    for option, value in SOCKET_OPTIONS.items():
        socket.setsockopt(option, value)
    if gate is None:
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    else:
        gate.guard(socket)


def bind(socket: zmq.Socket[bytes], endpoints: Sequence[str], setting: str) -> None:
    """Bind all endpoints. Raises ConfigurationError that names the setting and what to do."""
    for endpoint in endpoints:
        if endpoint.startswith("ipc://"):
            _check_path(setting, endpoint.removeprefix("ipc://"))
        if "[" in endpoint:  # an IPv6 address
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigurationError(
                f"{setting}: cannot listen on {endpoint}: {_advice(error.errno, str(error))}"
            ) from None


def _check_path(setting: str, path: str) -> None:
    """libzmq removes whatever is at the path, also the socket of a broker that runs, or somebody's file."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path as text
    except OSError:
        return  # bind says what is wrong
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(f"{setting}: cannot listen on ipc://{path}: it is there and no socket; name another")
    with _socket.socket(_socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):  # else it was left behind
            advice = _advice(errno.EADDRINUSE, "")
            raise ConfigurationError(f"{setting}: cannot listen on ipc://{path}: {advice}")


def _advice(number: int | None, text: str) -> str:
    match number:
        case errno.EADDRINUSE:
            return "it is in use; is another broker running? Stop it, or choose another port or path"
        case errno.ENOENT:
            return "its directory does not exist; make it (for /run/kingtask: RuntimeDirectory=kingtask in the unit)"
        case errno.EACCES:
            return "permission denied; choose a port above 1023 or a directory this user may write to"
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return "this host has no such address"
        case _:
            return text


class RouterSocket:
    """Owns the ROUTER. `on_request(peer, message)` for each message, `on_drained()` after each batch of them."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        gate: CurveAuth | None = None,
        *,
        on_request: Callable[[Peer, bytes], None],
        on_drained: Callable[[], None],
        counters: Counters,
        hoards: PartialMessageGuard,
    ) -> None:
        self._hoards = hoards
        self._gate = gate
        self._counters = counters
        self._on_request = on_request
        self._on_drained = on_drained
        self._socket = context.socket(zmq.ROUTER)
        prepare(self._socket, gate)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        try:
            bind(self._socket, endpoints, "addr")
        except ConfigurationError:
            self._socket.close()
            raise
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look_again = False
        self._useless: tuple[Peer, int] | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)
        self._look()

    def stop(self, linger_ms: int = 1_000) -> None:
        """Stop reading; replies already handed over get `linger_ms` to leave. Idempotent."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close(linger_ms)

    def reply(self, peer: Peer, message: bytes) -> None:
        """Send without blocking; a peer that is gone or does not read loses the reply and may ask again."""
        try:
            for frame in peer:
                _send(self._socket, frame, NOBLOCK_MORE)
            _send(self._socket, message, NOBLOCK)
        except zmq.ZMQError as error:
            self._counters.count(counters.DROPPED_REPLY, "not read" if error.errno == errno.EAGAIN else "peer gone")
        self._look()

    def _look(self) -> None:
        if not self._look_again and self._loop is not None:
            self._look_again = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._look_again = False
        if self._socket.closed:
            return
        until_us = monotonic_us() + DRAIN_US
        for number in range(DRAIN_MESSAGES):
            try:
                request = self._receive()
            except zmq.Again:
                break
            if request is not None:
                self._on_request(*request)
            if self._useless is not None or (number % 8 == 7 and monotonic_us() > until_us):
                self._look()
                break
        else:
            self._look()
        self._on_drained()

    def _receive(self) -> tuple[Peer, bytes] | None:
        """One message, read frame by frame; None if it was nothing to answer. Raises zmq.Again when there is none."""
        if self._useless is not None:
            self._throw_away(*self._useless)
            return None
        sender = self._socket.recv(NOBLOCK)
        first = self._socket.recv(NOBLOCK, copy=False)  # a Frame knows whether more follow; asking costs more
        if self._hoards.wary:
            self._hoards.heard(first)
        if not first.more:
            message = first.bytes
            if message:
                return ((sender,) if self._gate is None else self._gate.known((sender,), first)), message
            self._counters.count(counters.EMPTY_MESSAGE, "nothing in it")
            return None
        if len(first):
            self._throw_away((sender,), 1)
            return None
        peer = (sender, b"")
        second = self._socket.recv(NOBLOCK, copy=False)
        if second.more:
            self._throw_away(peer, 2)
            return None
        message = second.bytes
        if message:
            return (peer if self._gate is None else self._gate.known(peer, second)), message
        self._counters.count(counters.EMPTY_MESSAGE, "only a delimiter")
        return None

    def _throw_away(self, peer: Peer, frames: int) -> None:
        """Read the rest of a message of which `frames` were read, or as much of it as one drain may; then refuse it."""
        for _ in range(DRAIN_FRAMES):
            frames += 1
            if not self._socket.recv(NOBLOCK, copy=False).more:
                break
        else:
            self._useless = (peer, frames)
            return
        self._useless = None
        error = InvalidRequest(
            f"expected one frame, or an empty delimiter and one frame; got {frames:,}", code="bad_frames"
        )
        self._counters.refused(error)
        self.reply(peer, protocol.refusal(None, error))
