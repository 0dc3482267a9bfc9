"""The broker process: its parts put together, started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import zmq

from kingtask import __version__, failpoint, openfiles, protocol
from kingtask import log as logs
from kingtask.broker import metrics, permissions, requests
from kingtask.broker.batch import Batch
from kingtask.broker.counters import Counters
from kingtask.broker.edge import Edge, Peer
from kingtask.broker.gate import Gate, Known
from kingtask.broker.hoards import BASE_BYTES, Hoards
from kingtask.broker.permissions import Permit
from kingtask.broker.punctual import PunctualSelector
from kingtask.broker.submits import Submits
from kingtask.broker.ticker import Ticker
from kingtask.broker.waits import Waits
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_s, monotonic_us, wall_s
from kingtask.config import BrokerConfig, Reload
from kingtask.errors import Busy, PermissionDenied, RequestRefused, StoreError, Unavailable, told
from kingtask.metrics import calls as call_metrics
from kingtask.metrics import daemon as daemon_metrics
from kingtask.metrics.calls import CallTimes
from kingtask.metrics.endpoint import Endpoint
from kingtask.metrics.family import Family
from kingtask.metrics.histogram import Histogram
from kingtask.store import calls
from kingtask.store.store import BrokerStore
from kingtask.systemd import Notifier
from kingtask.task import Result

log = logging.getLogger("kingtask.broker")

DRAIN_S = 5.0
"""On stop: how long requests under way may still get their reply."""
OPEN_FILES = 65_536
"""A connection is one: 1,024, the usual limit, is used up by as many clients."""


class Broker:
    """All of one broker. `start` binds and connects, `stop` answers what is under way and closes; both once."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._policy = config.policy
        self.name = f"{_label(socket.gethostname())}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 64)
        self._counters = Counters()
        self._hoards = Hoards(
            (*config.endpoints, *config.wakeup_endpoints), BASE_BYTES + config.max_pending_bytes, self._counters
        )
        self._gate: Gate | None = None
        if config.curve is not None:
            key, clients = Path(config.curve.secret_key_file), Path(config.curve.authorized_clients)
            self._gate = Gate(self._context, key, clients, self._counters)
        self._permits = permissions.Permits()
        self._permits.reload(config.permits)
        self._edge = Edge(
            self._context,
            config.endpoints,
            self._gate,
            on_request=self._request,
            on_drained=self._drained,
            counters=self._counters,
            hoards=self._hoards,
        )
        try:
            self._wakeups = Wakeups(self._context, config.wakeup_endpoints, self._counters, self._hoards, self._gate)
        except BaseException:
            self._edge.stop(0)
            if self._gate is not None:
                self._gate.stop()
            self._context.term()
            raise
        self._store = BrokerStore(
            config.redis_address,
            config.namespace,
            ack=config.level,
            cluster=config.cluster,
            login=lambda: config.redis_address,
        )
        self._waits = Waits(self._store)
        self._store.listen(
            {
                "due": self._announced,
                "ready": self._published_ready,
                "cancel": self._published_cancel,
                "ended": self._waits.ended,
            },
            on_resubscribed=self._waits.look,
        )
        self._ticker = Ticker(
            self._store,
            self._policy,
            self.name,
            heartbeat=self._heartbeat,
            on_ready=self._wakeups.ready,
        )
        self._batch = Batch(self._store, self._policy, self._stored)
        self._submits = Submits(self._batch, ack_level=lambda: self._store.ack_level, new_id=lambda: str(uuid.uuid4()))
        self._pending = 0
        self._pending_bytes = 0
        self._draining = False
        self._idle = asyncio.Event()
        self.reload: Reload[BrokerConfig] | None = None
        """Whose outcomes are to be told with the figures."""
        self._endpoint: Endpoint | None = None
        self._request_times: metrics.RequestTimes | None = None
        if (address := config.metrics_address) is not None:
            self._endpoint = Endpoint(
                address.host, address.port, public=address.public, families=self._families, trouble=self._trouble
            )
            self._request_times = metrics.RequestTimes()
            self._store.observer = self._call_times = CallTimes()

    async def start(self) -> None:
        """Raises ConfigurationError for what only a person can mend; an unreachable Redis is waited for."""
        if self._endpoint is not None:
            await self._endpoint.open()
        await self._store.open()
        if self._gate is not None:
            await self._gate.open()
        self._edge.start()
        self._hoards.start()
        self._wakeups.start()
        self._waits.start()
        self._ticker.start()
        log.info(
            "broker=started name=%s version=%s addr=%s wakeup=%s",
            self.name,
            __version__,
            ",".join(self._config.endpoints),
            ",".join(self._config.wakeup_endpoints),
        )
        gc.collect()
        gc.freeze()  # what exists now stays; later collections need not look at it

    async def stop(self) -> None:
        """Refuse new requests, answer those under way (at most DRAIN_S), close everything."""
        self._draining = True
        self._waits.stop()
        self._ticker.stop()
        if self._pending:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), DRAIN_S)
            except TimeoutError:
                log.warning("broker=stopping unanswered=%d", self._pending)
        self._edge.stop()
        self._hoards.stop()
        self._wakeups.stop()
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._gate is not None:
            self._gate.stop()
        await self._store.close()
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)
        log.info("broker=stopped name=%s", self.name)

    def reconfigure(self, config: BrokerConfig) -> None:
        """Go by this configuration from now on, which differs in `live` keys only. Raises ConfigurationError."""
        keys, permits = None if self._gate is None else self._gate.read(), config.permits
        logs.setup("broker", config.log_level, config.log_path, log_format=config.log_format)
        if self._gate is not None and keys is not None:
            self._gate.reload(keys)
            self._wakeups.turn_out()
        self._permits.reload(permits)
        self._config, self._policy = config, config.policy
        self._ticker.policy = self._batch.policy = self._policy

    @property
    def alive(self) -> bool:
        """True if its chores are done."""
        return self._ticker.alive

    def status(self) -> str:
        """One line for people."""
        store = self._store
        redis = f"Redis is up, an OK means {store.ack_level}" if store.up else f"Redis is away ({store.trouble})"
        return f"{self._pending} requests in progress, {len(self._waits)} clients waiting; {redis}"

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _request(self, peer: Peer, message: bytes) -> None:
        rid: protocol.Rid | None = None
        answer: _Answer | None = None
        try:
            if self._gate is not None and isinstance(peer, Known) and peer.client is None:
                self._turn_away(peer, message)
                return
            request: protocol.Request | None = protocol.read_submit(message)
            if request is None:
                envelope = protocol.decode(message)
                rid = protocol.rid_of(envelope)
                request = protocol.parse(envelope)
            rid = request.rid
            if isinstance(request, protocol.Ping):
                self._edge.reply(peer, protocol.ok(rid, self._pong()))
                return
            permit = None
            if self._permits.on:
                permit = self._permits.of(_client(peer), monotonic_s())
                permit.request(request)
            self._admit()
            if self._request_times is None:
                answer = _Answer(self, peer, rid, len(message))
            else:
                answer = _TimedAnswer(self, peer, rid, len(message), self._request_times.of(request))
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
        rid = protocol.rid_of(protocol.decode(message))
        self.refuse(peer, rid, _revoked())

    def _act_permitted(self, request: protocol.Request, answer: _Answer, permit: Permit) -> None:
        """The same within what the client may do; for what is done by id the task is looked at first."""
        if isinstance(request, protocol.Submit):
            now_s = monotonic_s()
            self._submits.take(request, wall_s(), answer.give, lambda spec, place: permit.submit(spec, place, now_s))
        elif isinstance(request, permissions.BY_ID) and permit.looks_at(request):

            def looked(found: calls.Found | StoreError) -> None:
                if isinstance(found, StoreError):
                    answer.give(requests.store_refusal(found, writes=False))
                    return
                if found.result is None:
                    answer.give(requests.not_found(request.id))
                    return
                try:
                    permit.task(str(type(request).__struct_config__.tag), found.result, monotonic_s())
                    self._act(request, answer, permit)
                except Exception as error:  # noqa: BLE001  (as in _request)
                    answer.give(error if isinstance(error, RequestRefused) else _fault(error))

            self._store.send(calls.get(request.id), looked)
        else:
            self._act(request, answer, permit)

    def _act(self, request: protocol.Request, answer: _Answer, permit: Permit | None = None) -> None:
        if isinstance(request, protocol.Submit):
            self._submits.take(request, wall_s(), answer.give)
        elif isinstance(request, protocol.Wait):
            self._wait(request, answer)
        else:
            op = requests.OPS[type(request)]

            def answered(value: Any) -> None:
                fields = _fields(op, request, value)
                if permit is not None and not isinstance(fields, RequestRefused):
                    fields = permit.filtered(fields)
                if isinstance(request, permissions.AUDITED):
                    permissions.audited(_client(answer.peer), request, fields)
                if op.confirmed and not isinstance(fields, RequestRefused):
                    self._store.confirm(lambda reached: answer.give(fields if reached else requests.not_confirmed()))
                else:
                    answer.give(fields)

            quota = None if permit is None else permit.quota
            self._store.send(op.call(request, self._policy, quota), answered)

    def _wait(self, request: protocol.Wait, answer: _Answer) -> None:
        if len(self._waits) >= self._config.max_waits:
            raise Busy("too many waits at once; use get, or come back later", retry_after_s=requests.FULL_AGAIN_S)
        answer.release()  # a wait may be long, it has a bound of its own

        def ended(found: Result | StoreError | None) -> None:
            if self._gate is not None and isinstance(answer.peer, Known) and not self._gate.knows(answer.peer.key):
                answer.give(_revoked())  # since it began to wait
            elif isinstance(found, StoreError):
                answer.give(requests.store_refusal(found, writes=False))
            elif found is None:
                answer.give(requests.not_found(request.id))
            else:
                answer.give({**requests.task_reply(request.id, found), "pending": not found.ended})

        self._waits.add(request.id, request.timeout_s, ended)

    def _admit(self) -> None:
        if self._draining:
            raise Unavailable("this broker is stopping; ask another one", retry_after_s=requests.AWAY_AGAIN_S)
        if self._pending >= self._config.max_pending or self._pending_bytes >= self._config.max_pending_bytes:
            raise Busy("too many requests are waiting for Redis; come back later", retry_after_s=requests.BUSY_AGAIN_S)
        if not self._store.up:
            raise Unavailable(
                f"Redis is not reachable ({self._store.trouble}); the broker keeps trying",
                retry_after_s=requests.AWAY_AGAIN_S,
            )

    def taken(self, size: int) -> None:
        self._pending += 1
        self._pending_bytes += size

    def given(self, size: int) -> None:
        self._pending -= 1
        self._pending_bytes -= size
        if not self._pending:
            self._idle.set()

    def send(self, peer: Peer, message: bytes) -> None:
        self._edge.reply(peer, message)

    def refuse(self, peer: Peer, rid: protocol.Rid | None, error: RequestRefused) -> None:
        self._counters.refused(error)
        self._edge.reply(peer, protocol.refusal(rid, error))

    def _drained(self) -> None:
        self._batch.flush()

    def _pong(self) -> dict[str, Any]:
        clock = self._store.clock
        return {
            "server": "kingtask",
            "version": __version__,
            "protocols": [protocol.VERSION],
            "broker": self.name,
            "ready": self._store.up and not self._draining,
            "ack": self._store.ack_level,
            "now": clock.now_us(monotonic_us()) / 1e6 if clock.known else wall_s(),
            "limits": protocol.LIMITS,
        }

    # ── what Redis said ─────────────────────────────────────────────────────────────────────────────────────────────

    def _stored(self, reply: calls.Submitted) -> None:
        for queue, tasks in reply.ready:
            self._wakeups.ready(queue, tasks)
        if reply.due_ms:
            self._ticker.learn(reply.due_ms)

    def _announced(self, due_ms: str) -> None:
        self._ticker.learn((int(due_ms),))

    def _published_ready(self, text: str) -> None:
        queue, _, tasks = text.partition(" ")
        self._wakeups.ready(queue, int(tasks))

    def _published_cancel(self, text: str) -> None:
        worker, _, task_id = text.partition(" ")
        self._wakeups.cancel(worker, task_id)

    def _heartbeat(self) -> bytes:
        clock = self._store.clock
        facts = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "addr": list(self._config.addr),
            "ack": self._store.ack_level,
            "clock_offset_s": round(clock.now_us(monotonic_us()) / 1e6 - wall_s(), 4) if clock.known else None,
            "refused": self._counters.counts,
        }
        return json.dumps(facts).encode()

    async def _families(self) -> Iterable[Family]:
        assert self._request_times is not None
        pages = await metrics.ask_queues(self._store) if self._store.up else []
        config, reload = self._config, self.reload
        reloads = {} if reload is None else {"done": reload.done, "refused": reload.refused}
        now = metrics.BrokerFigures(
            in_flight=self._pending,
            in_flight_bytes=self._pending_bytes,
            in_flight_limit=config.max_pending,
            waits=len(self._waits),
            waits_limit=config.max_waits,
            tasks_limit=config.max_tasks,
            queues_limit=config.max_queues,
            output_bytes_limit=config.max_result_bytes,
            draining=self._draining,
            ack_level=self._store.ack_level or "unknown",
            refused=self._counters.counts,
            wakeups=self._wakeups.told,
            idle_workers=self._wakeups.idle,
            ticks=self._ticker.ticks,
            ticks_failed=self._ticker.failed,
            lost=self._ticker.lost,
            instants=self._ticker.instants,
        )
        return chain(
            daemon_metrics.families("broker", self.name, config.namespace, logs.lines, reloads),
            metrics.of_queues(pages),
            metrics.of_broker(now),
            [self._request_times.family()],
            call_metrics.families(self._call_times, self._store),
        )

    def _trouble(self) -> list[str]:
        """What there is to be ready for; the sockets are bound since there is a Broker."""
        away = [f"redis ({link.purpose}): {link.trouble or 'not yet'}" for link in self._store.links if not link.up]
        return ["it is stopping", *away] if self._draining else away


