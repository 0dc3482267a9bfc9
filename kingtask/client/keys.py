"""A client's keys: what the caller, or else the environment, names. Nothing is imported where there are none."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from kingtask.curve import ClientKeys

CURVE_KEY = "KINGTASK_CURVE_KEY"
SERVER_KEY = "KINGTASK_SERVER_KEY"

Path = str | os.PathLike[str]


def read(curve_key: Path | None, server_key: Path | None) -> ClientKeys | None:
    """Read the two key files; None if neither is named ("" is none). Raises ConfigurationError naming the wrong one."""
    own = os.environ.get(CURVE_KEY) if curve_key is None else curve_key
    server = os.environ.get(SERVER_KEY) if server_key is None else server_key
    if not own and not server:
        return None
    if not own or not server:
        missing, there = ("own secret", "the broker's public") if not own else ("broker's public", "its secret")
        raise ConfigurationError(
            f"keys: this client has {there} key, but not the {missing} one; name both"
            f" (curve_key and server_key, --curve-key and --server-key, or {CURVE_KEY} and {SERVER_KEY})"
        )
    keyfiles = import_module("kingtask.curve")  # and zmq.auth with it, which most clients do without
    keys: ClientKeys = keyfiles.read_client(own, server)
    return keys
