"""Addresses of brokers: `host:port`, `tcp://host:port`, `ipc:///path`, and the wakeup address beside each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from kingtask.errors import ConfigurationError

FORMS = "host:port, tcp://host:port, ipc:///path/of/socket"
MAX_PATH_BYTES = 107
"""sun_path holds 108 with its NUL (unix(7))."""
MAX_PORT = 65_535

_TCP = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|\*|[A-Za-z0-9_][A-Za-z0-9._-]*):(?P<port>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.endpoint if self.path else f"{self.host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """For ZeroMQ's bind and connect."""
        return f"ipc://{self.path}" if self.path else f"tcp://{self.host}:{self.port}"

    @property
    def public(self) -> bool:
        """True if other machines may reach it."""
        if self.path:
            return False
        try:
            return not ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # `*` or a name, which may mean any address
            return True

    def beside(self) -> Address:
        """Where the same broker publishes wakeups unless told otherwise: the next port, or `<path>.wakeup`."""
        if self.path:
            return parse(f"ipc://{self.path}.wakeup")
        return parse(f"{self.host}:{self.port + 1}")


def parse(text: str) -> Address:
    """Read one of FORMS. Raises ConfigurationError."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ipc":
        return _unix(text, rest)
    match = _TCP.fullmatch(rest if separator else text)
    if match is None or (separator and scheme != "tcp"):
        raise ConfigurationError(f"expected one of {FORMS}, got {text!r}")
    host, port = match["host"], int(match["port"])
    if not 1 <= port <= MAX_PORT:
        raise ConfigurationError(f"expected a port from 1 to {MAX_PORT:,}, got {port} in {text!r}")
    if host.startswith("["):
        try:
            ip_address(host[1:-1])
        except ValueError:
            raise ConfigurationError(f"{host} in {text!r} is no IPv6 address") from None
    # bind takes no names, and localhost means the same everywhere
    return Address(host="127.0.0.1" if host == "localhost" else host, port=port)


def host_port(text: str) -> Address:
    """Read host:port and nothing else. Raises ConfigurationError."""
    if _TCP.fullmatch(text) is None:
        raise ConfigurationError(f"expected host:port, got {text!r}")
    return parse(text)


def _unix(text: str, path: str) -> Address:
    if not path.startswith("/") or "\0" in path:
        raise ConfigurationError(f"expected an absolute path behind ipc://, got {text!r}")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise ConfigurationError(f"the path of a socket has at most {MAX_PATH_BYTES} bytes: {path}")
    return Address(path=path)