class _Answer:
    """One request's reply: counted while it is under way, given once."""

    __slots__ = ("_broker", "_rid", "_size", "peer")

    def __init__(self, broker: Broker, peer: Peer, rid: protocol.Rid, size: int) -> None:
        self._broker = broker
        self.peer = peer
        self._rid = rid
        self._size = size
        broker.taken(size)

    def release(self) -> None:
        """No longer count it as under way."""
        if self._size:
            self._broker.given(self._size)
            self._size = 0

    def give(self, fields: dict[str, Any] | RequestRefused) -> None:
        self.release()
        if isinstance(fields, RequestRefused):
            self._broker.refuse(self.peer, self._rid, fields)
        else:
            self._broker.send(self.peer, protocol.ok(self._rid, fields))


class _TimedAnswer(_Answer):
    """One whose time is taken."""

    __slots__ = ("_began_us", "_times")

    def __init__(self, broker: Broker, peer: Peer, rid: protocol.Rid, size: int, times: Histogram) -> None:
        super().__init__(broker, peer, rid, size)
        self._times = times
        self._began_us = monotonic_us()

    def give(self, fields: dict[str, Any] | RequestRefused) -> None:
        super().give(fields)
        self._times.observe((monotonic_us() - self._began_us) / 1e6)


def _client(peer: Peer) -> str:
    return (isinstance(peer, Known) and peer.client) or permissions.ANONYMOUS


