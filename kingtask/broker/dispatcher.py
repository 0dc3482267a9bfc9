"""Turns each message into one reply: checks rights and bounds, then makes the call of its op.

Nothing is queued here. A request over a bound gets `busy` at once; while Redis is unreachable it gets `unavailable`,
unless it is a `ping`. `ops.store_refusal` is the reply to a call that failed later.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from kingtask import __version__, protocol, wire
from kingtask.broker import ops
from kingtask.broker.auth import AuthenticatedPeer, Peer
from kingtask.broker.authorizer import Authorizer, ClientPolicy
from kingtask.broker.reads import Reads
from kingtask.broker.router import RouterSocket
from kingtask.broker.stats_gatherer import StatsGatherer
from kingtask.broker.submit import SubmitBatcher
from kingtask.broker.waiters import Waiters
from kingtask.clock import monotonic_s, monotonic_us, wall_s
from kingtask.config import BrokerConfig
from kingtask.config.permissions_file import PermissionsFile
from kingtask.curve import ANONYMOUS
from kingtask.errors import Busy, RequestRefused, StoreError, Unavailable, describe_error
from kingtask.event import Event
from kingtask.metrics.call_times import CALL_S, Histogram
from kingtask.store import functions
from kingtask.store.functions import StoredTask
from kingtask.store.store import BrokerStore

log = logging.getLogger("kingtask.broker")

REQUEST_S = (*CALL_S, 10.0, 30.0, 60.0)
"""Bounds of the histograms of requests; a `wait` takes as long as its client likes."""


class Dispatcher:
    """`pending` requests, of `pending_bytes`, are in progress. A `wait` does not count while it waits."""

    def __init__(
        self,
        name: str,
        config: BrokerConfig,
        store: BrokerStore,
        router: RouterSocket,
        batcher: SubmitBatcher,
        waiters: Waiters,
    ) -> None:
        """Raises ConfigurationError for the file of permissions."""
        self._name = name
        self._config, self._policy = config, config.policy
        self._authorizer = Authorizer(config.load_permissions())
        self._store = store
        self.router = router
        self._batcher = batcher
        self._waiters = waiters
        self._reads = Reads(store)
        self.idle = asyncio.Event()
        self.gatherer = StatsGatherer(store)
        self.pending = 0
        self.pending_bytes = 0
        self.draining = False
        measured = () if config.metrics_addr is None else protocol.OPS.keys() - {"ping"}
        self.times = {op: Histogram(REQUEST_S) for op in measured}
        """From a request to its reply, by op; empty without metrics."""

    @property
    def waiting(self) -> int:
        """The number of clients that wait for the end of a task."""
        return len(self._waiters)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and end all waits, then wait until every request in progress has its reply."""
        self.draining = True
        self._waiters.stop()
        if self.pending:
            self.idle.clear()
            try:
                await asyncio.wait_for(self.idle.wait(), timeout_s)
            except TimeoutError:
                log.warning(Event("broker=stopping", unanswered=self.pending))

    def reconfigure(self, config: BrokerConfig, permissions: PermissionsFile | None) -> None:
        """Use these for later requests."""
        self._config, self._policy = config, config.policy
        self._authorizer.reload(permissions)

    def dispatch(self, peer: Peer, message: bytes) -> None:
        """Handle one message, which gets its reply now or later. Raises nothing."""
        rid: protocol.Rid | None = None
        reply: _PendingReply | None = None
        try:
            request: protocol.Request | None = protocol.read_submit(message)
            if request is None:
                envelope = wire.decode(message)
                rid = protocol.rid_of(envelope)
                request = protocol.parse(envelope)
            rid = request.rid
            client = self._authorizer.policy_of(_client_name(peer))
            if isinstance(request, protocol.Ping):
                owner = {} if client is None or client.owner is None else {"owner": client.owner}
                self.router.reply(peer, protocol.ok(rid, {**self._pong(), **owner}))
                return
            if client is not None:
                client.check_request(request)
            self._check_redis_and_bounds()
            times = self.times[request.op.name] if self.times else None
            reply = _PendingReply(self, peer, rid, len(message), times)
            self._act(request, reply, client)
        except Exception as error:  # noqa: BLE001  (a fault of ours costs one reply, not the broker)
            refused = _refusal(error)
            if reply is None:
                self.router.refuse(peer, rid, refused)
            else:
                reply.send(refused)

    def _check_redis_and_bounds(self) -> None:
        if self.draining:
            raise Unavailable("this broker is stopping; ask another one", retry_after_s=ops.AWAY_AGAIN_S)
        if self.pending >= self._config.max_pending or self.pending_bytes >= self._config.max_pending_bytes:
            raise Busy("too many requests are waiting for Redis; come back later", retry_after_s=ops.BUSY_AGAIN_S)
        if not self._store.up:
            why = f"Redis is not reachable ({self._store.problem}); the broker keeps trying"
            raise Unavailable(why, retry_after_s=ops.AWAY_AGAIN_S)

    def _act(self, request: protocol.Request, reply: _PendingReply, client: ClientPolicy | None) -> None:
        if isinstance(request, protocol.Submit):
            self._batcher.submit(request, client, reply.send)
        elif not request.op.writes and self.router.overfull(reply.peer):
            raise ops.unread()
        elif isinstance(request, protocol.Stats):
            if 2 * self.gatherer.waiting >= self._config.max_pending:  # they take long, so others keep half of the room
                raise Busy("too many stats at once; come back later", retry_after_s=ops.BUSY_AGAIN_S)
            self.gatherer.ask(partial(self._called, request, reply, client))
        elif client is not None and isinstance(request, protocol.ById) and client.depends_on_task(request):
            call = functions.get(request.id).of(client.of)
            self._reads.send(reply.peer[0], call, partial(self._check_task, request, reply, client))
        else:
            self._call(request, reply, client)

    def _check_task(
        self, request: protocol.ById, reply: _PendingReply, client: ClientPolicy, found: StoredTask | StoreError
    ) -> None:
        if isinstance(found, StoreError):
            reply.send(ops.store_refusal(found, writes=False))
            return
        try:
            client.check_task(request.op.name, ops.task_of(request.id, found), found.spec, monotonic_s())
            if isinstance(request, protocol.Get):
                self._called(request, reply, client, found)
            else:
                self._call(request, reply, client)
        except Exception as error:  # noqa: BLE001  (as in `dispatch`)
            refused = _refusal(error)
            reply.send(refused)
            if isinstance(refused, ops.ForeignTask):  # after the reply, whose time must not tell of the task
                self._authorizer.trail_of(_client_name(reply.peer)).answered(request, refused)

    def _call(self, request: protocol.Request, reply: _PendingReply, client: ClientPolicy | None) -> None:
        quota, of = (None, None) if client is None else (client.quota, client.of)
        answer = partial(self._called, request, reply, client)
        if request.op.writes:
            self._store.send(ops.call_of(request, self._policy, quota).of(of), answer)
        elif not isinstance(request, protocol.Wait):
            self._reads.send(reply.peer[0], ops.call_of(request, self._policy, quota).of(of), answer)
        elif len(self._waiters) >= self._config.max_waits:
            raise Busy("too many waits at once; use get, or come back later", retry_after_s=ops.FULL_AGAIN_S)
        else:
            reply.release()  # a wait may be long; max_waits bounds it
            self._waiters.add(request.id, request.timeout_s, partial(self._waited, request, reply, client), of)

    def _waited(self, request: protocol.Wait, reply: _PendingReply, client: ClientPolicy | None, value: Any) -> None:
        reply.hold()
        answer = partial(self._called, request, reply, client)
        if value is None:  # by its owner again: the record may have gone, and another client may have used the id
            self._reads.send(reply.peer[0], functions.get(request.id).of(None if client is None else client.of), answer)
        else:
            answer(value)

    def _called(self, request: protocol.Request, reply: _PendingReply, client: ClientPolicy | None, value: Any) -> None:
        fields: dict[str, Any] | RequestRefused
        try:
            if not request.op.writes and self.router.overfull(reply.peer):
                fields = ops.unread()
            else:
                fields = ops.reply_to(request, value, dict if client is None else client.filtered)
        except Exception as error:  # noqa: BLE001  (as in `dispatch`)
            fields = _refusal(error)
        if request.op.audited:
            self._authorizer.trail_of(_client_name(reply.peer)).answered(request, fields)
        if request.op.acked and not isinstance(fields, RequestRefused):
            self._store.confirm(lambda reached: reply.send(fields if reached else ops.not_confirmed()))
        else:
            reply.send(fields)
        if isinstance(fields, ops.ForeignTask) and not request.op.audited:  # as in `_check_task`
            self._authorizer.trail_of(_client_name(reply.peer)).answered(request, fields)

    def _pong(self) -> dict[str, Any]:
        clock = self._store.clock
        return {
            "server": "kingtask",
            "version": __version__,
            "protocols": [protocol.VERSION],
            "broker": self._name,
            "ready": self._store.up and not self.draining,
            "ack": self._store.ack_level,
            "now": clock.now_us(monotonic_us()) / 1e6 if clock.known else wall_s(),
            "limits": protocol.LIMITS,
        }


