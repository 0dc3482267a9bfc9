"""Which database this is: the cluster id in `meta`, made once by the first broker of a namespace.

A server can come back empty, with the data of another installation, or as a replica that was promoted before it had
copied anything. Whoever has worked on one database, or was told which by `cluster:`, writes to no other: the id is
checked at every connect, and by every function before it does anything.
"""

from __future__ import annotations

from kingtask.errors import ConfigurationError, StoreError
from kingtask.store.keys import Keys
from kingtask.store.library import SCHEMA
from kingtask.store.redis.connection import Connection


class DatabaseIdentity:
    """`cluster` is the id that this process works with, None before it has seen one. Only a broker `creates`."""

    def __init__(self, cluster: str | None, *, creates: bool) -> None:
        self.cluster = cluster
        self._creates = creates

    async def check(self, connection: Connection, keys: Keys) -> bool:
        """Look at `meta`; True if the namespace is new and may be begun.

        Raises StoreError (`foreign`, `new`) for what may pass, ConfigurationError for what only a person can mend.
        """
        # In this order: who begins a namespace writes `meta` first.
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
                " nothing is written to it. Bring the right one back, or, to begin anew, take `cluster:` out of the"
                " configurations and restart brokers and workers",
            )
        if used:
            raise ConfigurationError(
                f"redis: the namespace {keys.namespace!r} has keys and no identity ({keys.meta}): something else wrote"
                " them, or part of the data is gone. Restore the data, or use another namespace, or remove these keys"
            )
        if not self._creates:
            raise StoreError("new", f"the namespace {keys.namespace!r} is new: a broker has to begin it")
        return True
