"""CURVE on both sockets of a broker, with an authenticator that knows the authorized keys.

pyzmq's authenticator runs on the broker's own loop, not on its thread. So the keys change between two messages, and no
second thread can die unnoticed. A request to the authenticator that fails is a refusal.

libzmq accepts unknown keys if no authenticator runs or if the domain is empty. So the sockets enforce a domain that has
a name, and the broker starts only after it saw each socket refuse a key made for that test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from pathlib import Path
from typing import Self

import zmq
import zmq.auth

from kingtask import curve, failpoint
from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.errors import ConfigurationError
from kingtask.event import Event

log = logging.getLogger("kingtask.broker")

DOMAIN = "kingtask"
SELF_TEST_MS = 10_000
"""The longest wait for the handshake of the test."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WHY = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it came without a key",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "it expects another server (wrong server key)",
}

_PEER_TYPE = {int(zmq.ROUTER): zmq.DEALER, int(zmq.XPUB): zmq.SUB}
"""A peer of a type that does not match is refused with any key, and would prove nothing."""

Socket = zmq.Socket[bytes]


class AuthenticatedPeer(tuple[bytes, ...]):
    """The frames in front of a message, and the client that sent it. `client` is None if its key was revoked."""

    def __new__(cls, frames: tuple[bytes, ...], _auth: CurveAuth, _key: str) -> Self:
        return super().__new__(cls, frames)

    def __init__(self, _frames: tuple[bytes, ...], auth: CurveAuth, key: str) -> None:
        self._auth = auth
        self._key = key
        self.client = auth.names.get(key)

    @property
    def revoked(self) -> bool:
        """True if the key is no longer authorized."""
        return self._key not in self._auth.names


class CurveAuth:
    """Call `secure` for each socket before it is bound, then `open` before anything is read from it."""

    def __init__(
        self, context: zmq.Context[Socket], secret_key_file: Path, authorized: Path, counters: Counters
    ) -> None:
        """Read the keys. Raises ConfigurationError."""
        self._counters = counters
        self._directory = authorized
        self._pair = curve.read_pair(secret_key_file)
        self.names = curve.read_directory(authorized)
        """The names of the clients, by key."""
        self._sockets: list[Socket] = []
        self._monitors: list[Socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._authenticator = zmq.auth.Authenticator(context, log=logging.getLogger("kingtask.zap"))
        self._authenticator.configure_curve_callback(DOMAIN, self)
        if not (failpoint.ACTIVE and failpoint.variant("no_authenticator") is not None):
            self._authenticator.start()

    def secure(self, socket: Socket) -> None:
        """Set the options by which the socket refuses every key that is not authorized."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret)
        if not (failpoint.ACTIVE and failpoint.variant("empty_domain") is not None):
            socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        monitor = socket.get_monitor_socket(_FAILED)
        monitor.setsockopt(zmq.LINGER, 0)
        self._sockets.append(socket)
        self._monitors.append(monitor)

    async def open(self) -> None:
        """Accept clients, once each socket has refused an unknown key. Raises ConfigurationError if one did not."""
        self._loop = asyncio.get_running_loop()
        if (zap := self._authenticator.zap_socket) is not None:
            self._loop.add_reader(int(zap.getsockopt(zmq.FD)), self._authenticate)
            self._authenticate()
        for socket in self._sockets:
            endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
            peer_type = _PEER_TYPE[int(socket.getsockopt(zmq.TYPE))]
            if await self._loop.run_in_executor(None, self._accepts_unknown_key, endpoint, peer_type):
                raise ConfigurationError(
                    f"curve: a client with an unknown key was let in at {endpoint}, so this broker does not start;"
                    " is this libzmq older than 4.3?"
                )
        for monitor in self._monitors:
            while monitor.poll(0):  # events of the test
                monitor.recv_multipart()
            self._loop.add_reader(int(monitor.getsockopt(zmq.FD)), self._drain_monitor, monitor)
            self._drain_monitor(monitor)
        log.info(Event("curve=on", clients=len(self.names), directory=self._directory))
        if not self.names:
            log.warning(Event("curve=no_clients", f"there is no *.key in {self._directory}, so nobody is let in"))

    def stop(self) -> None:
        """Call this after the sockets were closed. Idempotent."""
        for socket in (*self._monitors, self._authenticator.zap_socket):
            if socket is not None and not socket.closed:
                if self._loop is not None:
                    self._loop.remove_reader(int(socket.getsockopt(zmq.FD)))
                socket.close(0)
        self._authenticator.stop()

    def _accepts_unknown_key(self, endpoint: str, peer_type: int) -> bool:
        public, secret = zmq.curve_keypair()
        keys = curve.ClientKeys(own=curve.Pair(public=public, secret=secret), server=self._pair.public)
        context: zmq.Context[Socket]
        with zmq.Context() as context, context.socket(peer_type) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, -1)
            socket.setsockopt(zmq.IPV6, 1)
            keys.put_on(socket)
            with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
                socket.connect(endpoint)
                if not monitor.poll(SELF_TEST_MS):
                    return False
                event, _ = struct.unpack("=HI", monitor.recv_multipart()[0])
                return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def reload(self, names: dict[str, str]) -> None:
        """Authorize these keys; not one more message of any other key is accepted."""
        old = self.names
        for key in sorted(names.keys() - old.keys()):
            log.info(Event("key=added", client=names[key]))
        for key in sorted(old.keys() - names.keys()):
            log.info(Event("key=revoked", client=old[key]))
        self.names = names

    def read(self) -> dict[str, str]:
        """Read the keys for `reload`. Raises ConfigurationError."""
        return curve.read_directory(self._directory)

    def key_of(self, frame: zmq.Frame) -> str:
        return str(frame.get("User-Id"))

    def peer_of(self, frames: tuple[bytes, ...], frame: zmq.Frame) -> AuthenticatedPeer:
        """Return the peer that sent this frame."""
        return AuthenticatedPeer(frames, self, self.key_of(frame))

    # ── handshakes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def callback(self, domain: str, key: bytes) -> bool:
        """Return True if this key is authorized. The authenticator calls this."""
        if failpoint.ACTIVE and failpoint.variant("authenticator_fails") is not None:
            raise RuntimeError("this variant fails")
        return domain == DOMAIN and key.decode() in self.names

    def _authenticate(self) -> None:
        zap = self._authenticator.zap_socket
        while zap is not None and not zap.closed:
            try:
                request = zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                with contextlib.suppress(StopIteration):  # the coroutine never suspends, since `callback` is none
                    self._authenticator.handle_zap_message(request).send(None)
            except Exception as error:  # noqa: BLE001  (any error is a refusal)
                self._counters.count(counters.AUTHENTICATOR, repr(error))
                zap.send_multipart([b"1.0", request[1], b"500", b"the authenticator failed", b"", b""])

    def _drain_monitor(self, monitor: Socket) -> None:
        while not monitor.closed:
            try:
                frames = monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, value = struct.unpack("=HI", frames[0])  # zmq_socket_monitor(3)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                why = "its key is not known" if value == 400 else f"the authenticator replied {value}"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                why = _WHY.get(value, f"it broke the protocol (0x{value:x})")
            else:
                why = "it closed the connection, or sent nothing for 3 s"
            self._counters.count(counters.HANDSHAKE, f"{why}, at {frames[1].decode(errors='replace')}", reason=why)
