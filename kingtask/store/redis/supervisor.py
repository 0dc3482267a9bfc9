"""A supervised connection to Redis: connect, check, use; after a loss pause and reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kingtask.clock import Backoff
from kingtask.errors import ConfigurationError, StoreError
from kingtask.event import Event
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.connection import Callback, Connection, answer_of, connect
from kingtask.store.redis.handshake import Handshake, ServerFacts
from kingtask.store.redis.primary import Primary
from kingtask.store.redis.redis_errors import RECONNECT_ON

log = logging.getLogger("kingtask.store")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
"""Bounds the time until a restarted Redis is in use again."""
LEVELS = {"foreign": logging.ERROR, "new": logging.INFO}
"""Log levels without a connection. `new` is INFO: a worker may start before the first broker."""

ADVICE = {
    "auth": "check user and password",
    "permission": "give the user the rights in deploy/redis/kingtask.acl; `kingtask doctor` lists the missing ones",
}
"""The remedy for each kind of StoreError that does not pass by waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """The use of a connection. `accept` may refuse a server (ConfigurationError); `on_up` may send at once."""

    name: str
    timeout_s: float
    on_up: Callable[[ServerFacts], None] = lambda server: None
    on_down: Callable[[], None] = lambda: None
    accept: Callable[[ServerFacts], object] = lambda server: None
    channels: dict[bytes, Callable[[bytes], None]] | None = None
    """With channels the connection only subscribes."""


class SupervisedConnection:
    """One connection for one purpose, to whatever server is the primary."""

    def __init__(self, primary: Primary, handshake: Handshake, purpose: Purpose) -> None:
        self._primary = primary
        self._address = primary.address
        self._handshake = handshake
        self._purpose = purpose
        self._connection: Connection | None = None
        self._server: ServerFacts | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self.problem = ""
        """Why there is no connection."""
        self.connects = 0
        """Number of successful connects."""

    @property
    def purpose(self) -> str:
        return self._purpose.name

    @property
    def up(self) -> bool:
        return self._connection is not None

    @property
    def history(self) -> str:
        """The replication history of the connected server; see `durability`."""
        return self._server.history if self._server is not None else ""

    @property
    def sent_us(self) -> int:
        """While a callback runs: the time when its command was sent (monotonic µs)."""
        return self._connection.sent_us if self._connection is not None else 0

    async def open(self) -> None:
        """Connect once, then retry in the background. Raises ConfigurationError for a permanent refusal."""
        try:
            await self._connect()
        except StoreError as error:
            if error.kind in ADVICE:
                raise ConfigurationError(f"redis: {self._address} refuses: {error}; {ADVICE[error.kind]}") from None
            self._report(error)
        self._supervisor = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("closed")

    def send(self, command: tuple[Any, ...], callback: Callback) -> None:
        """Send one command; the callback gets the reply or a StoreError."""
        if self._connection is None:
            callback(StoreError("away", f"Redis at {self._address} is not reachable ({self.problem})"))
        else:
            self._connection.send(command, callback)

    async def ask(self, *command: Any) -> Any:
        """Send one command and wait for its reply; raises StoreError."""
        return await answer_of(partial(self.send, command))

    def reject(self, error: StoreError) -> None:
        """Handle an error reply: some kinds need a new connection."""
        if error.kind in RECONNECT_ON:
            self.reconnect(str(error))

    def reconnect(self, why: str) -> None:
        """Drop the connection and open a new one, with all checks."""
        if self._connection is not None:
            self._connection.abort(why)

    def repoint(self, address: RedisAddress) -> None:
        """Leave the former primary for this one, also during a connect."""
        if (address.host, address.port) == (self._address.host, self._address.port):
            return
        if self._connection is not None:
            self.reconnect(f"{address} is the primary now")
        elif self._supervisor is not None:
            self._supervisor.cancel()
            self._supervisor = asyncio.create_task(self._keep_up())

    async def _connect(self) -> None:
        self._address = await self._primary.find()
        connection = await connect(self._address, timeout_s=self._purpose.timeout_s, on_lost=self._dropped)
        try:
            server = await self._handshake.check(connection)
            self._purpose.accept(server)
            if self._purpose.channels is not None:
                connection.on_message = self._message
                await connection.ask("SUBSCRIBE", *self._purpose.channels)
        except BaseException as error:  # cancellation included
            connection.abort(str(error))
            raise
        self._lost.clear()
        self.problem = ""
        self.connects += 1
        self._connection, self._server = connection, server
        if self._purpose.channels is not None:
            self._ping_later(connection)
        log.info(
            Event("redis=up", address=self._address, purpose=self.purpose, server=f"{server.product}-{server.version}")
        )
        self._purpose.on_up(server)

    def _ping_later(self, connection: Connection) -> None:
        """Ping a subscription, which only listens and would not notice a lost or hanging server."""

        def ping() -> None:
            if connection is self._connection:
                connection.send(("PING",), lambda reply: None)
                self._ping_later(connection)

        asyncio.get_running_loop().call_later(self._purpose.timeout_s / 2, ping)

    async def _keep_up(self) -> None:
        pause = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            if self._connection is not None:
                pause.reset()
                await self._lost.wait()
            await asyncio.sleep(pause.next() * random.uniform(0.5, 1.0))
            try:
                await self._connect()
            except (StoreError, ConfigurationError) as error:
                self._report(error)

    def _report(self, error: StoreError | ConfigurationError) -> None:
        """Log a problem once, not once per attempt."""
        if str(error) == self.problem:
            return
        self.problem = str(error)
        kind = error.kind if isinstance(error, StoreError) else ""
        event = "library=missing" if kind == "library" else "redis=unreachable"
        log.log(
            LEVELS.get(kind, logging.WARNING),
            Event(event, address=self._address, purpose=self.purpose, error=self.problem, retrying="yes"),
        )

    def _dropped(self, connection: Connection, why: str) -> None:
        if connection is not self._connection:
            return
        self._connection = self._server = None
        self._lost.set()
        self.problem = why
        log.warning(Event("redis=lost", address=self._address, purpose=self.purpose, error=why))
        self._purpose.on_down()

    def _message(self, channel: bytes, message: bytes) -> None:
        channels = self._purpose.channels
        if channels is not None and channel in channels:
            channels[channel](message)
