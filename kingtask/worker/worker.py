"""The parts of a worker put together: events in, decisions of `slots` carried out, stopped in order."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from kingtask import __version__, failpoint, topics
from kingtask import log as logs
from kingtask.clock import monotonic_s, monotonic_us
from kingtask.config import Reload, WorkerConfig
from kingtask.errors import StoreError
from kingtask.metrics import call_times as call_metrics
from kingtask.metrics import daemon as daemon_metrics
from kingtask.metrics.call_times import CallTimes
from kingtask.metrics.family import Family
from kingtask.metrics.scrape_server import ScrapeServer
from kingtask.store import functions
from kingtask.store.functions import Fence
from kingtask.store.store import Store
from kingtask.worker import environment, metrics
from kingtask.worker.attempt import Conditions, RunningAttempt, release_record
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.oom import KilledForMemory
from kingtask.worker.outbox import Finish, Release, Report
from kingtask.worker.reap.orphans import Orphans
from kingtask.worker.reap.reaper import Reaper
from kingtask.worker.sandbox.isolate import Isolation
from kingtask.worker.subscriber import Subscriber
from kingtask.worker.worker_state import Claim, Extend, FinishAndClaim, Readiness, StopProcess, WorkerState

log = logging.getLogger("kingtask.worker")

INDEX_DAMAGED = StoreError("damaged", "an index in Redis is damaged; the log of Redis names it")

DELIVER_S = 5.0
"""On stop, after the last process is gone: how long Redis may still take to confirm the ends."""


class Worker:
    """All of one worker; `serve` once."""

    def __init__(self, config: WorkerConfig, name: str, guard: Reaper, isolation: Isolation | None = None) -> None:
        self._config = config
        self._policy = config.policy
        self._name = name
        self._guard = guard
        self._isolation = isolation
        self._store = Store(
            config.load_redis_address(),
            config.namespace,
            ack=config.ack_policy,
            cluster=config.cluster,
            login=config.load_redis_address,
        )
        self._attempts: dict[Fence, RunningAttempt] = {}
        self._slots = WorkerState(
            config.concurrency,
            config.lease,
            new_token=partial(os.urandom, 16),
            release_record=lambda claimed, why: release_record(self._conditions, claimed, why),
        )
        self._flushing = False
        self._spawning = False
        self._signals = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._wakeups = self._claims = self._given = 0
        self._early = self._expected = 0
        """Hints of tasks that may not be there yet: since the last claim was sent, and before it."""
        self.reload: Reload[WorkerConfig] | None = None
        """Whose outcomes are to be told with the figures."""
        self._endpoint: ScrapeServer | None = None
        self._figures: metrics.AttemptFigures | None = None
        if (address := config.metrics_address) is not None:
            self._endpoint = ScrapeServer(
                address.host, address.port, public=address.public, families=self._families, trouble=self._trouble
            )
            self._figures = metrics.AttemptFigures()
            self._store.observer = self._call_times = CallTimes()

    async def serve(
        self, on_started: Callable[[], None] = lambda: None, on_stopping: Callable[[], None] = lambda: None
    ) -> None:
        """Work until SIGTERM or SIGINT, then drain. Raises ConfigurationError for what only a person can mend."""
        config = self._config
        self._on_stopping = on_stopping
        self._loop = loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        watch = EpollSet(loop)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        isolation = self._isolation
        uids = frozenset() if isolation is None else isolation.uids - {os.getuid()}
        self._children = Orphans(loop, self._name, self._guard.groups, uids)
        self._children.adopt(self._guard)
        self._conditions = Conditions(
            loop=loop,
            watch=watch,
            children=self._children,
            worker=self._name,
            environment=environment.base(
                os.environ,
                worker=self._name,
                brokers=",".join(config.broker),
                passed=config.environment,
            ),
            null=null,
            now_ms=lambda: self._store.clock.now_us(monotonic_us()) // 1000,
            killed=KilledForMemory.here(),
            isolation=isolation,
            **_configured(config),
            figures=self._figures,
        )
        loop.set_exception_handler(self._broken)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        self._subscriber = Subscriber(
            config.wakeup_endpoints,
            config.load_keys(),
            queues=config.queues,
            worker=self._name,
            on_ready=self._woken,
            on_cancel=self._cancel_hinted,
        )
        self._store.on_up.append(self._went_up)
        self._store.on_down.append(self._slots.went_down)
        try:
            if self._endpoint is not None:
                await self._endpoint.open()
            await self._store.open()
            self._subscriber.start()
            self._every("look", config.period, self._look)
            self._every("renew", config.renew, self._renew)
            log.info(
                "worker=started name=%s version=%s pid=%d slots=%d queues=%s bin_path=%s",
                self._name,
                __version__,
                os.getpid(),
                config.concurrency,
                ",".join(config.queues),
                ":".join(config.bin_path),
            )
            gc.collect()
            gc.freeze()  # what exists now stays; later collections need not look at it
            on_started()
            await self._done
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._subscriber.close()
            if self._endpoint is not None:
                await self._endpoint.close()
            await self._store.close()
            self._children.close()
            watch.close()
            os.close(null)
        log.info("worker=stopped name=%s", self._name)

    def reconfigure(self, config: WorkerConfig) -> None:
        """Go by this configuration from now on, which differs in `live` keys only; what runs keeps to the former."""
        old, self._config, self._policy = self._config, config, config.policy
        self._conditions = replace(self._conditions, **_configured(config))
        self._slots.resize(config.concurrency)
        if config.queues != old.queues:
            self._subscriber.serve(config.queues)
        if config.period != old.period:
            self._timers["look"].cancel()
            self._every("look", config.period, self._look)
        self._renew()  # its heartbeat tells the others

    def status(self) -> str:
        """One line for people."""
        slots, config = self._slots, self._config
        redis = "Redis is up" if self._store.up else f"Redis is away ({self._store.problem})"
        unfit = f"; nothing can be started: {slots.unfit}" if slots.unfit else ""
        return (
            f"{slots.busy} of {config.concurrency} slots busy, {slots.unconfirmed} ends to be confirmed,"
            f" queues {','.join(config.queues)}; {redis}{unfit}"
        )

    @property
    def abandoned(self) -> int:
        """Processes that have not been seen to end, although they got KILL."""
        return len(self._attempts)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _woken(self, soon: bool = False) -> None:
        self._wakeups += 1
        self._early += soon
        self._slots.wakeup()
        self._flush()

    def _cancel_hinted(self, task_id: str) -> None:
        self._slots.cancel_hint(task_id)
        self._flush()

    def _look(self) -> None:
        self._children.scan()
        self._slots.look()
        self._flush()

    def _look_again(self) -> None:
        del self._timers["again"]
        self._slots.wakeup()
        self._flush()

    def _renew(self) -> None:
        self._guard.check()
        self._slots.renew()
        self._flush()

    def _went_up(self) -> None:
        self._slots.went_up()
        self._flush()

    def _every(self, name: str, period_s: float, act: Callable[[], None]) -> None:
        def run() -> None:
            self._timers[name] = self._loop.call_later(period_s, run)
            act()

        self._timers[name] = self._loop.call_later(period_s, run)

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _soon(self) -> None:
        """Act once on everything that happens in this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        now_s = monotonic_s()
        for action in self._slots.decide(now_s):
            match action:
                case Claim():
                    self._claim(action)
                case Finish():
                    self._finish(action, None)
                case FinishAndClaim():
                    self._finish(action.finish, action.claim)
                case Release():
                    fences = [fence for fence, _ in action.attempts]
                    call = functions.release(self._policy, self._name, action.attempts)
                    self._store.send(call, partial(self._reported, "release", fences))
                case Extend():
                    call = functions.extend(
                        self._policy, self._name, action.held, action.claims, self._heartbeat(), upto=action.upto
                    )
                    self._store.send(call, partial(self._extended, action, monotonic_s()))
                case StopProcess():
                    self._stop(action)
        match self._slots.appetite(now_s):
            case Readiness.IDLE:
                self._subscriber.idle()
            case Readiness.FULL:
                self._subscriber.full()
        if self._slots.draining and self._slots.idle and not self._done.done():
            self._done.set_result(None)

    def _claim(self, action: Claim) -> None:
        call = functions.claim(
            self._policy,
            self._name,
            self._config.queues,
            action.n,
            action.token,
            nth=action.nth,
            again=action.again,
        )
        self._asked_for(action)
        self._store.send(call, partial(self._claimed, monotonic_s()))

    def _finish(self, action: Finish, claim: Claim | None) -> None:
        if failpoint.ACTIVE:
            failpoint.reach("before_complete")
        wish = None if claim is None else functions.ClaimRequest(self._config.queues, claim.n, claim.token, claim.nth)
        call = functions.finish(self._policy, self._name, action.ended, cut=action.cut, claim=wish)
        if claim is not None:
            self._asked_for(claim)
        fences, sent_s = [ended.fence for ended in action.ended], monotonic_s()

        def finished(reply: functions.Finished | StoreError) -> None:
            self._reported("finish", fences, reply)
            if claim is None:
                return
            if isinstance(reply, StoreError):
                self._claimed(sent_s, reply)
                if reply.kind == "full":
                    self._slots.wakeup()  # with outputs that are cut it is taken, and so is a claim
            else:
                assert reply.claims is not None
                self._claimed(sent_s, reply.claims)

        self._store.send(call, finished)

    def _asked_for(self, claim: Claim) -> None:
        self._claims += 1
        self._expected, self._early = self._early, 0
        if not claim.again:
            self._subscriber.asked()

    def _claimed(self, sent_s: float, reply: functions.Claims | StoreError) -> None:
        if isinstance(reply, StoreError):
            self._slots.claim_failed(stored=reply.stored)
            log.warning("claim=failed kind=%s error=%r", reply.kind, str(reply))
        else:
            if failpoint.ACTIVE and reply.tasks:
                failpoint.reach("after_claim")
            self._given += len(reply.tasks)
            unsure = self._slots.claimed(reply.tasks, sent_s, more=reply.more)
            if unsure:
                self._store.confirm(partial(self._stored, unsure))
            if reply.tasks and not self._spawning:
                self._spawn_next()
            if len(reply.tasks) < self._expected and "again" not in self._timers:
                self._timers["again"] = self._loop.call_later(2 * topics.EARLY_US / 1e6, self._look_again)
        self._soon()

    def _stored(self, fences: list[Fence], sure: bool) -> None:
        if not sure:
            log.warning("claim=unconfirmed tasks=%d: handed back; they may be started only once", len(fences))
        self._slots.stored(fences, monotonic_s(), sure=sure)
        if not self._spawning:
            self._spawn_next()
        self._soon()

    def _reported(
        self, what: str, fences: list[Fence], reply: functions.Statuses | functions.Finished | StoreError
    ) -> None:
        if isinstance(reply, StoreError):
            self._slots.not_confirmed(fences, full=reply.kind == "full")
            log.warning(
                "%s=failed attempts=%d kind=%s error=%r retrying=yes", what, len(fences), reply.kind, str(reply)
            )
        else:
            if failpoint.ACTIVE and what == "finish":
                failpoint.reach("after_complete")
            answers = dict(zip(fences, reply.answers, strict=True))
            for fence, answer in answers.items():
                if answer == "fenced":
                    self._tell_fenced(what, fence, self._slots.queue_of(fence))
            damaged = [fence for fence, answer in answers.items() if answer == functions.DAMAGED]
            if damaged:
                self._reported(what, damaged, INDEX_DAMAGED)
            unsure = self._slots.answered([fence for fence in fences if fence not in damaged])
            if unsure:
                self._store.confirm(partial(self._settled, unsure))
        self._soon()

    def _settled(self, fences: list[Fence], sure: bool) -> None:
        if sure:
            self._slots.confirmed(fences)
        else:
            self._slots.not_confirmed(fences)
        self._soon()

    def _extended(self, action: Extend, sent_s: float, reply: functions.Statuses | StoreError) -> None:
        if isinstance(reply, StoreError):
            self._slots.extend_failed()
            log.warning("extend=failed held=%d kind=%s error=%r", len(action.held), reply.kind, str(reply))
        else:
            if functions.DAMAGED in reply.answers:
                held = reply.answers.count(functions.DAMAGED)
                log.warning("extend=failed held=%d kind=%s error=%r", held, INDEX_DAMAGED.kind, str(INDEX_DAMAGED))
            for fence in self._slots.extended(action, reply.answers, sent_s):
                attempt = self._attempts.get(fence)  # none if it was not started yet
                self._tell_fenced("attempt", fence, attempt.queue if attempt is not None else "")
            if not self._spawning:
                self._spawn_next()
        self._soon()

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn_next(self) -> None:
        """One a turn of the loop, so that ends and answers are seen between two of them."""
        self._spawning = False
        found = self._slots.next_to_spawn(monotonic_s())
        if found is None:
            return
        fence, claimed = found
        self._spawning = True
        self._loop.call_soon(self._spawn_next)
        attempt = RunningAttempt(self._conditions, fence, claimed, on_report=self._ended, on_shortage=self._short)
        self._attempts[fence] = attempt
        attempt.start()
        if attempt.spawned:
            self._slots.started()
            if failpoint.ACTIVE:
                failpoint.reach("after_spawn")

    def _ended(self, fence: Fence, report: Report) -> None:
        if failpoint.ACTIVE:
            failpoint.reach("after_exit")
        del self._attempts[fence]
        self._slots.ended(fence, report)
        self._soon()

    def _short(self, fence: Fence, why: str) -> None:
        queue = self._attempts.pop(fence).queue
        self._slots.shortage(fence, monotonic_s(), why)
        log.error(
            "spawn=failed task=%s attempt=%d queue=%s worker=%s error=%r: handed back; claiming pauses",
            fence.id,
            fence.number,
            queue,
            self._name,
            why,
        )
        self._soon()

    def _stop(self, action: StopProcess) -> None:
        attempt = self._attempts.get(action.fence)
        if attempt is not None:
            attempt.stop(action.why)

    # ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _signalled(self) -> None:
        """First: drain. Second: stop what runs now. Third: without grace."""
        self._signals += 1
        if self._signals == 1:
            self._on_stopping()
            log.info("worker=draining running=%d drain_timeout_s=%g", self._slots.busy, self._config.drain_timeout)
            self._slots.drain()
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
        log.info("worker=stopping running=%d kill_grace_s=%g", self._slots.busy, self._config.kill_grace)
        self._timers["give_up"] = self._loop.call_later(self._config.kill_grace + DELIVER_S, self._give_up)
        self._slots.stop_all()
        self._flush()

    def _give_up(self) -> None:
        log.error(
            "worker=leaving running=%d unconfirmed=%d: Redis has not confirmed them; their leases will run out",
            self._slots.busy,
            self._slots.unconfirmed,
        )
        if not self._done.done():
            self._done.set_result(None)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error in one of our callbacks may have lost track of an attempt, whose lease would be renewed for ever.

        So the worker ends, the guard ends what runs, and the leases run out.
        """
        loop.default_exception_handler(context)
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception) and not self._done.done():
            log.critical("worker=broken error=%r: leaving", repr(error))
            self._done.set_exception(error)

    def _tell_fenced(self, what: str, fence: Fence, queue: str) -> None:
        log.warning(
            "%s=fenced task=%s attempt=%d queue=%s worker=%s: its lease was given away",
            what,
            fence.id,
            fence.number,
            queue,
            self._name,
        )

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _heartbeat(self) -> bytes:
        draining = self._slots.draining
        facts = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "queues": [] if draining else list(self._config.queues),
            "slots": self._config.concurrency,
            "busy": self._slots.busy,
            "bin_path": list(self._config.bin_path),
            "unfit": self._slots.unfit,
        }
        return json.dumps(facts).encode()

    async def _families(self) -> list[Family]:
        assert self._figures is not None
        slots, reload = self._slots, self.reload
        reloads = {} if reload is None else {"done": reload.done, "refused": reload.refused}
        now = metrics.WorkerFigures(
            slots=self._config.concurrency,
            busy=slots.busy,
            unconfirmed=slots.unconfirmed,
            draining=slots.draining,
            unfit=bool(slots.unfit),
            wakeups=self._wakeups,
            claims=self._claims,
            claimed=self._given,
            brokers=self._subscriber.connected,
        )
        return [
            *daemon_metrics.families("worker", self._name, self._config.namespace, logs.lines, reloads),
            *metrics.of_worker(now),
            *self._figures.families(),
            *call_metrics.families(self._call_times, self._store),
        ]

    def _trouble(self) -> list[str]:
        """What there is to be ready for."""
        trouble = [f"redis ({link.purpose}): {link.problem or 'not yet'}" for link in self._store.links if not link.up]
        if self._slots.unfit:
            trouble.append(f"no process can be started: {self._slots.unfit}")
        return ["it is stopping", *trouble] if self._slots.draining else trouble


def _configured(config: WorkerConfig) -> dict[str, Any]:
    """What the configuration says of attempts."""
    return {
        "bin_path": config.bin_path,
        "work_dir": config.work_dir,
        "keep_stderr": config.stderr == "keep",
        "time_limit_ms": round(config.task_run_time * 1000),
        "kill_grace_s": config.kill_grace,
        "max_output_bytes": config.max_output_bytes,
    }
