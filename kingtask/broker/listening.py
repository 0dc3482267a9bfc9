"""Listening sockets: at the endpoints that ZeroMQ's bind takes, and private ones to which libzmq connects."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kingtask.errors import ConfigurationError

BACKLOG = 1_024
TCP_OPTIONS = {
    socket.TCP_NODELAY: 1,
    socket.TCP_KEEPIDLE: 15,  # s
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,  # ms; a host that acknowledges nothing for so long is gone
}
SIOCGIFADDR = 0x8915
"""linux/sockios.h."""


def listen_at(endpoints: Sequence[str], setting: str) -> list[socket.socket]:
    """Listen at all endpoints. Raises ConfigurationError that names the setting if one of them cannot be bound."""
    listeners: list[socket.socket] = []
    for endpoint in endpoints:
        try:
            listeners.append(listen(endpoint))
        except OSError as error:
            for listener in listeners:
                close(listener)
            raise ConfigurationError(f"{setting}: cannot listen on {endpoint}: {_advice(error)}") from None
    return listeners


def listen(endpoint: str) -> socket.socket:
    """Bind and listen. Raises OSError."""
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


def accept(listener: socket.socket) -> tuple[socket.socket, str]:
    """Accept a connection; return it, and the name of its peer. Raises OSError."""
    outer, address = listener.accept()
    outer.setblocking(False)
    if outer.family == socket.AF_UNIX:
        return outer, f"uid {_credentials(outer)[1]}"
    with contextlib.suppress(OSError):  # the peer has left
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in TCP_OPTIONS.items():
            outer.setsockopt(socket.IPPROTO_TCP, option, value)
    return outer, name_of(address[0])


def name_of(address: str) -> str:
    """Return the address, or its network (IPv6): one peer may have all addresses of the same name."""
    host = address.partition("%")[0].removeprefix("::ffff:")
    if host.startswith("127.") or host == "::1":
        return "127.0.0.1"
    if ":" not in host:
        return host
    network = socket.inet_pton(socket.AF_INET6, host)[:8] + bytes(8)
    return socket.inet_ntop(socket.AF_INET6, network) + "/64"


def close(listener: socket.socket) -> None:
    """Close a listener and remove its path. Idempotent."""
    if listener.fileno() >= 0:
        if listener.family == socket.AF_UNIX:
            Path(listener.getsockname()).unlink(missing_ok=True)
        listener.close()


# ── private listeners ────────────────────────────────────────────────────────────────────────────────────────────────


def listen_privately() -> socket.socket:
    """Listen at a new abstract name, by which libzmq ends its connection. Use `accept_own`. Raises OSError.

    The name is random, since any local user can bind one that can be guessed. Any can also connect to it, and libzmq
    tries only once: so there is room for many.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(f"\0kingtask.{secrets.token_hex(8)}")
    listener.listen(BACKLOG)
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


# ── forms of endpoints ───────────────────────────────────────────────────────────────────────────────────────────────


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
