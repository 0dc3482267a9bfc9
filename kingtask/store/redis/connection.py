"""One pipelined connection to Redis on the asyncio loop: commands out, replies to callbacks in order.

No task or future per command. The driver never sends a command twice: when an answer is overdue or the connection is
lost, every command without an answer gets a StoreError that says `stored: unknown`, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis

from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError, StoreError
from kingtask.event import Event
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.redis_errors import store_error

log = logging.getLogger("kingtask.store")

Callback = Callable[[Any], None]


async def answer_of(send: Callable[[Callback], None]) -> Any:
    """Send, and wait for the argument of the callback; a StoreError is raised. Not for the hot path."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answered(answer: Any) -> None:
        if not future.done():
            future.set_result(answer)

    send(answered)
    answer = await future
    if isinstance(answer, StoreError):
        raise answer
    return answer


class Connection(asyncio.Protocol):
    """Made by `connect`; belongs to the loop's thread."""

    def __init__(self, timeout_s: float, on_lost: Callable[[Connection, str], None]) -> None:
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._pending: deque[tuple[Callback, int]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._why = "the server closed the connection"
        self.on_message: Callable[[bytes, bytes], None] | None = None
        """Gets channel and message. Set before SUBSCRIBE; after that only PING may be sent."""
        self._received_us = 0
        """When the last bytes came: a large reply may take longer than the timeout."""
        self.sent_us = 0
        """While a callback runs: the time when its command was sent (monotonic µs)."""

    def send(self, command: tuple[Any, ...], callback: Callback) -> None:
        """Send one command; `callback` gets the reply, or a StoreError. Raises nothing."""
        if self._transport is None:
            callback(StoreError("away", f"not connected to Redis: {self._why}"))
            return
        self._pending.append((callback, monotonic_us()))
        self._transport.write(hiredis.pack_command(command))
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._timeout_s, self._check_overdue)

    async def ask(self, *command: Any) -> Any:
        """Send one command and wait for its reply; raises StoreError."""
        return await answer_of(partial(self.send, command))

    def abort(self, why: str) -> None:
        """Close at once; commands without an answer get a StoreError."""
        if self._transport is not None:
            self._why = why
            self._transport.abort()
            self._end()

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received_us = monotonic_us()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                if self.on_message is not None and isinstance(reply, list):
                    if reply[0] == b"message":
                        self.on_message(reply[1], reply[2])
                        continue
                    if reply[0] == b"subscribe" and not self._pending:
                        continue
                callback, self.sent_us = self._pending.popleft()
                try:
                    callback(store_error(reply) if isinstance(reply, hiredis.ReplyError) else reply)
                except Exception:  # a bug in the callback must not affect other replies
                    log.exception(Event("reply=failed"))
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(f"the answer is not in Redis's protocol ({error}); is a Redis server at this address?")

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._why = str(error)
        self._end()

    def _end(self) -> None:
        if self._transport is None:
            return
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
        pending, self._pending = self._pending, deque()
        self._on_lost(self, self._why)
        for callback, _ in pending:
            try:
                callback(StoreError("lost", f"no answer from Redis: {self._why}", stored="unknown"))
            except Exception:
                log.exception(Event("reply=failed"))

    def _check_overdue(self) -> None:
        self._watch = None
        if not self._pending or self._transport is None:
            return
        left_s = self._timeout_s - (monotonic_us() - max(self._pending[0][1], self._received_us)) / 1e6
        if left_s <= 0:
            self.abort(f"no answer within {self._timeout_s:g} s")
        else:
            self._watch = asyncio.get_running_loop().call_later(left_s, self._check_overdue)


async def connect(address: RedisAddress, *, timeout_s: float, on_lost: Callable[[Connection, str], None]) -> Connection:
    """Open a connection, TLS and authentication included. Raises StoreError (`away`, or the error of AUTH),
    ConfigurationError if the database number does not exist.
    """
    loop, make = asyncio.get_running_loop(), partial(Connection, timeout_s, on_lost)
    try:
        async with asyncio.timeout(timeout_s):
            if address.path is not None:
                _, connection = await loop.create_unix_connection(make, address.path)
            else:
                _, connection = await loop.create_connection(make, address.host, address.port, ssl=_tls(address))
    except ssl.SSLError as error:
        hint = "does it speak TLS there, with a certificate for this name, and is its issuer in `redis_tls`?"
        raise StoreError("away", f"cannot connect to {address} ({error}); {hint}") from None
    except (OSError, TimeoutError) as error:
        why = str(error) or "no answer"
        raise StoreError("away", f"cannot connect to {address} ({why}); is Redis running there? see `redis:`") from None
    try:
        if address.password is not None:
            user = () if address.user is None else (address.user,)
            await connection.ask("AUTH", *user, address.password)
        if address.db:
            await _select(connection, address.db)
    except (StoreError, ConfigurationError):
        connection.abort("refused")
        raise
    return connection


async def _select(connection: Connection, db: int) -> None:
    try:
        await connection.ask("SELECT", db)
    except StoreError as error:
        if error.kind != "error":
            raise
        raise ConfigurationError(
            f"redis: the server has no database {db} ({error}); name another, or see `databases` in redis.conf"
        ) from None


def _tls(address: RedisAddress) -> ssl.SSLContext | None:
    if address.tls is None:
        return None
    context = ssl.create_default_context(cafile=address.tls.ca)
    if address.tls.cert:
        context.load_cert_chain(address.tls.cert, address.tls.key)
    return context
