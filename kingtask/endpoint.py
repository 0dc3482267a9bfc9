"""Addresses of brokers: `host:port`, `tcp://host:port`, `ipc:///path`; for daemons, which bind, and for clients."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from kingtask.errors import ConfigurationError

VARIABLE = "KINGTASK_BROKER"
"""Names the brokers of clients that name none. A worker sets it, so that a task can submit the next."""
SOCKET = "/run/kingtask/broker.sock"
"""Socket of the packaged broker (deploy/); its directory exists where the package is installed."""
DEFAULT_PORT = 9595
DEFAULT = f"tcp://127.0.0.1:{DEFAULT_PORT}"

FORMS = "host:port, tcp://host:port, ipc:///path/of/socket"
MAX_PATH_BYTES = 107
"""sun_path holds 108 bytes with its NUL (unix(7))."""
MAX_PORT = 65_535

_TCP = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|\*|[A-Za-z0-9_][A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,6}))?")


class Address(NamedTuple):
    """The address that a broker binds: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.endpoint if self.path else f"{self.host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """The form that ZeroMQ's bind and connect take."""
        return f"ipc://{self.path}" if self.path else f"tcp://{self.host}:{self.port}"

    @property
    def public(self) -> bool:
        """True if other machines may reach the address."""
        from ipaddress import ip_address

        if self.path:
            return False
        try:
            return not ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # `*` or a name, which may mean any address
            return True

    def beside(self) -> Address:
        """Return the default address of the same broker's wakeups: the next port, or `<path>.wakeup`."""
        if self.path:
            return parse(f"ipc://{self.path}.wakeup")
        return parse(f"{self.host}:{self.port + 1}")


def parse(text: str) -> Address:
    """Read an address of a daemon, in one of FORMS. Raises ConfigurationError."""
    from ipaddress import ip_address

    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ipc":
        if not rest.startswith("/") or "\0" in rest:
            raise ConfigurationError(f"expected an absolute path behind ipc://, got {text!r}")
        if len(rest.encode()) > MAX_PATH_BYTES:
            raise ConfigurationError(f"the path of a socket has at most {MAX_PATH_BYTES} bytes: {rest}")
        return Address(path=rest)
    match = _TCP.fullmatch(rest if separator else text)
    if match is None or match["port"] is None or (separator and scheme != "tcp"):
        raise ConfigurationError(f"expected one of {FORMS}, got {text!r}")
    host, port = match["host"], int(match["port"])
    if not 1 <= port <= MAX_PORT:
        raise ConfigurationError(f"expected a port from 1 to {MAX_PORT:,}, got {port} in {text!r}")
    if host.startswith("["):
        try:
            ip_address(host[1:-1])
        except ValueError:
            raise ConfigurationError(f"{host} in {text!r} is not an IPv6 address") from None
    # bind takes no names, and localhost means the same everywhere
    return Address(host="127.0.0.1" if host == "localhost" else host, port=port)


def host_port(text: str) -> Address:
    """Read host:port and nothing else. Raises ConfigurationError."""
    match = _TCP.fullmatch(text)
    if match is None or match["port"] is None:
        raise ConfigurationError(f"expected host:port, got {text!r}")
    return parse(text)


# ── for clients ──────────────────────────────────────────────────────────────────────────────────────────────────────


def endpoints(address: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one address or several as endpoints, in their order, each once. Raises ConfigurationError naming a bad
    one.

    A string may hold several with commas between them. None means KINGTASK_BROKER, else `nearest`.
    """
    if address is None:
        address = os.environ.get(VARIABLE) or nearest()
    if isinstance(address, str):
        address = [part for part in address.split(",") if part.strip()]
    addresses = tuple(address)
    if not addresses:
        raise ConfigurationError(f"address: expected at least one broker, such as {DEFAULT}")
    return tuple(dict.fromkeys(endpoint(one) for one in addresses))


def nearest() -> tuple[str, ...]:
    """Return the broker of this machine: the packaged broker's socket if its directory exists, else DEFAULT.

    Never both: any local user may listen on DEFAULT while the packaged broker is away.
    """
    return (f"ipc://{SOCKET}",) if os.path.isdir(os.path.dirname(SOCKET)) else (DEFAULT,)  # noqa: PTH112, PTH120 - fast


def endpoint(address: str) -> str:
    """Return `host:port`, `host`, `tcp://host:port` or `ipc://path` as an endpoint. Raises ConfigurationError."""
    if isinstance(address, str):
        text = address.strip()
        if text.startswith("ipc://"):
            path = text.removeprefix("ipc://")
            if path and len(path.encode()) <= MAX_PATH_BYTES and "\0" not in path:
                return text
        elif (match := _TCP.fullmatch(text.removeprefix("tcp://"))) and match["host"] != "*":
            port = DEFAULT_PORT if match["port"] is None else int(match["port"])
            if 1 <= port <= MAX_PORT:
                return f"tcp://{match['host']}:{port}"
    raise ConfigurationError(
        f"address: expected host:port, tcp://host:port or ipc://path (at most {MAX_PATH_BYTES} bytes), got {address!r}"
    )
