"""The broker process: its parts put together, started and stopped in order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import zmq

from kingtask import __version__, daemon, linux, protocol, topics
from kingtask import log as logs
from kingtask.broker import metrics
from kingtask.broker.auth import CurveAuth
from kingtask.broker.batch import SubmitBatcher
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.flood_guard import BASE_BYTES, PartialMessageGuard
from kingtask.broker.router import Peer, RouterSocket
from kingtask.broker.submits import Submits
from kingtask.broker.ticker import Ticker
from kingtask.broker.timerfd import TimerfdSelector
from kingtask.broker.waiters import Waiters
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_us, wall_s
from kingtask.config import BrokerConfig, Reload
from kingtask.metrics import call_times as call_metrics
from kingtask.metrics import daemon as daemon_metrics
from kingtask.metrics.call_times import CallTimes
from kingtask.metrics.family import Family
from kingtask.metrics.scrape_server import ScrapeServer
from kingtask.store import codec, functions
from kingtask.store.store import BrokerStore
from kingtask.systemd import Notifier

log = logging.getLogger("kingtask.broker")

DRAIN_S = 5.0
"""On stop: how long requests under way may still get their reply."""
OPEN_FILES = 65_536
"""A connection is one: 1,024, the usual limit, is used up by as many clients."""


class Broker:
    """All of one broker. `start` binds and connects, `stop` answers what is under way and closes; both once."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self.name = daemon.instance_name()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 64)
        self._counters = Counters()
        self._hoards = PartialMessageGuard(
            (*config.endpoints, *config.wakeup_endpoints), BASE_BYTES + config.max_pending_bytes, self._counters
        )
        self._gate: CurveAuth | None = None
        if config.curve is not None:
            key, clients = Path(config.curve.secret_key_file), Path(config.curve.authorized_clients)
            self._gate = CurveAuth(self._context, key, clients, self._counters)
        self._store = BrokerStore(
            config.load_redis_address(),
            config.namespace,
            ack=config.ack_policy,
            cluster=config.cluster,
            login=config.load_redis_address,
        )
        self._waits = Waiters(self._store)
        self._store.listen(
            {
                "due": self._announced,
                "ready": self._published_ready,
                "cancel": self._published_cancel,
                "ended": self._waits.ended,
            },
            on_resubscribed=self._waits.look,
        )
        self._batch = SubmitBatcher(self._store, config.policy, on_sent=self._sent, on_stored=self._stored)
        submits = Submits(self._batch, ack_level=lambda: self._store.ack_level, new_id=lambda: str(uuid.uuid4()))
        self._desk = Dispatcher(
            config,
            self._store,
            submits,
            self._waits,
            self._counters,
            self._gate,
            reply=self._reply,
            pong=self._pong,
        )
        self._edge = RouterSocket(
            self._context,
            config.endpoints,
            self._gate,
            on_request=self._desk.take,
            on_drained=self._batch.flush,
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
        self._ticker = Ticker(
            self._store,
            config.policy,
            self.name,
            heartbeat=self._heartbeat,
            on_ready=self._wakeups.ready,
            on_soon=self._wakeups.rehearse,
        )
        self.reload: Reload[BrokerConfig] | None = None
        """Whose outcomes are to be told with the figures."""
        self._endpoint: ScrapeServer | None = None
        if (address := config.metrics_address) is not None:
            self._endpoint = ScrapeServer(
                address.host, address.port, public=address.public, families=self._families, trouble=self._trouble
            )
            self._desk.times = metrics.RequestTimes()
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
        self._ticker.start()
        log.info(
            "broker=started name=%s version=%s addr=%s wakeup=%s",
            self.name,
            __version__,
            ",".join(self._config.endpoints),
            ",".join(self._config.wakeup_endpoints),
        )

    async def stop(self) -> None:
        """Refuse new requests, answer those under way (at most DRAIN_S), close everything."""
        self._desk.draining = True
        self._waits.stop()
        self._ticker.stop()
        await self._desk.drain(DRAIN_S)
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
        keys, permits = None if self._gate is None else self._gate.read(), config.load_permissions()
        logs.setup("broker", config.log_level, config.log_path, log_format=config.log_format)
        if self._gate is not None and keys is not None:
            self._gate.reload(keys)
            self._wakeups.turn_out()
        self._desk.reconfigure(config, permits)
        self._config = config
        self._ticker.policy = self._batch.policy = config.policy

    @property
    def alive(self) -> bool:
        """True if its chores are done."""
        return self._ticker.alive

    def status(self) -> str:
        """One line for people."""
        store = self._store
        redis = f"Redis is up, an OK means {store.ack_level}" if store.up else f"Redis is away ({store.problem})"
        return f"{self._desk.pending} requests in progress, {len(self._waits)} clients waiting; {redis}"

    def _reply(self, peer: Peer, message: bytes) -> None:
        self._edge.reply(peer, message)

    def _pong(self) -> dict[str, Any]:
        clock = self._store.clock
        return {
            "server": "kingtask",
            "version": __version__,
            "protocols": [protocol.VERSION],
            "broker": self.name,
            "ready": self._store.up and not self._desk.draining,
            "ack": self._store.ack_level,
            "now": clock.now_us(monotonic_us()) / 1e6 if clock.known else wall_s(),
            "limits": protocol.LIMITS,
        }

    # ── what Redis said ─────────────────────────────────────────────────────────────────────────────────────────────

    def _sent(self, task: functions.Prepared) -> int | None:
        """A task alone is on its way to Redis: a worker that is told of it now looks for it behind it."""
        if not self._wakeups.anybody:
            return None
        plan = codec.unpack_plan(task[2])
        if plan.start_ms or plan.delay_ms or not self._wakeups.soon(plan.queue or "default"):
            return None
        return monotonic_us()

    def _stored(self, reply: functions.Submitted, told_us: int | None) -> None:
        told = told_us is not None and monotonic_us() - told_us < topics.EARLY_US
        for queue, tasks in reply.ready:
            if tasks > told:
                self._wakeups.ready(queue, tasks - told)
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
        assert self._desk.times is not None
        pages = await metrics.ask_queues(self._store) if self._store.up else []
        config, reload = self._config, self.reload
        reloads = {} if reload is None else {"done": reload.done, "refused": reload.refused}
        now = metrics.BrokerFigures(
            in_flight=self._desk.pending,
            in_flight_bytes=self._desk.pending_bytes,
            in_flight_limit=config.max_pending,
            waits=len(self._waits),
            waits_limit=config.max_waits,
            tasks_limit=config.max_tasks,
            queues_limit=config.max_queues,
            output_bytes_limit=config.max_result_bytes,
            draining=self._desk.draining,
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
            [self._desk.times.family()],
            call_metrics.families(self._call_times, self._store),
        )

    def _trouble(self) -> list[str]:
        return daemon.reasons_not_ready(self._store.links, draining=self._desk.draining)


def run(config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> int:
    """Run a broker until SIGTERM or SIGINT; blocks, returns the exit status. Raises ConfigurationError.

    On SIGHUP `reread` returns the new configuration.
    """
    daemon.prepare(log)
    linux.raise_open_files(OPEN_FILES)
    with asyncio.Runner(loop_factory=TimerfdSelector.loop) as runner:
        runner.run(_run(config, reread))
    return 0


async def _run(config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> None:
    stop = asyncio.Event()
    broker = Broker(config)
    broker.reload = reload = Reload(config, reread, broker.reconfigure)
    async with daemon.running(broker, reload, Notifier.of(os.environ, os.getpid()), log, stop.set):
        await stop.wait()
