"""The store as broker and worker use it: it sends calls, decodes replies for callbacks, and knows Redis's clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

from kingtask import failpoint
from kingtask.clock import ServerClock, monotonic_us
from kingtask.errors import ConfigurationError, StoreError, describe_error
from kingtask.event import Event
from kingtask.policy import Ack, AckLevel
from kingtask.store import functions
from kingtask.store.durability import ReplicaBarrier, level_on
from kingtask.store.functions import FunctionCall, Submitted
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.connection import Callback, Connection, answer_of
from kingtask.store.redis.handshake import DatabaseIdentity, Handshake, ServerFacts, replicas_of
from kingtask.store.redis.primary import Primary
from kingtask.store.redis.supervisor import Purpose, SupervisedConnection

log = logging.getLogger("kingtask.store")

DEFAULT = Ack()

TIMEOUT_S = 5.0
"""The longest wait for the reply to a call."""

REPLICAS_POLL_S = 0.1
"""Pause between two counts of the attached replicas at the start."""

PEERS_CAP = 2000
"""The same number as in the library: workers listed."""


class Observer(Protocol):
    """Measures calls. `us`: from sending a call to its answer."""

    def answered(self, function: str, us: int) -> None: ...

    def failed(self, kind: str) -> None: ...


class Store:
    """A worker's access to one namespace; all methods belong to the loop's thread."""

    role: ClassVar[Literal["broker", "worker"]] = "worker"

    def __init__(
        self,
        address: RedisAddress,
        namespace: str,
        *,
        ack: Ack = DEFAULT,
        cluster: str | None = None,
        login: Callable[[], RedisAddress] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`cluster` is the only database to work on; None: the first one that is found, and then no other.

        `login` reads user and password again for each connect.
        """
        self._ack = ack
        self.links: list[SupervisedConnection] = []
        """The connections, one for each purpose."""
        self._primary = Primary(address, self._repoint, login)
        self._keys = Keys(namespace, address.db)
        self._library = shipped()
        self._identity = DatabaseIdentity(cluster, creates=self.role == "broker")
        self.clock = ServerClock()
        self.observer = observer
        self.heartbeat: Callable[[str], tuple[str, bytes]] | None = None
        """Returns the name and the heartbeat of a worker whose library is missing; the argument says why it waits."""
        self.on_up: list[Callable[[], None]] = []
        self.on_down: list[Callable[[], None]] = []
        self._link = self._connect_for(
            self.role,
            on_up=self._came_up,
            on_down=lambda: self._notify(self.on_down),
            accept=partial(level_on, ack),
        )
        self._confirming: SupervisedConnection | None = None
        self._barrier: ReplicaBarrier | None = None
        if ack.level == "replicas":
            self._confirming = self._connect_for(
                "barrier", timeout_s=TIMEOUT_S + ack.timeout_s, on_up=self._count_replicas
            )
            self._barrier = ReplicaBarrier(self._confirming, lambda: self._command(functions.mark()), ack)
        self.ack_level: AckLevel | None = None
        """The current level of a broker's OK; None before the first connect."""
        self._submits = self._connect_for("submit", accept=self._accept) if self.role == "broker" else self._link
        self._reads = self._connect_for("read") if self.role == "broker" else self._link

    @property
    def up(self) -> bool:
        return self._link.up

    @property
    def problem(self) -> str:
        """Why the main connection, which `up` means, is not up."""
        return self._link.problem

    async def open(self) -> None:
        """Connect once, then retry in the background.

        Raises ConfigurationError for a permanent refusal: too old, wrong password, newer schema, or no such level of
        `ack`.
        """
        for link in reversed(self.links):  # the main one last: its callbacks may need the others
            await link.open()
        if self._confirming is not None:
            await self._await_replicas(self._confirming)
        self._primary.follow()

    async def close(self) -> None:
        await self._primary.close()
        for link in self.links:
            await link.close()

    def send(self, call: FunctionCall, callback: Callback) -> None:
        """Send a call; `callback` gets what the call decodes to, or a StoreError. Raises nothing."""
        self._send(self._reads if call.function in functions.BULK else self._link, call, callback)

    def confirm(self, callback: Callable[[bool], None]) -> None:
        """Report whether the writes that were answered so far are stored at the level of `ack`; may call back at once.

        Call it from the callback of the answer in question: later, the connection may lead to a server that never saw
        the write. After False, ask again only after an answer that shows the write to exist (a repeated submit, an
        extend). Raises nothing.
        """
        self._confirm(self._link, callback)

    def _confirm(self, link: SupervisedConnection, callback: Callable[[bool], None]) -> None:
        if self._barrier is None or (failpoint.ACTIVE and failpoint.variant("no_barrier") is not None):
            callback(True)  # the answer was the proof
        else:
            self._barrier.confirm(link, callback)

    async def ask(self, call: FunctionCall) -> Any:
        """Send a call and wait for its answer; raises StoreError. Not for the hot path."""
        return await answer_of(partial(self.send, call))

    def _send(self, link: SupervisedConnection, call: FunctionCall, callback: Callback) -> None:
        def answered(reply: Any) -> None:
            if isinstance(reply, StoreError):
                link.reject(reply)
                if self.observer is not None:
                    self.observer.failed(reply.kind)
                callback(reply)
                return
            if self.observer is not None:
                self.observer.answered(call.function, monotonic_us() - link.sent_us)
            try:
                value = call.decode(reply)
            except Exception as error:  # noqa: BLE001  (a damaged record may raise anything)
                problem = describe_error(error)
                log.warning(Event("record=damaged", call=call.function, error=problem))
                callback(StoreError("damaged", f"a record in Redis cannot be read ({problem})", stored="unknown"))
                return
            now_us = getattr(value, "now_us", None)
            if now_us is not None:
                self.clock.observe(now_us, link.sent_us, monotonic_us())
            callback(value)

        link.send(self._command(call), answered)

    def _command(self, call: FunctionCall) -> tuple[Any, ...]:
        payload = call.payload(self._keys.db, self._identity.cluster)
        return "FCALL", self._library.function(call.function), 1, self._keys.meta, payload

    async def _await_replicas(self, link: SupervisedConnection) -> None:
        """Raises ConfigurationError if the primary is there and too few replicas come to it within `ack_timeout`."""
        wanted = self._ack.replicas
        deadline_us = monotonic_us() + round(self._ack.timeout_s * 1e6)
        attached = wanted
        with contextlib.suppress(StoreError):
            while link.up and (attached := replicas_of(await link.ask("INFO", "replication"))) < wanted:
                if self._primary.replicas >= wanted:  # Sentinel knows them: some are unreachable now
                    return
                if monotonic_us() > deadline_us:
                    break
                await asyncio.sleep(REPLICAS_POLL_S)
        if attached < wanted:
            raise ConfigurationError(
                f"ack: replicas needs {wanted} of them (ack_replicas), and {attached} are attached to"
                f" {self._primary.address}; start them, or lower ack_replicas, or set another ack"
            )

    def _count_replicas(self, server: ServerFacts) -> None:
        if server.replicas < self._ack.replicas:
            text = "nothing can be confirmed until more replicas are attached"
            log.warning(Event("ack=replicas", text, wanted=self._ack.replicas, attached=server.replicas))

    def _accept(self, server: ServerFacts) -> None:
        level = level_on(self._ack, server)
        if self._ack.level is None and level == "stored" and self.ack_level != level:
            text = (
                "an OK means that Redis has the task in memory; a task not yet on disk is lost if Redis dies."
                " Set appendonly yes and appendfsync always, or ack: stored to silence this."
            )
            log.warning(Event("ack=stored", text, persistence=server.persistence))
        if server.settings.get("maxmemory", "0") != "0" and server.settings.get("maxmemory-policy") != "noeviction":
            raise ConfigurationError(
                f"redis: maxmemory-policy is {server.settings['maxmemory-policy']}, which evicts accepted tasks"
                " when memory is short; set it to noeviction"
            )
        self.ack_level = level

    def _connect_for(self, purpose: str, **more: Any) -> SupervisedConnection:
        """Add a connection; `more` are fields of its Purpose."""
        settings = self.role == "broker" or self._ack.level == "fsync"
        handshake = Handshake(self._keys, self._library, self._identity, self._show_waiting, settings)
        link = SupervisedConnection(self._primary, handshake, Purpose(name=purpose, **{"timeout_s": TIMEOUT_S, **more}))
        self.links.append(link)
        return link

    async def _show_waiting(self, connection: Connection, why: str) -> None:
        """Store the heartbeat by plain commands, since the function for it is missing: `stats` says why it waits."""
        if self.heartbeat is None:
            return
        name, heartbeat = self.heartbeat(why)
        workers, ask = f"{self._keys.prefix}workers", connection.ask
        with contextlib.suppress(StoreError):
            now_ms = (await ask("TIME"))[0] + b"000"
            if await ask("ZCARD", f"{workers}:seen") < PEERS_CAP:
                await asyncio.gather(
                    ask("ZADD", f"{workers}:seen", now_ms, name), ask("HSET", workers, name, now_ms + heartbeat)
                )

    def _repoint(self, address: RedisAddress) -> None:
        for link in self.links:
            link.repoint(address)

    def _came_up(self, server: ServerFacts) -> None:
        if self._reads.history not in ("", server.history):  # a demoted server refuses writes and still answers reads
            self._reads.reconnect(f"{self._primary.address} has another history")
        self._notify(self.on_up)

    def _notify(self, listeners: list[Callable[[], None]]) -> None:
        for listener in listeners:
            listener()