def _revoked() -> PermissionDenied:
    return PermissionDenied("the key of this client was revoked; ask the broker's operator")


def _fault(error: Exception) -> RequestRefused:
    log.error("request=failed error=%r", told(error), exc_info=error)
    return RequestRefused("the broker failed at this request; its log says why")


def _fields(op: requests.Op, request: protocol.Request, value: Any) -> dict[str, Any] | RequestRefused:
    if isinstance(value, StoreError):
        return requests.store_refusal(value, writes=op.writes)
    try:
        return op.answer(request, value)
    except RequestRefused as error:
        return error


def _label(host: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in host)[:64] or "host"


def run(config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> int:
    """Run a broker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError.

    On SIGHUP `reread` gives the configuration anew.
    """
    with contextlib.suppress(RuntimeError):  # without a stderr
        faulthandler.enable()  # of what it hung in, when the watchdog of systemd ends it
    openfiles.raise_limit(OPEN_FILES)
    failpoint.warn(log)
    with asyncio.Runner(loop_factory=PunctualSelector.loop) as runner:
        runner.run(_run(config, reread))
    return 0


async def _run(config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    openfiles.watch(loop, log)
    broker = Broker(config)
    broker.reload = reload = Reload(config, reread, broker.reconfigure)
    loop.add_signal_handler(signal.SIGHUP, reload.ask)
    notifier = Notifier.of(os.environ, os.getpid())
    try:
        await broker.start()
        notifier.start(status=lambda: broker.status() + reload.note, alive=lambda: broker.alive)
        reload.start(notifier.reloading, notifier.reloaded)
        await stop.wait()
    finally:
        reload.stop()
        notifier.stopping()
        await broker.stop()
        notifier.close()
