"""What must be true of a Redis server before it is used, checked on every connection that is made to it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from kingtask.errors import ConfigurationError, StoreError
from kingtask.store import functions
from kingtask.store.identity import DatabaseIdentity
from kingtask.store.keys import Keys
from kingtask.store.library import SCHEMA, Library
from kingtask.store.redis.connection import Connection

OLDEST = {"redis": (7, 0), "valkey": (7, 2)}

REFUSED_FOR_GOOD = frozenset({"auth", "permission"})
"""Kinds of StoreError that waiting does not mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server that passed the checks. `settings` is empty where CONFIG is not permitted."""

    product: str
    version: str
    settings: dict[str, str]
    history: str = ""
    """The replication id: another one whenever the sequence of its writes may have become another."""
    replicas: int = 0
    """Attached and in step."""

    @property
    def fsync_always(self) -> bool:
        """True if a reply proves that the write is on disk."""
        return (
            self.settings.get("appendonly") == "yes"
            and self.settings.get("appendfsync") == "always"
            and self.settings.get("no-appendfsync-on-rewrite") == "no"
        )

    @property
    def persistence(self) -> str:
        """The settings behind `fsync_always`, for people."""
        names = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
        return ", ".join(f"{name} {self.settings.get(name, 'unknown')}" for name in names)


async def check_server(connection: Connection, keys: Keys, library: Library, identity: DatabaseIdentity) -> ServerFacts:
    """Check version, role and `meta`, and load the library. What is refused has not been written to.

    Raises ConfigurationError for what only a person can mend, StoreError for what may pass.
    """
    facts = _facts(await connection.ask("INFO", "server"))
    product = "valkey" if "valkey_version" in facts else "redis"
    version = facts.get(f"{product}_version", "0")
    if release_of(version) < OLDEST[product]:
        raise ConfigurationError(
            f"redis: this server is {product} {version}; kingtask needs Redis 7.0 or Valkey 7.2, or newer"
        )
    replication = await connection.ask("INFO", "replication")
    history = history_of(replication)
    if not history:
        raise StoreError("readonly", "this server is a replica, not the primary")
    new = await identity.check(connection, keys)
    await _load(connection, library)
    if new:
        call = functions.open_namespace(SCHEMA, uuid.uuid4().hex)
        await connection.ask("FCALL", library.function(call.function), 1, keys.meta, call.payload(keys.db))
        await identity.check(connection, keys)
    return ServerFacts(
        product=product,
        version=version,
        settings=await _settings(connection),
        history=history,
        replicas=replicas_of(replication),
    )


def history_of(replication: bytes) -> str:
    """What `INFO replication` says of a primary's history; empty for a replica."""
    facts = _facts(replication)
    return facts["master_replid"] if facts.get("role") == "master" else ""


def replicas_of(replication: bytes) -> int:
    """How many replicas are attached and in step."""
    facts = _facts(replication)
    return sum("state=online" in value for name, value in facts.items() if name.startswith("slave"))


async def _load(connection: Connection, library: Library) -> None:
    try:
        await connection.ask("FUNCTION", "LOAD", library.text)
    except StoreError as error:
        if "already exists" in str(error):
            return
        if "unknown command" in str(error).lower():
            raise ConfigurationError(
                "redis: this server has no functions (FUNCTION LOAD is unknown or renamed); kingtask needs them"
            ) from None
        if error.kind != "full":
            raise
        # A full server refuses it before it looks whether it is there.
        if not await connection.ask("FUNCTION", "LIST", "LIBRARYNAME", library.name):
            raise StoreError(
                "full",
                "Redis is full (maxmemory), and this release's functions, which would drain it, are not loaded yet;"
                " raise maxmemory a little: CONFIG SET maxmemory",
            ) from None


async def _settings(connection: Connection) -> dict[str, str]:
    try:
        flat = await connection.ask("CONFIG", "GET", "append*")
        flat += await connection.ask("CONFIG", "GET", "no-appendfsync-on-rewrite")
        flat += await connection.ask("CONFIG", "GET", "maxmemory*")
    except StoreError as error:
        if error.kind in ("permission", "error"):
            return {}
        raise
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def _facts(text: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def release_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
