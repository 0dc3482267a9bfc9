"""The parts of a worker put together: events in, the decisions of `worker_state` carried out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from kingtask import __version__, failpoint, linux, topics
from kingtask import log as logs
from kingtask.clock import monotonic_s, monotonic_us
from kingtask.config import Reload, WorkerConfig
from kingtask.daemon import reasons_not_ready
from kingtask.errors import StoreError
from kingtask.event import Event
from kingtask.metrics.call_times import CallTimes
from kingtask.store import functions
from kingtask.store.functions import Fence
from kingtask.store.store import Store
from kingtask.worker import environment
from kingtask.worker.attempt import Conditions, RunningAttempt, pack_release
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.exec.process import Host
from kingtask.worker.outbox import Claim, Finish, Release, Report
from kingtask.worker.reap.cgroup import OomKills, own_cgroup
from kingtask.worker.reap.orphans import Orphans
from kingtask.worker.reap.reaper import Reaper
from kingtask.worker.sandbox.isolate import Isolation
from kingtask.worker.subscriber import Exchange, Subscriber
from kingtask.worker.worker_state import Action, Extend, Readiness, StopProcess, WorkerState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from kingtask.metrics.scrape_server import ScrapeServer
    from kingtask.worker.metrics import AttemptFigures

log = logging.getLogger("kingtask.worker")

INDEX_DAMAGED = StoreError("damaged", "an index in Redis is damaged; the log of Redis names it")

DELIVER_S = 5.0
"""On stop, after the last process is gone: how long Redis may still take to confirm the reports."""
OPEN_FILES_PER_SLOT, OTHER_OPEN_FILES = 6, 128


class Worker:
    """A worker on the running loop. `done` ends after a stop signal, when everything is reported, or with an error."""

    alive = True

    def __init__(
        self,
        config: WorkerConfig,
        name: str,
        reaper: Reaper,
        isolation: Isolation | None,
        reread: Callable[[], WorkerConfig],
        file: str,
    ) -> None:
        """`reread` returns the configuration in `file` for a reload. Raises ConfigurationError."""
        self._config = config
        self._policy = config.policy
        self._name = name
        self._reaper = reaper
        self.reload = Reload(config, reread, self._reconfigure)
        self._loop = loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self._store = Store(
            config.load_redis_address(),
            config.namespace,
            ack=config.ack_policy,
            cluster=config.cluster,
            login=config.load_redis_address,
        )
        self._state = WorkerState(
            config.concurrency,
            config.lease,
            new_token=partial(os.urandom, 16),
            release_record=lambda claimed, why: pack_release(name, claimed, why, self._now_ms()),
        )
        self._store.on_up.append(partial(self._handle, self._state.went_up))
        self._store.on_down.append(self._state.went_down)
        self._store.heartbeat = lambda why: (name, self._heartbeat(why))
        self._subscriber = Subscriber(
            config.wakeup_endpoints,
            config.load_keys(),
            queues=config.queues,
            worker=name,
            on_ready=self._hinted,
            on_cancel=partial(self._handle, self._state.cancel_hint),
        )
        self._attempts: dict[Fence, RunningAttempt] = {}
        self._flushing = False
        self._spawning = False
        self._signals = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._hints = self._claims = self._claimed_tasks = 0
        # Hints for tasks that may not be in Redis yet: since the last claim was sent, and before that.
        self._early = self._expected = 0
        self._call_times = CallTimes()
        self._scrape: ScrapeServer | None = None
        figures: AttemptFigures | None = None
        if (address := config.metrics_address) is not None:
            from kingtask.metrics.scrape_server import ScrapeServer  # noqa: PLC0415 - 3 MB, 25 ms: only with metrics
            from kingtask.worker.metrics import AttemptFigures  # noqa: PLC0415

            self._scrape = ScrapeServer(address, self._collect, self._not_ready)
            figures = AttemptFigures()
            self._store.observer = self._call_times
        uids: frozenset[int] = frozenset() if isolation is None else isolation.uids - {os.getuid()}
        self._host = Host(
            loop=loop,
            epoll=EpollSet(loop),
            orphans=Orphans(loop, name, reaper.groups, uids),
            null=os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC),
            oom_kills=OomKills(own_cgroup()),
            now_ms=self._now_ms,
        )
        self._conditions = Conditions(
            worker=name,
            config=config,
            file=file,
            environment=environment.base(
                os.environ, worker=name, brokers=",".join(config.broker), passed=config.environment
            ),
            host=self._host,
            isolation=isolation,
            figures=figures,
        )

    async def start(self) -> None:
        """Raises ConfigurationError; an unreachable Redis is retried for ever."""
        config = self._config
        self._loop.set_exception_handler(self._broken)
        self._host.orphans.adopt(self._reaper)
        if self._scrape is not None:
            await self._scrape.open()
        await self._store.open()
        self._subscriber.start()
        self._every("poll", config.period, self._host.orphans.scan, self._state.poll)
        self._every("renew", config.renew, self._reaper.check, self._state.renew)
        log.info(
            Event(
                "worker=started",
                name=self._name,
                version=__version__,
                pid=os.getpid(),
                slots=config.concurrency,
                queues=",".join(config.queues),
                bin_path=":".join(config.bin_path),
            ),
        )

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._subscriber.close()
        if self._scrape is not None:
            await self._scrape.close()
        await self._store.close()
        self._host.orphans.close()
        self._host.epoll.close()
        os.close(self._host.null)

    def _reconfigure(self, config: WorkerConfig) -> None:
        """Apply a configuration that differs in `live` keys only; running attempts keep the former."""
        logs.setup("worker", config.log_level, config.log_path, log_format=config.log_format)
        raise_open_files(config.concurrency)
        old, self._config, self._policy = self._config, config, config.policy
        self._conditions = replace(self._conditions, config=config)
        self._state.resize(config.concurrency)
        if config.queues != old.queues:
            self._subscriber.serve(config.queues)
        if config.period != old.period:
            self._timers["poll"].cancel()
            self._every("poll", config.period, self._host.orphans.scan, self._state.poll)
        self._handle(self._state.renew)  # its heartbeat shows the change

    def status(self) -> str:
        state, config = self._state, self._config
        redis = "Redis is up" if self._store.up else f"Redis is unreachable ({self._store.problem})"
        degraded = f"; nothing can be started: {state.degraded}" if state.degraded else ""
        return (
            f"{state.busy} of {config.concurrency} slots busy, {state.unconfirmed} ends to be confirmed,"
            f" queues {','.join(config.queues)}; {redis}{degraded}"
        )

    @property
    def has_abandoned(self) -> bool:
        """True if processes have not ended although they were killed."""
        return bool(self._attempts)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hinted(self, early: bool = False) -> None:
        self._hints += 1
        self._early += early
        self._state.wakeup()
        self._flush()

    def _claim_again(self) -> None:
        del self._timers["claim"]
        self._handle(self._state.wakeup)

    def _handle(self, event: Callable[..., None], *args: object) -> None:
        event(*args)
        self._flush()

    def _every(self, name: str, period_s: float, *events: Callable[[], None]) -> None:
        def run() -> None:
            self._timers[name] = self._loop.call_later(period_s, run)
            for event in events:
                event()
            self._flush()

        self._timers[name] = self._loop.call_later(period_s, run)

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _soon(self) -> None:
        """Flush once for all events of this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        now_s = monotonic_s()
        for action in self._state.decide(now_s):
            self._carry_out(action)
        match self._state.readiness(now_s):
            case Readiness.IDLE:
                self._subscriber.announce(Exchange.IDLE)
            case Readiness.FULL:
                self._subscriber.announce(Exchange.FULL)
        if self._state.draining and self._state.idle:
            self._leave()

    def _carry_out(self, action: Action) -> None:
        policy, name, queues, sent_s = self._policy, self._name, self._config.queues, monotonic_s()
        match action:
            case StopProcess(fence, why):
                if fence in self._attempts:
                    self._attempts[fence].stop(why)
            case Claim(token, nth, n, again):
                request = functions.ClaimRequest(queues, n, token, nth, self._subscriber.take_tokens())
                call = functions.claim(policy, name, request, again=again)
                self._claim_sent(again=again)
                self._store.send(call, partial(self._claimed, sent_s))
            case Finish(ended, cut, claim):
                if failpoint.ACTIVE:
                    failpoint.reach("before_complete")
                wish = None
                if claim is not None:
                    wish = functions.ClaimRequest(
                        queues, claim.n, claim.token, claim.nth, self._subscriber.take_tokens()
                    )
                    self._claim_sent()
                call = functions.finish(policy, name, ended, cut=cut, claim=wish)
                self._store.send(call, partial(self._finished, action, sent_s))
            case Release(attempts):
                call = functions.release(policy, name, attempts)
                self._store.send(call, partial(self._reported, "release", [fence for fence, _ in attempts]))
            case Extend(held, claims, upto):
                call = functions.extend(policy, name, held, claims, self._heartbeat(), upto=upto)
                self._store.send(call, partial(self._extended, action, sent_s))

    def _claim_sent(self, *, again: bool = False) -> None:
        self._claims += 1
        self._expected, self._early = self._early, 0
        if not again:
            self._subscriber.announce(Exchange.CLAIMED)

    def _finished(self, finish: Finish, sent_s: float, reply: functions.Finished | StoreError) -> None:
        self._reported("finish", [end.fence for end in finish.ended], reply)
        if finish.claim is not None:
            claims = reply if isinstance(reply, StoreError) else reply.claims
            assert claims is not None
            self._claimed(sent_s, claims)
            if isinstance(reply, StoreError) and reply.kind == "full":
                self._state.wakeup()  # Redis accepts the finish with cut outputs, and so the claim

    def _claimed(self, sent_s: float, reply: functions.Claims | StoreError) -> None:
        if isinstance(reply, StoreError):
            self._state.claim_failed(stored=reply.stored)
            log.warning(Event("claim=failed", kind=reply.kind, error=str(reply)))
        else:
            if failpoint.ACTIVE and reply.tasks:
                failpoint.reach("after_claim")
            self._claimed_tasks += len(reply.tasks)
            unconfirmed = self._state.claimed(reply.tasks, sent_s, more=reply.more)
            if unconfirmed:
                self._store.confirm(partial(self._claim_stored, unconfirmed))
            if reply.tasks:
                self._spawn()
            if len(reply.tasks) < self._expected and "claim" not in self._timers:
                self._timers["claim"] = self._loop.call_later(2 * topics.EARLY_US / 1e6, self._claim_again)
        self._soon()

    def _claim_stored(self, fences: list[Fence], sure: bool) -> None:
        if not sure:
            log.warning(Event("claim=unconfirmed", "released; they may be started only once", tasks=len(fences)))
        self._state.stored(fences, monotonic_s(), sure=sure)
        self._spawn()
        self._soon()

    def _reported(
        self, call: str, fences: list[Fence], reply: functions.Statuses | functions.Finished | StoreError
    ) -> None:
        outbox = self._state.outbox
        if isinstance(reply, StoreError):
            outbox.not_confirmed(fences, full=reply.kind == "full")
            log.warning(Event(f"{call}=failed", "retrying", attempts=len(fences), kind=reply.kind, error=str(reply)))
        else:
            if failpoint.ACTIVE and call == "finish":
                failpoint.reach("after_complete")
            answers = dict(zip(fences, reply.answers, strict=True))
            for fence, answer in answers.items():
                if answer == "fenced":
                    self._log_fenced(call, fence, outbox.queue_of(fence))
            damaged = [fence for fence, answer in answers.items() if answer == functions.DAMAGED]
            if damaged:
                self._reported(call, damaged, INDEX_DAMAGED)
            unconfirmed = outbox.answered([fence for fence in fences if fence not in damaged])
            if unconfirmed:
                self._store.confirm(partial(self._report_stored, unconfirmed))
        self._soon()

    def _report_stored(self, fences: list[Fence], sure: bool) -> None:
        if sure:
            self._state.outbox.confirmed(fences)
        else:
            self._state.outbox.not_confirmed(fences)
        self._soon()

    def _extended(self, extend: Extend, sent_s: float, reply: functions.Statuses | StoreError) -> None:
        if isinstance(reply, StoreError):
            self._state.extend_failed()
            log.warning(Event("extend=failed", held=len(extend.held), kind=reply.kind, error=str(reply)))
        else:
            if held := reply.answers.count(functions.DAMAGED):
                log.warning(Event("extend=failed", held=held, kind=INDEX_DAMAGED.kind, error=str(INDEX_DAMAGED)))
            for fence in self._state.extended(extend, reply.answers, sent_s):
                attempt = self._attempts.get(fence)  # None if it was not started yet
                self._log_fenced("attempt", fence, attempt.claimed.queue if attempt is not None else "")
            self._spawn()
        self._soon()

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self) -> None:
        if not self._spawning:
            self._spawn_next()

    def _spawn_next(self) -> None:
        """Start one attempt in each turn of the loop, so that exits and replies are handled between two starts."""
        self._spawning = False
        found = self._state.next_to_spawn(monotonic_s())
        if found is None:
            return
        fence, claimed = found
        self._spawning = True
        self._loop.call_soon(self._spawn_next)
        attempt = self._attempts[fence] = RunningAttempt(self._conditions, fence, claimed, self._ended)
        if attempt.start():
            self._state.started()
            if failpoint.ACTIVE:
                failpoint.reach("after_spawn")

    def _ended(self, fence: Fence, end: Report | Shortage) -> None:
        del self._attempts[fence]
        if isinstance(end, Shortage):
            self._state.spawn_failed(fence, monotonic_s(), str(end))
        else:
            if failpoint.ACTIVE:
                failpoint.reach("after_exit")
            self._state.ended(fence, end)
        self._soon()

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def signalled(self) -> None:
        """A stop signal. First: drain. Second: stop the running attempts. Third: kill them."""
        self._signals += 1
        if self._signals == 1:
            log.info(Event("worker=draining", running=self._state.busy, drain_timeout_s=self._config.drain_timeout))
            self._state.drain()
            self._timers["drain"] = self._loop.call_later(self._config.drain_timeout, self._stop_all)
            self._flush()
        elif self._signals == 2:
            self._stop_all()
        else:
            for attempt in list(self._attempts.values()):
                attempt.kill()

    def _stop_all(self) -> None:
        self._timers["drain"].cancel()
        if "give_up" in self._timers:
            return
        log.info(Event("worker=stopping", running=self._state.busy, kill_grace_s=self._config.kill_grace))
        self._timers["give_up"] = self._loop.call_later(self._config.kill_grace + DELIVER_S, self._give_up)
        self._state.stop_all()
        self._flush()

    def _give_up(self) -> None:
        words = "Redis has not confirmed them; their leases will run out"
        log.error(Event("worker=leaving", words, running=self._state.busy, unconfirmed=self._state.unconfirmed))
        self._leave()

    def _leave(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Leave: after an error in a callback an attempt may be lost, and its lease would be renewed for ever.

        The reaper kills the running attempts, and their leases run out.
        """
        loop.default_exception_handler(context)
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception) and not self.done.done():
            log.critical(Event("worker=broken", "leaving", error=repr(error)))
            self.done.set_exception(error)

    # ── reports about the worker ────────────────────────────────────────────────────────────────────────────────────

    def _now_ms(self) -> int:
        return self._store.clock.now_us(monotonic_us()) // 1000

    def _log_fenced(self, subject: str, fence: Fence, queue: str) -> None:
        attempt = {"task": fence.id, "attempt": fence.number, "queue": queue, "worker": self._name}
        log.warning(Event(f"{subject}=fenced", "its lease was given away", **attempt))

    def _heartbeat(self, unfit: str = "") -> bytes:
        state, config = self._state, self._config
        facts = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "queues": [] if state.draining or unfit else list(config.queues),
            "slots": config.concurrency,
            "busy": state.busy,
            "bin_path": list(config.bin_path),
            "unfit": unfit or state.degraded,
        }
        return json.dumps(facts).encode()

    async def _collect(self) -> Iterable[Metric]:
        from kingtask.metrics import collector  # noqa: PLC0415 - as the scrape server
        from kingtask.worker import metrics  # noqa: PLC0415

        figures = self._conditions.figures
        assert figures is not None
        reloads = {"done": self.reload.done, "refused": self.reload.refused}
        return chain(
            collector.of_daemon("worker", self._name, self._config.namespace, logs.lines, reloads),
            metrics.of_worker(
                self._state,
                slots=self._config.concurrency,
                hints=self._hints,
                claims=self._claims,
                claimed=self._claimed_tasks,
                brokers=self._subscriber.connected,
            ),
            figures.collect(),
            collector.of_redis(self._call_times, self._store),
        )

    def _not_ready(self) -> list[str]:
        reasons = reasons_not_ready(self._store.links, draining=self._state.draining)
        return [*reasons, f"no process can be started: {self._state.degraded}"] if self._state.degraded else reasons


def raise_open_files(slots: int) -> None:
    """Make room for the pipes of all slots, and no more: the programs inherit the limit."""
    wanted = slots * OPEN_FILES_PER_SLOT + OTHER_OPEN_FILES
    limit = linux.raise_open_files(wanted)
    if limit < wanted:
        log.warning(Event("descriptors=short", "lower concurrency, or raise LimitNOFILE", limit=limit, wanted=wanted))
