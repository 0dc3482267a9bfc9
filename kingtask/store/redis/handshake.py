"""Checks that every new connection to Redis passes first: release, role, settings, identity of the database, library.

The identity is the cluster id in `meta`, made once by the first broker of a namespace. A server can come back empty,
with the data of another installation, or as a replica that was promoted before it had copied anything. A process that
has worked on one database, or was given its id by `cluster:`, writes to no other: every connect checks the id, and so
does every function before it does anything.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kingtask import __version__
from kingtask.errors import ConfigurationError, StoreError
from kingtask.event import Event
from kingtask.store import functions
from kingtask.store.codec import hash_of
from kingtask.store.keys import Keys
from kingtask.store.library import SCHEMA, Library
from kingtask.store.redis.connection import Connection

log = logging.getLogger("kingtask.store")

OLDEST = {"redis": (7, 0), "valkey": (7, 2)}

FSYNC_ALWAYS = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
"""With these settings a reply proves that the write is on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A server that passed the checks. `settings` is empty where CONFIG is not permitted, or nobody asked."""

    product: str
    version: str
    settings: dict[str, str]
    history: str = ""
    """The replication id; it changes whenever the sequence of writes may have changed."""
    replicas: int = 0
    """Replicas that are attached and in step."""

    @property
    def fsync_always(self) -> bool:
        return FSYNC_ALWAYS.items() <= self.settings.items()

    @property
    def persistence(self) -> str:
        """The settings behind `fsync_always`, for people."""
        if not self.settings:
            return "nothing, since the user lacks +config|get"
        return ", ".join(f"{name} {self.settings.get(name, 'unknown')}" for name in FSYNC_ALWAYS)


class DatabaseIdentity:
    """`cluster` is the id that this process works with, None before the first one. Only a broker `creates` it."""

    def __init__(self, cluster: str | None, *, creates: bool) -> None:
        self.cluster = cluster
        self.creates = creates

    async def check(self, connection: Connection, keys: Keys) -> bool:
        """Check `meta`; return True if the namespace is new and this process may create it.

        Raises StoreError (`foreign`, `new`) if it may pass, ConfigurationError if only a person can correct it.
        """
        # In this order: the broker that creates a namespace writes `meta` first.
        used = await connection.ask("EXISTS", *keys.lasting)
        schema, found = await connection.ask("HMGET", keys.meta, "schema", "cluster")
        if schema is not None and not (schema.isdigit() and int(schema) <= SCHEMA):
            raise ConfigurationError(
                f"redis: the namespace {keys.namespace!r} was written by a newer kingtask (schema"
                f" {schema.decode(errors='replace')}, this one knows {SCHEMA}); upgrade this machine, or use another"
                " namespace"
            )
        if found is not None and self.cluster in (None, found.decode()):
            self.cluster = found.decode()
            return False
        if self.cluster is not None:
            has = "none" if found is None else found.decode(errors="replace")
            raise StoreError(
                "foreign",
                f"the database has lost its identity, or is another one: expected cluster {self.cluster}, found {has};"
                " nothing is written to it. Restore the right database or, to start with this one, remove `cluster:`"
                " from the configurations and restart brokers and workers",
            )
        if used:
            raise ConfigurationError(
                f"redis: the namespace {keys.namespace!r} has keys and no identity ({keys.meta}): another program wrote"
                " them, or part of the data is gone. Restore the data, or use another namespace, or remove these keys"
            )
        if not self.creates:
            raise StoreError("new", f"the namespace {keys.namespace!r} is new: a broker must create it")
        return True


@dataclass(frozen=True, slots=True)
class Handshake:
    """The checks of a new connection, for one namespace and release.

    `waits` is called while a worker's library is missing, with the reason. `settings`: ask for the server's settings.
    """

    keys: Keys
    library: Library
    identity: DatabaseIdentity
    waits: Callable[[Connection, str], Awaitable[None]]
    settings: bool

    async def check(self, connection: Connection) -> ServerFacts:
        """Check version, role, `meta` and the library, which a broker loads. A refused server has not been written to.

        Raises ConfigurationError if only a person can correct it, StoreError if it may pass.
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
        new = await self.identity.check(connection, self.keys)
        await self._check_library(connection)
        if new:
            call = functions.open_namespace(SCHEMA, uuid.uuid4().hex)
            function = self.library.function(call.function)
            await connection.ask("FCALL", function, 1, self.keys.meta, call.payload(self.keys.db))
            await self.identity.check(connection, self.keys)
        return ServerFacts(
            product=product,
            version=version,
            settings=await _settings(connection) if self.settings else {},
            history=history,
            replicas=replicas_of(replication),
        )

    async def _check_library(self, connection: Connection) -> None:
        """Compare the whole text: the functions run with the rights of their caller, so another text could do anything.

        Only a broker loads it. Raises StoreError (`library`) for a worker whose library is missing.
        """
        name, text = self.library.name, self.library.text
        try:
            listed = await connection.ask("FUNCTION", "LIST", "LIBRARYNAME", name, "WITHCODE")
        except StoreError as error:
            if "unknown command" not in str(error).lower():
                raise
            text = "redis: this server has no functions (FUNCTION is unknown or renamed); kingtask needs them"
            raise ConfigurationError(text) from None
        if listed and hash_of(listed[0])["library_code"] == text.encode():
            return
        if not self.identity.creates:
            why = f"Redis lacks the functions of kingtask {__version__} ({name}), which a broker of that release loads"
            await self.waits(connection, why)
            raise StoreError("library", why)
        if listed:
            log.warning(Event("library=replaced", "Redis had another text under the name of this one", name=name))
        try:
            await connection.ask("FUNCTION", "LOAD", "REPLACE", text)
        except StoreError as error:
            if error.kind != "full":
                raise
            lacks = "Redis is full (maxmemory), and this release's functions, which would drain it, are not loaded yet"
            raise StoreError("full", f"{lacks}; raise maxmemory a little: CONFIG SET maxmemory") from None


def history_of(replication: bytes) -> str:
    """Return the replication id of a primary from `INFO replication`; empty for a replica."""
    facts = _facts(replication)
    return facts["master_replid"] if facts.get("role") == "master" else ""


def replicas_of(replication: bytes) -> int:
    """Return the number of replicas that are attached and in step, from `INFO replication`."""
    facts = _facts(replication)
    return sum("state=online" in value for name, value in facts.items() if name.startswith("slave"))


async def _settings(connection: Connection) -> dict[str, str]:
    try:
        flat = await connection.ask("CONFIG", "GET", "append*", "no-appendfsync-on-rewrite", "maxmemory*")
    except StoreError as error:
        if error.kind in ("permission", "error"):
            return {}
        raise
    return {name: value.decode() for name, value in hash_of(flat).items()}


def _facts(text: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def release_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
