"""Where brokers are: what people write, as ZeroMQ endpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from kingtask.errors import ConfigurationError

VARIABLE = "KINGTASK_BROKER"
"""Names the brokers of whoever names none: also in what a worker runs, so that one task can submit the next."""
SOCKET = "/run/kingtask/broker.sock"
"""Where the packaged broker listens (deploy/); its directory exists where the package is installed."""
DEFAULT = "tcp://127.0.0.1:9595"
DEFAULT_PORT = 9595

MAX_IPC_PATH = 107
"""Bytes of a unix socket's path without its NUL (sun_path, unix(7))."""

_TCP = re.compile(
    r"(?:tcp://)?(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::(?P<port>\d+))?\Z"
)


def endpoints(address: str | Sequence[str] | None) -> tuple[str, ...]:
    """One address or several as endpoints, in their order, each once. Raises ConfigurationError naming the bad one.

    A text may hold several with commas between them. None: those of KINGTASK_BROKER, else `nearest`.
    """
    if address is None:
        address = os.environ.get(VARIABLE) or nearest()
    if isinstance(address, str):
        address = [part for part in address.split(",") if part.strip()]
    addresses = tuple(address)
    if not addresses:
        raise ConfigurationError("address: expected at least one broker, such as tcp://127.0.0.1:9595")
    return tuple(dict.fromkeys(endpoint(one) for one in addresses))


def nearest() -> tuple[str, ...]:
    """On this machine: the packaged broker's socket if its directory exists, else DEFAULT.

    Never both: any local user may listen on DEFAULT while the packaged broker is away.
    """
    return (f"ipc://{SOCKET}",) if os.path.isdir(os.path.dirname(SOCKET)) else (DEFAULT,)  # noqa: PTH112, PTH120 - fast


def endpoint(address: str) -> str:
    """`host:port`, `host`, `tcp://host:port` or `ipc://path` as an endpoint. Raises ConfigurationError."""
    if isinstance(address, str):
        text = address.strip()
        if text.startswith("ipc://"):
            path = text.removeprefix("ipc://")
            if path and len(path.encode()) <= MAX_IPC_PATH and "\0" not in path:
                return text
        elif (match := _TCP.match(text)) and 0 < int(match["port"] or DEFAULT_PORT) < 65_536:
            return f"tcp://{match['host']}:{int(match['port'] or DEFAULT_PORT)}"
    raise ConfigurationError(
        f"address: expected host:port, tcp://host:port or ipc://path (at most {MAX_IPC_PATH} bytes), got {address!r}"
    )
