"""A connection that is kept up: connect, check, use; on loss wait a little and connect again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from kingtask.errors import ConfigurationError, StoreError
from kingtask.store.keys import Keys
from kingtask.store.library import Library
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.connection import Callback, Connection, connect
from kingtask.store.redis.handshake import REFUSED_FOR_GOOD, DatabaseIdentity, ServerFacts, check_server
from kingtask.store.redis.primary import Primary
from kingtask.store.redis.redis_errors import RECONNECT_ON

log = logging.getLogger("kingtask.store")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
"""So that a restarted Redis is in use again within about two seconds."""
LEVELS = {"foreign": logging.ERROR, "new": logging.INFO}
"""Of what is said when there is no connection: a worker that was started before the first broker waits for it."""

ADVICE = {
    "auth": "check user and password",
    "permission": "give the user what deploy/redis/kingtask.acl has; `kingtask doctor` says what it lacks",
}
"""For each kind that is refused for good."""


class SupervisedConnection:
    """One purpose's connection. `accept` may refuse a server (ConfigurationError); `on_up` may send at once."""

    def __init__(
        self,
        primary: Primary,
        keys: Keys,
        library: Library,
        identity: DatabaseIdentity,
        *,
        purpose: str,
        timeout_s: float,
        on_up: Callable[[ServerFacts], None],
        on_down: Callable[[], None],
        accept: Callable[[ServerFacts], object] | None = None,
        channels: dict[bytes, Callable[[bytes], None]] | None = None,
    ) -> None:
        self._primary = primary
        self._address = primary.address
        self._keys = keys
        self._library = library
        self._identity = identity
        self.purpose = purpose
        self._timeout_s = timeout_s
        self._on_up = on_up
        self._on_down = on_down
        self._accept = accept
        self._channels = channels
        self._connection: Connection | None = None
        self._server: ServerFacts | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self.trouble = ""
        """Why it is not up."""
        self.connects = 0
        """How often it came up."""

    @property
    def up(self) -> bool:
        return self._connection is not None

    @property
    def history(self) -> str:
        """The replication history of the server that this connection is to; see `ack`."""
        return self._server.history if self._server is not None else ""

    @property
    def sent_us(self) -> int:
        """While a callback runs: when its command was sent (monotonic µs)."""
        return self._connection.sent_us if self._connection is not None else 0

    async def open(self) -> None:
        """Try once, then keep trying in the background. Raises ConfigurationError if the server is refused for good."""
        try:
            await self._connect()
        except StoreError as error:
            if error.kind in REFUSED_FOR_GOOD:
                raise ConfigurationError(f"redis: {self._address} refuses: {error}; {ADVICE[error.kind]}") from None
            self._tell(error)
        self._keeper = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("closed")

    def send(self, command: tuple[Any, ...], callback: Callback) -> None:
        """Send one command; the callback gets the reply or a StoreError."""
        connection = self._connection
        if connection is None:
            callback(self._away())
            return
        connection.send(command, callback)

    async def ask(self, *command: Any) -> Any:
        """Send one command and wait for its reply; raises StoreError. Not for the hot path."""
        if self._connection is None:
            raise self._away()
        return await self._connection.ask(*command)

    def reject(self, error: StoreError) -> None:
        """Tell of an error reply: some of them need a new connection."""
        if error.kind in RECONNECT_ON:
            self.renew(str(error))

    def renew(self, why: str) -> None:
        """Drop the connection and make it anew, with all its checks."""
        if self._connection is not None:
            self._connection.abort(why)

    def moved(self, address: RedisAddress) -> None:
        """The primary is another one now: leave the former, also in the middle of trying to reach it."""
        if (address.host, address.port) == (self._address.host, self._address.port):
            return
        if self._connection is not None:
            self.renew(f"{address} is the primary now")
        elif self._keeper is not None:
            self._keeper.cancel()
            self._keeper = asyncio.create_task(self._keep_up())

    def _away(self) -> StoreError:
        return StoreError("away", f"Redis at {self._address} is not reachable ({self.trouble})")

    async def _connect(self) -> None:
        self._address = await self._primary.find()
        connection = await connect(self._address, timeout_s=self._timeout_s, on_lost=self._dropped)
        try:
            server = await check_server(connection, self._keys, self._library, self._identity)
            if self._accept is not None:
                self._accept(server)
            if self._channels is not None:
                connection.on_message = self._message
                await connection.ask("SUBSCRIBE", *self._channels)
        except BaseException as error:  # also when it is cancelled
            connection.abort(str(error))
            raise
        self._lost.clear()
        self.trouble = ""
        self.connects += 1
        self._connection, self._server = connection, server
        if self._channels is not None:
            self._ping_later(connection)
        log.info(
            "redis=up address=%s purpose=%s server=%s-%s", self._address, self.purpose, server.product, server.version
        )
        self._on_up(server)

    def _ping_later(self, connection: Connection) -> None:
        """A subscription only listens, and would never learn that the other end is gone or hangs."""

        def ping() -> None:
            if connection is self._connection:
                connection.send(("PING",), lambda reply: None)
                self._ping_later(connection)

        asyncio.get_running_loop().call_later(self._timeout_s / 2, ping)

    async def _keep_up(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if self._connection is not None:
                pause_s = FIRST_PAUSE_S
                await self._lost.wait()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self._connect()
            except (StoreError, ConfigurationError) as error:
                self._tell(error)

    def _tell(self, error: StoreError | ConfigurationError) -> None:
        """Once per kind of trouble, not once per attempt."""
        if str(error) == self.trouble:
            return
        self.trouble = str(error)
        kind = error.kind if isinstance(error, StoreError) else ""
        log.log(
            LEVELS.get(kind, logging.WARNING),
            "redis=unreachable address=%s purpose=%s error=%r retrying=yes",
            self._address,
            self.purpose,
            self.trouble,
        )

    def _dropped(self, connection: Connection, why: str) -> None:
        if connection is not self._connection:
            return
        self._connection = self._server = None
        self._lost.set()
        self.trouble = why
        log.warning("redis=lost address=%s purpose=%s error=%r", self._address, self.purpose, why)
        self._on_down()

    def _message(self, channel: bytes, message: bytes) -> None:
        if self._channels is not None and channel in self._channels:
            self._channels[channel](message)