class _PendingReply:
    """The reply to one request in progress."""

    __slots__ = ("_began_us", "_dispatcher", "_held", "_rid", "_size", "_times", "peer")

    def __init__(
        self, dispatcher: Dispatcher, peer: Peer, rid: protocol.Rid, size: int, times: Histogram | None
    ) -> None:
        self._dispatcher = dispatcher
        self.peer = peer
        self._rid = rid
        self._size = size
        self._times = times
        self._began_us = 0 if times is None else monotonic_us()
        self.hold()

    def hold(self) -> None:
        """Count the request as in progress."""
        self._held = True
        self._dispatcher.pending += 1
        self._dispatcher.pending_bytes += self._size

    def release(self) -> None:
        """No longer count the request as in progress."""
        dispatcher = self._dispatcher
        if self._held:
            self._held = False
            dispatcher.pending -= 1
            dispatcher.pending_bytes -= self._size
            if not dispatcher.pending:
                dispatcher.idle.set()

    def send(self, fields: dict[str, Any] | RequestRefused) -> None:
        """Send the reply; once."""
        self.release()
        if isinstance(fields, RequestRefused):
            self._dispatcher.router.refuse(self.peer, self._rid, fields)
        else:
            self._dispatcher.router.reply(self.peer, protocol.ok(self._rid, fields))
        if self._times is not None:
            self._times.observe((monotonic_us() - self._began_us) / 1e6)


def _client_name(peer: Peer) -> str:
    return (isinstance(peer, AuthenticatedPeer) and peer.client) or ANONYMOUS


def _refusal(error: Exception) -> RequestRefused:
    """Return the error of the reply; an unexpected one is logged."""
    if isinstance(error, RequestRefused):
        return error
    log.error(Event("request=failed", error=describe_error(error)), exc_info=error)
    return RequestRefused("the broker failed at this request; its log says why")
