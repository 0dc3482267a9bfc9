"""The store as broker and worker use it: calls out, decoded values to callbacks, and Redis's clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kingtask import failpoint
from kingtask.clock import ServerClock, monotonic_us
from kingtask.errors import ConfigurationError, StoreError
from kingtask.store.address import RedisAddress
from kingtask.store.calls import Call, Submitted
from kingtask.store.connection import Callback
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from kingtask.store.link import Link
from kingtask.store.server import Server

log = logging.getLogger("kingtask.store")

AckLevel = Literal["stored", "fsync", "replicas"]


class Store:
    """One process's access to one namespace; all methods belong to the loop's thread."""

    def __init__(self, address: RedisAddress, namespace: str, role: str, *, timeout_s: float = 5.0) -> None:
        self._address = address
        self._keys = Keys(namespace, address.db)
        self._library = shipped()
        self._timeout_s = timeout_s
        self.clock = ServerClock()
        self.on_up: list[Callable[[], None]] = []
        self.on_down: list[Callable[[], None]] = []
        self._link = self._new_link(role, self._went_up, self._went_down)

    @property
    def up(self) -> bool:
        return self._link.up

    async def open(self) -> None:
        """Try to connect once, then keep trying in the background.

        Raises ConfigurationError if the server is refused for good: too old, wrong password, newer schema.
        """
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()

    def send(self, call: Call, callback: Callback) -> None:
        """Send a call; `callback` gets what the call decodes to, or a StoreError. Raises nothing."""
        self._send(self._link, call, callback)

    async def ask(self, call: Call) -> Any:
        """Send a call and wait for its answer; raises StoreError. For what is not hot."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(value: Any) -> None:
            if not future.done():
                future.set_result(value)

        self.send(call, answered)
        value = await future
        if isinstance(value, StoreError):
            raise value
        return value

    def _send(self, link: Link, call: Call, callback: Callback) -> None:
        def answered(reply: Any) -> None:
            if isinstance(reply, StoreError):
                link.reject(reply)
                callback(reply)
                return
            try:
                value = call.decode(reply)
            except Exception as error:  # noqa: BLE001  (whatever a damaged record makes of it)
                log.warning("record=damaged call=%s error=%r", call.function, error)
                callback(StoreError("damaged", f"a record in Redis cannot be read ({error!r})", stored="unknown"))
                return
            now_us = getattr(value, "now_us", None)
            if now_us is not None:
                self.clock.observe(now_us, link.sent_us, monotonic_us())
            callback(value)

        keys = self._keys
        link.send(("FCALL", self._library.function(call.function), 1, keys.meta, call.payload(keys.db)), answered)

    def _new_link(
        self, purpose: str, on_up: Callable[[Server], None], on_down: Callable[[], None], **more: Any
    ) -> Link:
        return Link(
            self._address,
            self._keys,
            self._library,
            purpose=purpose,
            on_up=on_up,
            on_down=on_down,
            **{"timeout_s": self._timeout_s, **more},
        )

    def _went_up(self, server: Server) -> None:
        for listener in self.on_up:
            listener()

    def _went_down(self) -> None:
        for listener in self.on_down:
            listener()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What an OK must mean. `level` None: `fsync` where the server gives it, else `stored`."""

    level: AckLevel | None = None
    replicas: int = 1
    timeout_s: float = 5.0


class BrokerStore(Store):
    """The broker's three connections: submits with their barrier, the subscription, and everything else."""

    def __init__(
        self,
        address: RedisAddress,
        namespace: str,
        *,
        ack: Ack,
        timeout_s: float = 5.0,
    ) -> None:
        super().__init__(address, namespace, "broker", timeout_s=timeout_s)
        self._ack = ack
        self.ack_level: AckLevel | None = None
        """The level an OK has now; None until a server was seen."""
        self._submits = self._new_link(
            "submit", lambda server: None, lambda: None, accept=self._accept, timeout_s=timeout_s + ack.timeout_s
        )
        self._events: Link | None = None

    def listen(self, events: dict[str, Callable[[str], None]], on_resubscribed: Callable[[], None]) -> None:
        """Before `open`: whom to tell of the functions' publications (`due`, `ready`, `cancel`, `ended`).

        `on_resubscribed` is called whenever the subscription stands anew: what was published before is lost.
        """
        channels = {
            self._keys.channel(what).encode(): lambda message, act=act: act(message.decode())
            for what, act in events.items()
        }
        self._events = self._new_link("events", lambda server: on_resubscribed(), lambda: None, channels=channels)

    async def open(self) -> None:
        """As Store.open; also raises ConfigurationError if the server cannot give the level that was asked for."""
        await self._submits.open()
        if self._events is not None:
            await self._events.open()
        await super().open()

    async def close(self) -> None:
        await self._submits.close()
        if self._events is not None:
            await self._events.close()
        await super().close()

    def submit(self, call: Call, callback: Callback) -> None:
        """Send a submit and its barrier; `callback` gets (Submitted, whether the level was reached) or a StoreError."""
        if self.ack_level != "replicas" or (failpoint.ACTIVE and failpoint.variant("no_barrier") is not None):
            self._send(self._submits, call, lambda value: callback(_confirmed(value)))
            return
        stored: Any = None

        def submitted(value: Submitted | StoreError) -> None:
            nonlocal stored
            if failpoint.ACTIVE and not isinstance(value, StoreError):
                failpoint.reach("after_submit_script")
            stored = value

        def waited(reply: int | StoreError) -> None:
            if isinstance(stored, StoreError):
                callback(stored)
            else:
                callback((stored, not isinstance(reply, StoreError) and reply >= self._ack.replicas))

        # WAIT covers the writes of its own connection, and a submit always writes (invariant of kingtask.lua).
        self._send(self._submits, call, submitted)
        self._submits.send(("WAIT", self._ack.replicas, int(self._ack.timeout_s * 1000)), waited)

    def _accept(self, server: Server) -> None:
        wanted = self._ack.level
        if wanted == "fsync" and not server.fsync_always:
            raise ConfigurationError(
                "ack: fsync needs a server with appendonly yes, appendfsync always and no-appendfsync-on-rewrite no"
                f" (this one says: {_persistence(server)}); change redis.conf, or set ack: stored"
            )
        level: AckLevel = wanted or ("fsync" if server.fsync_always else "stored")
        if wanted is None and level == "stored" and self.ack_level != level:
            log.warning(
                "ack=stored persistence=%r: an OK means that Redis has the task in memory; what it has not written to"
                " disk is lost if it dies. Set appendonly yes and appendfsync always, or ack: stored to silence this.",
                _persistence(server),
            )
        if server.settings.get("maxmemory", "0") != "0" and server.settings.get("maxmemory-policy") != "noeviction":
            raise ConfigurationError(
                f"redis: maxmemory-policy is {server.settings['maxmemory-policy']}, which throws away accepted tasks"
                " when memory is short; set it to noeviction"
            )
        self.ack_level = level


def _confirmed(value: Submitted | StoreError) -> Any:
    if isinstance(value, StoreError):
        return value
    if failpoint.ACTIVE:
        failpoint.reach("after_submit_script")
    return value, True


def _persistence(server: Server) -> str:
    names = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
    return ", ".join(f"{name} {server.settings.get(name, 'unknown')}" for name in names)
