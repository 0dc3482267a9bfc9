"""CURVE on both sockets of a broker: the authorized keys, and the proof that no other key is let in.

libzmq accepts unknown keys if no authenticator runs or if the domain is empty. So the sockets enforce a domain that has
a name, and the broker starts only after it saw each socket refuse a key made for that test.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import zmq
import zmq.utils.z85

from kingtask import curve, failpoint
from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.config.permissions_file import PermissionsFile
from kingtask.errors import ConfigurationError
from kingtask.event import Event

log = logging.getLogger("kingtask.broker")

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


Peer = tuple[bytes, ...]
"""The frames in front of a message: the routing id and, from a REQ, the empty delimiter. A reply goes behind them.
With CURVE it is an AuthenticatedPeer."""


class AuthenticatedPeer(tuple[bytes, ...]):
    """The frames in front of a message, and the client that sent it."""

    def __new__(cls, frames: tuple[bytes, ...], _client: str) -> Self:
        return super().__new__(cls, frames)

    def __init__(self, _frames: tuple[bytes, ...], client: str) -> None:
        self.client = client


class CurveAuth:
    """Call `secure` for each socket before it is connected, then `open` before anything is read from it."""

    def __init__(
        self, secret_key_file: Path, authorized: Path, counters: Counters, permissions: PermissionsFile | None = None
    ) -> None:
        """Read the keys. Raises ConfigurationError."""
        self._counters = counters
        self._directory = authorized
        self._pair = curve.read_pair(secret_key_file)
        self.names = curve.read_directory(authorized)
        """The names of the clients, by key."""
        self.workers = _workers(self.names, permissions)
        """The same of the keys that may use the wakeup socket."""
        self._monitors: list[Socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def secure(self, socket: Socket) -> None:
        """Set the options by which the socket refuses every key that is not authorized."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret)
        monitor = socket.get_monitor_socket(_FAILED)
        monitor.setsockopt(zmq.LINGER, 0)
        self._monitors.append(monitor)

    async def open(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """Return once each socket, an endpoint and a type, has refused an unknown key.

        Raises ConfigurationError if one did not.
        """
        self._loop = asyncio.get_running_loop()
        for endpoint, socket_type in endpoints:
            peer_type = _PEER_TYPE[socket_type]
            event = await self._loop.run_in_executor(None, self._connect_with_unknown_key, endpoint, peer_type)
            if event is None:
                why = f"a client with an unknown key was not refused within {SELF_TEST_MS / 1000:g} s"
                raise ConfigurationError(f"curve: {why}, so this broker does not start; is this machine overloaded?")
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                why = "a client with an unknown key was let in, so this broker does not start"
                raise ConfigurationError(f"curve: {why}; is this libzmq older than 4.3?")
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
        for monitor in self._monitors:
            if not monitor.closed:
                if self._loop is not None:
                    self._loop.remove_reader(int(monitor.getsockopt(zmq.FD)))
                monitor.close(0)

    def _connect_with_unknown_key(self, endpoint: str, peer_type: int) -> int | None:
        """Return the event that ended the handshake; None if there was none in time."""
        public, secret = zmq.curve_keypair()
        keys = curve.ClientKeys(own=curve.Pair(public=public, secret=secret), server=self._pair.public)
        context: zmq.Context[Socket]
        with zmq.Context() as context, context.socket(peer_type) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, -1)
            keys.put_on(socket)
            with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED) as monitor:
                socket.connect(endpoint)
                if not monitor.poll(SELF_TEST_MS):
                    return None
                event, _ = struct.unpack("=HI", monitor.recv_multipart()[0])
                return int(event)

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def reload(self, names: dict[str, str], permissions: PermissionsFile | None = None) -> None:
        """Authorize these keys; not one more message of any other key is accepted."""
        old = self.names
        for key in sorted(names.keys() - old.keys()):
            log.info(Event("key=added", client=names[key]))
        for key in sorted(old.keys() - names.keys()):
            log.info(Event("key=revoked", client=old[key]))
        self.names, self.workers = names, _workers(names, permissions)

    def read(self) -> dict[str, str]:
        """Read the keys for `reload`. Raises ConfigurationError."""
        return curve.read_directory(self._directory)

    def key_of(self, key: bytes, *, worker: bool) -> str | None:
        """Return this key as text, or None if it is not authorized; `worker`: for the wakeup socket."""
        if failpoint.ACTIVE and failpoint.variant("authenticator_fails") is not None:
            raise RuntimeError("this variant fails")
        text = zmq.utils.z85.encode(key).decode()
        return text if text in (self.workers if worker else self.names) else None

    def _drain_monitor(self, monitor: Socket) -> None:
        while not monitor.closed:
            try:
                frames = monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, value = struct.unpack("=HI", frames[0])  # zmq_socket_monitor(3)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                why = "its key is not known here" if value == 400 else f"the authenticator replied {value}"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                why = _WHY.get(value, f"it broke the protocol (0x{value:x})")
            else:
                why = "it closed the connection, or sent nothing for 3 s"
            self._counters.count(counters.HANDSHAKE, why, reason=why)


def _workers(names: dict[str, str], permissions: PermissionsFile | None) -> dict[str, str]:
    return {key: name for key, name in names.items() if permissions is None or permissions.rule_of(name)[0].worker}
