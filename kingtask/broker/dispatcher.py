"""Where each message becomes one reply: what the client may do, how much is under way, and which call it takes.

Nothing is queued here. What is too much is answered `busy` at once, and what Redis cannot take now `unavailable`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kingtask import protocol, wire
from kingtask.broker import authorizer as rules
from kingtask.broker import ops
from kingtask.broker.auth import CurveAuth, Known
from kingtask.broker.authorizer import Authorizer, ClientPolicy
from kingtask.broker.counters import Counters
from kingtask.broker.metrics import RequestTimes
from kingtask.broker.router import Peer
from kingtask.broker.submits import Submits
from kingtask.broker.waiters import Waiters
from kingtask.clock import monotonic_s, monotonic_us, wall_s
from kingtask.config import BrokerConfig
from kingtask.config.permissions_file import PermissionsFile
from kingtask.errors import Busy, PermissionDenied, RequestRefused, StoreError, Unavailable, describe_error
from kingtask.metrics.histogram import Histogram
from kingtask.result import Result
from kingtask.store import functions
from kingtask.store.store import BrokerStore

log = logging.getLogger("kingtask.broker")


class Dispatcher:
    """`pending` requests, of `pending_bytes`, are under way: `wait` is not among them once it has begun.

    `pong` makes the fields of the reply to `ping`; `times`, if there are any, are taken of each request.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: BrokerStore,
        submits: Submits,
        waits: Waiters,
        counters: Counters,
        gate: CurveAuth | None,
        *,
        reply: Callable[[Peer, bytes], None],
        pong: Callable[[], dict[str, Any]],
    ) -> None:
        self._permits = Authorizer()
        self.reconfigure(config, config.load_permissions())
        self.times: RequestTimes | None = None
        self.pending = 0
        self.pending_bytes = 0
        self.draining = False
        self._store = store
        self._submits = submits
        self._waits = waits
        self._counters = counters
        self._gate = gate
        self.reply = reply
        self._pong = pong
        self._idle = asyncio.Event()

    async def drain(self, timeout_s: float) -> None:
        """Refuse what comes from now on, and wait until what is under way is answered."""
        self.draining = True
        if self.pending:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                log.warning("broker=stopping unanswered=%d", self.pending)

    def reconfigure(self, config: BrokerConfig, permissions: PermissionsFile | None) -> None:
        """Go by these from now on."""
        self._config, self._policy = config, config.policy
        self._permits.reload(permissions)

    def take(self, peer: Peer, message: bytes) -> None:
        """Take one message, which gets its reply sooner or later. Raises nothing."""
        rid: protocol.Rid | None = None
        answer: _Answer | None = None
        try:
            if self._gate is not None and isinstance(peer, Known) and peer.client is None:
                self._turn_away(peer, message)
                return
            request: protocol.Request | None = protocol.read_submit(message)
            if request is None:
                envelope = wire.decode(message)
                rid = protocol.rid_of(envelope)
                request = protocol.parse(envelope)
            rid = request.rid
            if isinstance(request, protocol.Ping):
                self.reply(peer, protocol.ok(rid, self._pong()))
                return
            permit = None
            if self._permits.on:
                permit = self._permits.of(_client(peer), monotonic_s())
                permit.request(request)
            self._admit()
            if self.times is None:
                answer = _Answer(self, peer, rid, len(message))
            else:
                answer = _TimedAnswer(self, peer, rid, len(message), self.times.of(request))
            if permit is None:
                self._act(request, answer)
            else:
                self._act_permitted(request, answer, permit)
        except Exception as error:  # noqa: BLE001  (a fault of ours costs one reply, not the broker)
            refused = error if isinstance(error, RequestRefused) else _fault(error)
            if answer is not None:
                answer.give(refused)
            else:
                self.refuse(peer, rid, refused)

    def _turn_away(self, peer: Peer, message: bytes) -> None:
        """Its key was revoked: nothing of the message is looked at but which answer it waits for."""
        rid = protocol.rid_of(wire.decode(message))
        self.refuse(peer, rid, _revoked())

    def _act_permitted(self, request: protocol.Request, answer: _Answer, permit: ClientPolicy) -> None:
        """The same within what the client may do; for what is done by id the task is looked at first."""
        if isinstance(request, protocol.Submit):
            now_s = monotonic_s()
            self._submits.take(request, wall_s(), answer.give, lambda spec, place: permit.submit(spec, place, now_s))
        elif isinstance(request, rules.BY_ID) and permit.looks_at(request):

            def looked(found: functions.StoredTask | StoreError) -> None:
                if isinstance(found, StoreError):
                    answer.give(ops.store_refusal(found, writes=False))
                    return
                if found.result is None:
                    answer.give(ops.not_found(request.id))
                    return
                try:
                    permit.task(str(type(request).__struct_config__.tag), found.result, monotonic_s())
                    self._act(request, answer, permit)
                except Exception as error:  # noqa: BLE001  (as in `take`)
                    answer.give(error if isinstance(error, RequestRefused) else _fault(error))

            self._store.send(functions.get(request.id), looked)
        else:
            self._act(request, answer, permit)

    def _act(self, request: protocol.Request, answer: _Answer, permit: ClientPolicy | None = None) -> None:
        if isinstance(request, protocol.Submit):
            self._submits.take(request, wall_s(), answer.give)
        elif isinstance(request, protocol.Wait):
            self._wait(request, answer)
        else:
            op = ops.OPS[type(request)]

            def answered(value: Any) -> None:
                fields = _fields(op, request, value)
                if permit is not None and not isinstance(fields, RequestRefused):
                    fields = permit.filtered(fields)
                if isinstance(request, rules.AUDITED):
                    rules.audited(_client(answer.peer), request, fields)
                if op.confirmed and not isinstance(fields, RequestRefused):
                    self._store.confirm(lambda reached: answer.give(fields if reached else ops.not_confirmed()))
                else:
                    answer.give(fields)

            quota = None if permit is None else permit.quota
            self._store.send(op.call(request, self._policy, quota), answered)

    def _wait(self, request: protocol.Wait, answer: _Answer) -> None:
        if len(self._waits) >= self._config.max_waits:
            raise Busy("too many waits at once; use get, or come back later", retry_after_s=ops.FULL_AGAIN_S)
        answer.release()  # a wait may be long, it has a bound of its own

        def ended(found: Result | StoreError | None) -> None:
            if self._gate is not None and isinstance(answer.peer, Known) and not self._gate.knows(answer.peer.key):
                answer.give(_revoked())  # since it began to wait
            elif isinstance(found, StoreError):
                answer.give(ops.store_refusal(found, writes=False))
            elif found is None:
                answer.give(ops.not_found(request.id))
            else:
                answer.give({**ops.task_reply(request.id, found), "pending": not found.ended})

        self._waits.add(request.id, request.timeout_s, ended)

    def _admit(self) -> None:
        if self.draining:
            raise Unavailable("this broker is stopping; ask another one", retry_after_s=ops.AWAY_AGAIN_S)
        if self.pending >= self._config.max_pending or self.pending_bytes >= self._config.max_pending_bytes:
            raise Busy("too many requests are waiting for Redis; come back later", retry_after_s=ops.BUSY_AGAIN_S)
        if not self._store.up:
            raise Unavailable(
                f"Redis is not reachable ({self._store.problem}); the broker keeps trying",
                retry_after_s=ops.AWAY_AGAIN_S,
            )

    def taken(self, size: int) -> None:
        self.pending += 1
        self.pending_bytes += size

    def given(self, size: int) -> None:
        self.pending -= 1
        self.pending_bytes -= size
        if not self.pending:
            self._idle.set()

    def refuse(self, peer: Peer, rid: protocol.Rid | None, error: RequestRefused) -> None:
        self._counters.refused(error)
        self.reply(peer, protocol.refusal(rid, error))