class BrokerStore(Store):
    """A broker's access: it has further connections for submits, for reads in bulk and for the subscription."""

    role = "broker"

    def listen(self, events: dict[str, Callable[[str], None]], on_resubscribed: Callable[[], None]) -> None:
        """Subscribe to the publications of the functions: `due`, `ready`, `cancel`, `claimed`, `ended`.

        Call it before `open`.
        `on_resubscribed` is called after each subscription: earlier publications are lost.
        """
        channels = {
            self._keys.channel(what).encode(): lambda message, act=act: act(message.decode())
            for what, act in events.items()
        }
        self._connect_for("events", on_up=lambda server: on_resubscribed(), channels=channels)

    def submit(self, call: FunctionCall, stored: Callback, confirmed: Callable[[bool], None]) -> None:
        """Send a submit; `stored` gets Submitted or a StoreError, and after Submitted `confirmed` as in `confirm`.

        The next submit need not wait for `confirmed`.
        """
        if self._barrier is not None and not self._barrier.up:
            stored(StoreError("away", "the connection that confirms with the replicas is not up"))
            return

        def answered(value: Submitted | StoreError) -> None:
            if failpoint.ACTIVE and not isinstance(value, StoreError):
                failpoint.reach("after_submit_script")
            stored(value)
            if not isinstance(value, StoreError):
                self._confirm(self._submits, confirmed)

        self._send(self._submits, call, answered)
