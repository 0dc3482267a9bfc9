"""The broker process: puts its parts together, starts and stops them in order."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from kingtask import __version__, daemon, linux
from kingtask import log as logs
from kingtask.broker.auth import CurveAuth
from kingtask.broker.authorizer import kept_bounds
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.relay import Relay
from kingtask.broker.router import RouterSocket
from kingtask.broker.submit import SubmitBatcher
from kingtask.broker.ticker import Ticker
from kingtask.broker.timerfd import TimerfdSelector
from kingtask.broker.waiters import Waiters
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_us, wall_s
from kingtask.config import BrokerConfig, Reload
from kingtask.event import Event
from kingtask.metrics.call_times import CallTimes
from kingtask.store.store import BrokerStore
from kingtask.systemd import Notifier

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from kingtask.metrics.scrape_server import ScrapeServer

log = logging.getLogger("kingtask.broker")

DRAIN_S = 5.0
"""On stop, the time for replies to requests in progress."""
REPLIES_MS = 1_000
"""On stop, the time for replies to leave this process."""
OPEN_FILES = 65_536
"""A connection takes three: with 1,024, the usual limit, a broker could serve only 170 clients."""


class Broker:
    """All parts of one broker. Call `start` and `stop` once each."""

    def __init__(self, config: BrokerConfig, reread: Callable[[], BrokerConfig]) -> None:
        """Bind the sockets. `reread` returns the configuration for a reload. Raises ConfigurationError."""
        self._config = config
        self.name = daemon.instance_name()
        self.reload = Reload(config, reread, self._reconfigure)
        self._counters = Counters()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 64)
        try:
            self._auth = None
            if (curve := config.curve) is not None:
                key, clients = Path(curve.secret_key_file), Path(curve.authorized_clients)
                self._auth = CurveAuth(key, clients, self._counters, config.load_permissions())
            self._relay = Relay(self._context, self._counters, self._auth, config.max_reply_bytes)
        except BaseException:
            self._context.destroy(0)
            raise
        try:
            self._router = RouterSocket(self._context, self._relay, config.endpoints, self._counters)
            self._wakeups = Wakeups(self._context, self._relay, config.wakeup_endpoints, self._counters)
        except BaseException:
            self._relay.close()
            self._context.destroy(0)
            raise
        self._call_times = CallTimes()
        self._store = BrokerStore(
            config.load_redis_address(),
            config.namespace,
            ack=config.ack_policy,
            cluster=config.cluster,
            login=config.load_redis_address,
            observer=None if config.metrics_address is None else self._call_times,
        )
        policy = replace(config.policy, kept_bounds=kept_bounds(config.load_permissions()))
        self._ticker = Ticker(self._store, policy, self.name, self._wakeups, heartbeat=self._heartbeat)
        self._batcher = SubmitBatcher(self._store, config.policy, self._wakeups, self._ticker)
        waiters = Waiters(self._store)
        self._dispatcher = Dispatcher(self.name, config, self._store, self._router, self._batcher, waiters)
        self._store.listen(
            {
                "due": lambda text: self._ticker.learn((int(text),)),
                "ready": self._published_ready,
                "cancel": self._published_cancel,
                "claimed": self._wakeups.claimed,
                "ended": waiters.ended,
            },
            on_resubscribed=waiters.poll,
        )
        self._scrape_server: ScrapeServer | None = None
        if (address := config.metrics_address) is not None:
            from kingtask.metrics.scrape_server import ScrapeServer  # noqa: PLC0415 - 3 MB, 25 ms: only with metrics

            self._scrape_server = ScrapeServer(address, self._collect, self._not_ready)

    async def start(self) -> None:
        """Serve. An unreachable Redis is retried; raises ConfigurationError for an error that needs a person."""
        if self._scrape_server is not None:
            await self._scrape_server.open()
        await self._store.open()
        if self._auth is not None:
            await self._auth.open(self._relay.own_endpoints())
        self._router.start(self._dispatcher.dispatch, self._batcher.flush)
        self._wakeups.start()
        self._relay.start()
        self._ticker.start()
        addr, wakeup = ",".join(self._config.endpoints), ",".join(self._config.wakeup_endpoints)
        log.info(Event("broker=started", name=self.name, version=__version__, addr=addr, wakeup=wakeup))

    async def stop(self) -> None:
        """Refuse new requests, wait at most DRAIN_S for those in progress, close everything."""
        self._ticker.stop()
        await self._dispatcher.drain(DRAIN_S)
        self._relay.stop()
        await self._relay.sent(REPLIES_MS / 1000)
        self._router.stop(REPLIES_MS)
        self._wakeups.stop()
        await self._relay.closed(REPLIES_MS / 1000)
        if self._scrape_server is not None:
            await self._scrape_server.close()
        if self._auth is not None:
            self._auth.stop()
        await self._store.close()
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)
        self._relay.close()
        log.info(Event("broker=stopped", name=self.name))

    def _reconfigure(self, config: BrokerConfig) -> None:
        """Use this configuration, which differs in `live` keys only. Raises ConfigurationError before any change."""
        keys, permissions = None if self._auth is None else self._auth.read(), config.load_permissions()
        logs.setup("broker", config.log_level, config.log_path, log_format=config.log_format)
        if self._auth is not None and keys is not None:
            self._auth.reload(keys, permissions)
            self._relay.cut_revoked()
        self._config = config
        self._relay.max_reply_bytes = config.max_reply_bytes
        self._dispatcher.reconfigure(config, permissions)
        self._ticker.reconfigure(replace(config.policy, kept_bounds=kept_bounds(permissions)))
        self._batcher.reconfigure(config.policy)

    @property
    def alive(self) -> bool:
        """True unless the broker has stopped to tick."""
        return self._ticker.alive

    def status(self) -> str:
        """Return one line for people."""
        store, dispatcher = self._store, self._dispatcher
        redis = f"Redis is up, an OK means {store.ack_level}" if store.up else f"Redis is unreachable ({store.problem})"
        return f"{dispatcher.pending} requests in progress, {dispatcher.waiting} clients waiting; {redis}"

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

    async def _collect(self) -> Iterable[Metric]:
        from kingtask.broker import metrics  # noqa: PLC0415 - as the scrape server
        from kingtask.metrics import collector  # noqa: PLC0415

        found = await metrics.ask_queues(self._dispatcher.gatherer) if self._store.up else None
        reloads = {"done": self.reload.done, "refused": self.reload.refused}
        return chain(
            collector.of_daemon("broker", self.name, self._config.namespace, logs.lines, reloads),
            metrics.of_queues(found),
            metrics.of_broker(
                self._config, self._store.ack_level, self._dispatcher, self._wakeups, self._ticker, self._counters
            ),
            metrics.of_relay(self._relay),
            collector.of_redis(self._call_times, self._store),
        )

    def _not_ready(self) -> list[str]:
        return daemon.reasons_not_ready(self._store.links, draining=self._dispatcher.draining)


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
    broker = Broker(config, reread)
    async with daemon.running(broker, broker.reload, Notifier.of(os.environ, os.getpid()), log, stop.set):
        await stop.wait()