class _Answer:
    """One request's reply: counted while it is under way, given once."""

    __slots__ = ("_desk", "_rid", "_size", "peer")

    def __init__(self, desk: Dispatcher, peer: Peer, rid: protocol.Rid, size: int) -> None:
        self._desk = desk
        self.peer = peer
        self._rid = rid
        self._size = size
        desk.taken(size)

    def release(self) -> None:
        """No longer count it as under way."""
        if self._size:
            self._desk.given(self._size)
            self._size = 0

    def give(self, fields: dict[str, Any] | RequestRefused) -> None:
        self.release()
        if isinstance(fields, RequestRefused):
            self._desk.refuse(self.peer, self._rid, fields)
        else:
            self._desk.reply(self.peer, protocol.ok(self._rid, fields))


class _TimedAnswer(_Answer):
    """One whose time is taken."""

    __slots__ = ("_began_us", "_times")

    def __init__(self, desk: Dispatcher, peer: Peer, rid: protocol.Rid, size: int, times: Histogram) -> None:
        super().__init__(desk, peer, rid, size)
        self._times = times
        self._began_us = monotonic_us()

    def give(self, fields: dict[str, Any] | RequestRefused) -> None:
        super().give(fields)
        self._times.observe((monotonic_us() - self._began_us) / 1e6)


def _client(peer: Peer) -> str:
    return (isinstance(peer, Known) and peer.client) or rules.ANONYMOUS


def _revoked() -> PermissionDenied:
    return PermissionDenied("the key of this client was revoked; ask the broker's operator")


def _fault(error: Exception) -> RequestRefused:
    log.error("request=failed error=%r", describe_error(error), exc_info=error)
    return RequestRefused("the broker failed at this request; its log says why")


def _fields(op: ops.Op, request: protocol.Request, value: Any) -> dict[str, Any] | RequestRefused:
    if isinstance(value, StoreError):
        return ops.store_refusal(value, writes=op.writes)
    try:
        return op.answer(request, value)
    except RequestRefused as error:
        return error
