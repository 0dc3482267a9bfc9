"""Who may speak to a broker: CURVE on both its sockets, and the authenticator that knows the keys.

pyzmq's authenticator on the broker's own loop, not its thread: a change of the keys then happens between two messages,
and there is no second thread that could die unseen while the broker lives. A request to it that fails is a refusal.

libzmq lets an unknown key in where no authenticator runs or where the domain is empty; so it is told to insist, on a
domain with a name, and before the broker serves anybody a key made up on the spot has to be turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from pathlib import Path

import zmq
import zmq.auth

from kingtask import curve, failpoint
from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.errors import ConfigurationError

log = logging.getLogger("kingtask.broker")

DOMAIN = "kingtask"
PROOF_MS = 10_000
"""For a handshake with ourselves."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WHY = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it came without a key",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "it took us for another server (wrong server key)",
}

_KIND_TO = {int(zmq.ROUTER): zmq.DEALER, int(zmq.XPUB): zmq.SUB}
"""Who comes as the wrong kind is turned away for that, with whatever key, and would prove nothing."""

Socket = zmq.Socket[bytes]


class Known(tuple[bytes, ...]):
    """The frames in front of a message, and who sent it: a key and its client's name, None if it was revoked."""

    key: str
    client: str | None


class CurveAuth:
    """`guard` each socket before it is bound, then `open` before anything is read from it."""

    def __init__(
        self, context: zmq.Context[Socket], secret_key_file: Path, authorized: Path, counters: Counters
    ) -> None:
        """Raises ConfigurationError."""
        self._context = context
        self._counters = counters
        self._directory = authorized
        self._pair = curve.read_pair(secret_key_file)
        self._names = curve.read_directory(authorized)
        self._sockets: list[Socket] = []
        self._monitors: list[Socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._authenticator = zmq.auth.Authenticator(context, log=logging.getLogger("kingtask.zap"))
        self._authenticator.configure_curve_callback(DOMAIN, self)
        if not (failpoint.ACTIVE and failpoint.variant("no_authenticator") is not None):
            self._authenticator.start()

    def guard(self, socket: Socket) -> None:
        """Let nobody in without a key that is known."""
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
        """Begin to let clients in, once it is certain that others stay out. Raises ConfigurationError."""
        self._loop = asyncio.get_running_loop()
        if (zap := self._zap) is not None:
            self._loop.add_reader(int(zap.getsockopt(zmq.FD)), self._authenticate)
            self._authenticate()
        await self._prove()
        for monitor in self._monitors:
            while monitor.poll(0):  # what the proof left
                monitor.recv_multipart()
            self._loop.add_reader(int(monitor.getsockopt(zmq.FD)), self._look, monitor)
            self._look(monitor)
        log.info("curve=on clients=%d directory=%s", len(self._names), self._directory)
        if not self._names:
            log.warning("curve=no_clients: there is no *.key in %s, so nobody is let in", self._directory)

    def stop(self) -> None:
        """After the sockets have been closed. Idempotent."""
        for socket in [*self._monitors, *([self._zap] if self._zap is not None else [])]:
            if self._loop is not None and not socket.closed:
                self._loop.remove_reader(int(socket.getsockopt(zmq.FD)))
            socket.close(0)
        self._authenticator.stop()

    async def _prove(self) -> None:
        """Come to each socket with a key that nobody knows."""
        for socket in self._sockets:
            endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
            if await asyncio.get_running_loop().run_in_executor(
                None, self._is_open, endpoint, _KIND_TO[int(socket.getsockopt(zmq.TYPE))]
            ):
                raise ConfigurationError(
                    f"curve: a client with an unknown key was let in at {endpoint}, so this broker does not start;"
                    " is this libzmq older than 4.3?"
                )

    def _is_open(self, endpoint: str, kind: int) -> bool:
        public, secret = zmq.curve_keypair()
        keys = curve.ClientKeys(own=curve.Pair(public=public, secret=secret), server=self._pair.public)
        context: zmq.Context[Socket] = zmq.Context()
        try:
            with context.socket(kind) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.RECONNECT_IVL, -1)
                socket.setsockopt(zmq.IPV6, 1)
                keys.put_on(socket)
                with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED) as monitor:
                    socket.connect(endpoint)
                    if not monitor.poll(PROOF_MS):
                        return False
                    event, _ = struct.unpack("=HI", monitor.recv_multipart()[0])
                    return bool(event == zmq.EVENT_HANDSHAKE_SUCCEEDED)
        finally:
            context.term()

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def reload(self, names: dict[str, str]) -> None:
        """From now on these are let in, by key; of the others not one message more is taken."""
        old = self._names
        for key in sorted(names.keys() - old.keys()):
            log.info("key=added client=%s", names[key])
        for key in sorted(old.keys() - names.keys()):
            log.info("key=revoked client=%s", old[key])
        self._names = names

    def read(self) -> dict[str, str]:
        """What `reload` takes. Raises ConfigurationError."""
        return curve.read_directory(self._directory)

    def key_of(self, frame: zmq.Frame) -> str:
        return str(frame.get("User-Id"))

    def knows(self, key: str) -> bool:
        return key in self._names

    def known(self, peer: tuple[bytes, ...], frame: zmq.Frame) -> Known:
        """The peer that sent this frame, with its name."""
        found = Known(peer)
        found.key = self.key_of(frame)
        found.client = self._names.get(found.key)
        return found

    # ── handshakes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def callback(self, domain: str, key: bytes) -> bool:
        """For the authenticator: whether this key is let in."""
        if failpoint.ACTIVE and failpoint.variant("authenticator_fails") is not None:
            raise RuntimeError("told to fail")
        return domain == DOMAIN and key.decode() in self._names

    @property
    def _zap(self) -> Socket | None:
        return self._authenticator.zap_socket

    def _authenticate(self) -> None:
        zap = self._zap
        while zap is not None and not zap.closed:
            try:
                request = zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                with contextlib.suppress(StopIteration):  # it awaits nothing, since `callback` is no coroutine
                    self._authenticator.handle_zap_message(request).send(None)
            except Exception as error:  # noqa: BLE001  (whatever it is, the answer is no)
                self._counters.count(counters.AUTHENTICATOR, repr(error))
                zap.send_multipart([b"1.0", request[1], b"500", b"the authenticator failed", b"", b""])

    def _look(self, monitor: Socket) -> None:
        while not monitor.closed:
            try:
                frames = monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, value = struct.unpack("=HI", frames[0])  # zmq_socket_monitor(3)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                why = "its key is not known" if value == 400 else f"the authenticator said {value}"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                why = _WHY.get(value, f"it broke the protocol (0x{value:x})")
            else:
                why = "it left, as one without a key may, or said nothing for 3 s"
            self._counters.count(counters.HANDSHAKE, f"{why}, at {frames[1].decode(errors='replace')}")
