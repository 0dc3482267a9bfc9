"""The store as broker and worker use it: calls out, decoded values to callbacks, and Redis's clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from kingtask import failpoint
from kingtask.clock import ServerClock, monotonic_us
from kingtask.errors import ConfigurationError, StoreError, describe_error
from kingtask.policy import Ack, AckLevel
from kingtask.store import functions
from kingtask.store.durability import ReplicaBarrier, level_on
from kingtask.store.functions import FunctionCall, Submitted
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.connection import Callback
from kingtask.store.redis.handshake import DatabaseIdentity, ServerFacts, replicas_of
from kingtask.store.redis.primary import Primary
from kingtask.store.redis.supervisor import SupervisedConnection

log = logging.getLogger("kingtask.store")

DEFAULT = Ack()

REPLICAS_AGAIN_S = 0.1
"""Between looks, at the start, whether enough replicas are attached."""


class Observer(Protocol):
    """Whoever measures calls. `us`: from sending one to its answer."""

    def answered(self, function: str, us: int) -> None: ...

    def failed(self, kind: str) -> None: ...


class Store:
    """One process's access to one namespace; all methods belong to the loop's thread."""

    def __init__(
        self,
        address: RedisAddress,
        namespace: str,
        role: str,
        *,
        ack: Ack = DEFAULT,
        cluster: str | None = None,
        login: Callable[[], RedisAddress] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """`cluster`: the only database to work on; None: whichever it finds first, and then no other.

        `login` reads the address anew, for its user and password.
        """
        self._ack = ack
        self._links: list[SupervisedConnection] = []
        self._primary = Primary(address, self._moved, login)
        self._keys = Keys(namespace, address.db)
        self._library = shipped()
        self._identity = DatabaseIdentity(cluster, creates=role == "broker")
        self._timeout_s = timeout_s
        self.clock = ServerClock()
        self.observer: Observer | None = None
        self.on_up: list[Callable[[], None]] = []
        self.on_down: list[Callable[[], None]] = []
        self._link = self._new_link(role, self._went_up, self._went_down, accept=partial(level_on, ack))
        self._confirming: SupervisedConnection | None = None
        self._barrier: ReplicaBarrier | None = None
        if ack.level == "replicas":
            self._confirming = self._new_link(
                "barrier", self._count_replicas, lambda: None, timeout_s=timeout_s + ack.timeout_s
            )
            self._barrier = ReplicaBarrier(self._confirming, lambda: self._command(functions.mark()), ack)

    @property
    def up(self) -> bool:
        return self._link.up

    @property
    def trouble(self) -> str:
        """Why it is not up."""
        return self._link.trouble

    @property
    def links(self) -> Sequence[SupervisedConnection]:
        """Its connections, one for each purpose."""
        return self._links

    async def open(self) -> None:
        """Try to connect once, then keep trying in the background.

        Raises ConfigurationError if the server is refused for good: too old, wrong password, newer schema, or the level
        of `ack` cannot be had on it.
        """
        for link in reversed(self._links):  # the main one last: what it sets off may need the others
            await link.open()
        if self._confirming is not None:
            await self._await_replicas(self._confirming)
        self._primary.follow()

    async def close(self) -> None:
        await self._primary.close()
        for link in self._links:
            await link.close()

    def send(self, call: FunctionCall, callback: Callback) -> None:
        """Send a call; `callback` gets what the call decodes to, or a StoreError. Raises nothing."""
        self._send(self._link, call, callback)

    def confirm(self, callback: Callable[[bool], None]) -> None:
        """Tell whether what `send` was answered so far is stored at the level of `ack`; may call back at once.

        To be called by the callback of the answer that matters: later, its connection may have been made anew to a
        server that never saw the write. After False only an answer that shows the write to be there still (a repeated
        submit, an extend) makes it worth asking again. Raises nothing.
        """
        self._confirm(self._link, callback)

    def _confirm(self, link: SupervisedConnection, callback: Callable[[bool], None]) -> None:
        if self._barrier is None or (failpoint.ACTIVE and failpoint.variant("no_barrier") is not None):
            callback(True)  # the answer was the proof
        else:
            self._barrier.confirm(link, callback)

    async def ask(self, call: FunctionCall) -> Any:
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
            except Exception as error:  # noqa: BLE001  (whatever a damaged record makes of it)
                log.warning("record=damaged call=%s error=%r", call.function, describe_error(error))
                callback(
                    StoreError(
                        "damaged", f"a record in Redis cannot be read ({describe_error(error)})", stored="unknown"
                    )
                )
                return
            now_us = getattr(value, "now_us", None)
            if now_us is not None:
                self.clock.observe(now_us, link.sent_us, monotonic_us())
            callback(value)

        link.send(self._command(call), answered)

    def _command(self, call: FunctionCall) -> tuple[Any, ...]:
        keys = self._keys
        return (
            "FCALL",
            self._library.function(call.function),
            1,
            keys.meta,
            call.payload(keys.db, self._identity.cluster),
        )

    async def _await_replicas(self, link: SupervisedConnection) -> None:
        """Raises ConfigurationError if the primary is there and too few replicas come to it within `ack_timeout`."""
        wanted = self._ack.replicas
        deadline_us = monotonic_us() + round(self._ack.timeout_s * 1e6)
        attached = wanted
        with contextlib.suppress(StoreError):
            while link.up and (attached := replicas_of(await link.ask("INFO", "replication"))) < wanted:
                if self._primary.replicas >= wanted:  # Sentinel knows them: some are away just now
                    return
                if monotonic_us() > deadline_us:
                    break
                await asyncio.sleep(REPLICAS_AGAIN_S)
        if attached < wanted:
            raise ConfigurationError(
                f"ack: replicas needs {wanted} of them (ack_replicas), and {attached} are attached to"
                f" {self._primary.address};"
                " start them, or lower ack_replicas, or set another ack"
            )

    def _count_replicas(self, server: ServerFacts) -> None:
        if server.replicas < self._ack.replicas:
            log.warning(
                "ack=replicas wanted=%d attached=%d: until more are, nothing can be confirmed",
                self._ack.replicas,
                server.replicas,
            )

    def _new_link(
        self, purpose: str, on_up: Callable[[ServerFacts], None], on_down: Callable[[], None], **more: Any
    ) -> SupervisedConnection:
        link = SupervisedConnection(
            self._primary,
            self._keys,
            self._library,
            self._identity,
            purpose=purpose,
            on_up=on_up,
            on_down=on_down,
            **{"timeout_s": self._timeout_s, **more},
        )
        self._links.append(link)
        return link

    def _moved(self, address: RedisAddress) -> None:
        for link in self._links:
            link.moved(address)

    def _went_up(self, server: ServerFacts) -> None:
        for listener in self.on_up:
            listener()

    def _went_down(self) -> None:
        for listener in self.on_down:
            listener()


class BrokerStore(Store):
    """The broker's connections beside the barrier's: submits, the subscription, and everything else."""

    def __init__(
        self,
        address: RedisAddress,
        namespace: str,
        *,
        ack: Ack,
        cluster: str | None = None,
        login: Callable[[], RedisAddress] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        super().__init__(address, namespace, "broker", ack=ack, cluster=cluster, login=login, timeout_s=timeout_s)
        self.ack_level: AckLevel | None = None
        """The level an OK has now; None until a server was seen."""
        self._submits = self._new_link("submit", lambda server: None, lambda: None, accept=self._accept)

    def listen(self, events: dict[str, Callable[[str], None]], on_resubscribed: Callable[[], None]) -> None:
        """Before `open`: whom to tell of the functions' publications (`due`, `ready`, `cancel`, `ended`).

        `on_resubscribed` is called whenever the subscription stands anew: what was published before is lost.
        """
        channels = {
            self._keys.channel(what).encode(): lambda message, act=act: act(message.decode())
            for what, act in events.items()
        }
        self._new_link("events", lambda server: on_resubscribed(), lambda: None, channels=channels)

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

    def _accept(self, server: ServerFacts) -> None:
        level = level_on(self._ack, server)
        if self._ack.level is None and level == "stored" and self.ack_level != level:
            log.warning(
                "ack=stored persistence=%r: an OK means that Redis has the task in memory; what it has not written to"
                " disk is lost if it dies. Set appendonly yes and appendfsync always, or ack: stored to silence this.",
                server.persistence,
            )
        if server.settings.get("maxmemory", "0") != "0" and server.settings.get("maxmemory-policy") != "noeviction":
            raise ConfigurationError(
                f"redis: maxmemory-policy is {server.settings['maxmemory-policy']}, which throws away accepted tasks"
                " when memory is short; set it to noeviction"
            )
        self.ack_level = level
