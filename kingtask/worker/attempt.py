"""One attempt: from a claim to a process, from its end to the report that Redis gets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kingtask.errors import describe_error as told_of
from kingtask.store import codec
from kingtask.store.functions import Claimed, EndedTask, Fence
from kingtask.worker import environment
from kingtask.worker.exec.capture import Capture
from kingtask.worker.exec.epoll import EpollSet
from kingtask.worker.exec.executable import Shortage, Unusable, find, leads_out
from kingtask.worker.exec.oom import KilledForMemory, explained
from kingtask.worker.exec.outcome import AttemptOutcome, Stop, judge
from kingtask.worker.exec.process import Process
from kingtask.worker.exec.spawn import PLAIN, Manner, Spawned, TextBusy, Unwatched, input_file, kill, spawn
from kingtask.worker.metrics import AttemptFigures
from kingtask.worker.outbox import Report
from kingtask.worker.reap.orphans import Orphans
from kingtask.worker.sandbox.isolate import Isolation, Place

log = logging.getLogger("kingtask.worker")

BUSY_TRIES = 5
BUSY_PAUSE_S = 0.1
"""An executable that is being written is looked at again so often before the attempt fails."""

LEFT_BEHIND = "it left a process behind that held its output and was killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is the same for all attempts of a worker."""

    loop: asyncio.AbstractEventLoop
    watch: EpollSet
    children: Orphans
    worker: str
    bin_path: tuple[str, ...]
    work_dir: str | None
    environment: Mapping[str, str]
    keep_stderr: bool
    time_limit_ms: int
    kill_grace_s: float
    max_output_bytes: int
    null: int
    """A descriptor of /dev/null, read as standard input by what was sent none."""
    now_ms: Callable[[], int]
    """Redis's clock."""
    killed: KilledForMemory
    isolation: Isolation | None = None
    figures: AttemptFigures | None = None
    """Where to count, if that is wished."""


class RunningAttempt:
    """Calls `on_report(fence, report)` once, possibly before `start` returns; or `on_shortage(fence, why)` instead."""

    __slots__ = (
        "_at",
        "_began_s",
        "_claimed",
        "_fence",
        "_limit_ms",
        "_on_report",
        "_on_shortage",
        "_place",
        "_process",
        "_spec",
        "_started_ms",
        "_stopped",
        "_timer",
        "_tries",
    )

    def __init__(
        self,
        conditions: Conditions,
        fence: Fence,
        claimed: Claimed,
        *,
        on_report: Callable[[Fence, Report], None],
        on_shortage: Callable[[Fence, str], None],
    ) -> None:
        self._at = conditions
        self._fence = fence
        self._claimed = claimed
        self._on_report = on_report
        self._on_shortage = on_shortage
        self._process: Process | None = None
        self._place: Place | None = None
        self._spec: codec.Execution | None = None
        self._started_ms = 0
        self._began_s = 0.0
        self._limit_ms = 0
        self._stopped: Stop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tries = 0

    @property
    def queue(self) -> str:
        return self._claimed.queue

    @property
    def spawned(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Spawn; blocks until the exec (some 0.3 ms)."""
        self._tries += 1
        self._timer = None
        # Redis's clock as seen from here may be a reply's travel behind: no attempt began before it was claimed.
        self._started_ms = max(self._at.now_ms(), self._claimed.claimed_ms)
        self._began_s = self._at.loop.time()
        try:
            spawned = self._spawn()
        except TextBusy as error:
            if self._tries < BUSY_TRIES:
                self._timer = self._at.loop.call_later(BUSY_PAUSE_S, self.start)
            else:
                self._fail(AttemptOutcome("failed", "exec", f"cannot execute it: {error}"))
        except Shortage as error:
            self._on_shortage(self._fence, f"this host could not start a process: {error}")
        except Unwatched as error:
            self._at.children.scan()
            why = f"this host could not watch what it had started, and killed it: {error}"
            if self._claimed.fail_if_lost:
                self._fail(AttemptOutcome("final", "interrupted", why))
            else:
                self._on_shortage(self._fence, why)
        except Unusable as error:
            self._fail(AttemptOutcome("failed", error.reason, str(error)))
        except Exception as error:  # noqa: BLE001  (whatever is wrong with one task must not cost the worker a slot)
            self._tell(logging.ERROR, "attempt=broken", exc_info=True)
            self._fail(
                AttemptOutcome("final", "exec", f"the worker could not make sense of this task: {told_of(error)}")
            )
        else:
            at = self._at
            at.children.add(spawned.popen.pid, self._fence.id, self._fence.number)
            self._process = Process(at.loop, at.watch, at.children, spawned, at.max_output_bytes, self._ended)
            self._timer = at.loop.call_later(self._limit_ms / 1000, self.stop, "time_limit")
            claimed = self._claimed
            if at.figures is not None:
                at.figures.started(
                    claimed.queue,
                    due_ms=claimed.due_ms,
                    claimed_ms=claimed.claimed_ms,
                    started_ms=self._started_ms,
                )
            if log.isEnabledFor(logging.DEBUG):
                self._tell(logging.DEBUG, "attempt=started pid=%d", spawned.popen.pid)

    def stop(self, why: Stop) -> None:
        """End it, unless it has ended by itself; the first reason counts. `fenced` gives no grace."""
        if self._process is not None:
            if not self._process.has_exited:
                self._stopped = self._stopped or why
                self._process.stop(0 if why == "fenced" else self._at.kill_grace_s)
        elif self._timer is not None:  # between two tries to start it
            self._timer.cancel()
            self._timer = None
            if why == "cancelled":
                self._fail(AttemptOutcome("failed", "cancelled", ""))
            else:
                self._on_report(self._fence, release_record(self._at, self._claimed, "the worker was stopping"))

    def kill(self) -> None:
        """Cut the grace short."""
        if self._process is not None:
            self._process.stop(0)

    def _spawn(self) -> Spawned:
        if self._spec is None:
            self._spec = codec.unpack_spec(self._claimed.spec)
            self._limit_ms = self._spec.time_limit_ms or self._at.time_limit_ms
        spec, claimed = self._spec, self._claimed
        path = find(claimed.name, self._at.bin_path)
        if self._at.isolation is not None:
            return self._spawn_apart(self._at.isolation, path)
        return self._execute(path, self._variables(self._at.environment, spec.env), self._at.work_dir)

    def _spawn_apart(self, isolation: Isolation, path: str) -> Spawned:
        assert self._spec is not None
        request = self._spec.env
        if isolation.launcher and request and "=" in path:
            raise Unusable(
                "not_executable", f"{path}: env(1) would take it for a variable; another bin_path, without ="
            )
        self._place = place = isolation.take()
        try:
            common = {**self._at.environment, **isolation.variables(place)}
            variables = self._variables(common, {} if isolation.launcher else request, place.directory)
            work_dir = place.directory or self._at.work_dir
            return self._execute(path, variables, work_dir, isolation.manner(place, request))
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        """Give back what it had to itself, if anything."""
        if self._place is not None and self._at.isolation is not None:
            place, self._place = self._place, None
            self._at.isolation.give_back(place)

    def _variables(
        self, common: Mapping[str, str], request: Mapping[str, str], directory: str | None = None
    ) -> dict[str, str]:
        claimed = self._claimed
        return environment.of_attempt(
            common,
            request,
            task_id=claimed.id,
            number=claimed.number,
            queue=claimed.queue,
            due_ms=claimed.due_ms,
            deadline_ms=self._started_ms + self._limit_ms,
            directory=directory,
        )

    def _execute(
        self, path: str, variables: Mapping[str, str], work_dir: str | None, manner: Manner = PLAIN
    ) -> Spawned:
        assert self._spec is not None
        spec, claimed = self._spec, self._claimed
        stdin = input_file(spec.stdin) if spec.stdin else self._at.null
        try:
            spawned = spawn(path, spec.args, variables, stdin, work_dir, manner)
        finally:
            if spec.stdin:
                os.close(stdin)
        if leads_out(path, claimed.name, self._at.bin_path):
            kill(spawned.popen)
            spawned.close()
            raise Unusable("not_executable", f"{path} was exchanged as it was started, and leads out of bin_path")
        return spawned

    def _ended(self, process: Process) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._leave()
        if process.left_behind:
            self._tell(
                logging.WARNING,
                "attempt=left_processes out_of_reach=%s: they held its output after its exit and were killed",
                "yes" if process.escaped else "no",
            )
        if self._stopped == "released":
            packed = _record(self._at, self._claimed, self._started_ms, "released", "the worker was stopped", process)
            self._tell(logging.INFO, "attempt=released returncode=%d", process.returncode)
            self._count("released", "released", process)
            self._on_report(self._fence, packed)
            return
        assert self._spec is not None
        verdict = judge(
            process.returncode,
            process.stderr.kept(),
            process.stderr.size,
            keep_stderr=self._spec.stderr == "keep" if self._spec.stderr else self._at.keep_stderr,
            stopped=self._stopped,
            limit_s=self._limit_ms / 1000,
        )
        self._report(self._explained(verdict, process), process)

    def _explained(self, verdict: AttemptOutcome, process: Process) -> AttemptOutcome:
        """Say more of a failure, where more is known than how it ended."""
        if verdict.reason not in ("exit", "signal"):
            return verdict
        isolation, stderr = self._at.isolation, process.stderr.kept()
        if isolation is not None:
            why = isolation.not_executed(process.returncode, stderr)
            if why:
                return AttemptOutcome("failed", "exec", f"cannot execute {self._claimed.name}: {why}")
            if process.returncode == -signal.SIGXCPU and isolation.limits.cpu_time is not None:
                used = f"it used the {isolation.limits.cpu_time:,} s of CPU time that a process may have"
                return verdict._replace(message=f"{verdict.message}: {used} (limits.cpu_time)")
        limit = None if isolation is None else isolation.limits.memory
        return explained(verdict, process.returncode, stderr, process.peak_bytes, limit, self._at.killed)

    def _fail(self, verdict: AttemptOutcome) -> None:
        self._report(verdict, None)

    def _report(self, verdict: AttemptOutcome, process: Process | None) -> None:
        claimed = self._claimed
        nothing = Capture(0)
        message = verdict.message
        if process is not None and process.left_behind and (message or not verdict.reason):
            message = f"{message}; {LEFT_BEHIND}" if message else LEFT_BEHIND
        stdout = process.stdout if process is not None else nothing
        stderr = process.stderr if process is not None else nothing
        if verdict.verdict != "succeeded":
            # What a task wrote belongs to whoever may read its result, and `set -x` writes every secret.
            told = "" if verdict.reason == "stderr" else verdict.message
            code = process.returncode if process is not None else "none"
            self._tell(logging.INFO, "attempt=failed reason=%s returncode=%s message=%r", verdict.reason, code, told)
        elif log.isEnabledFor(logging.DEBUG):
            self._tell(logging.DEBUG, "attempt=succeeded")
        self._count(_outcome(verdict, self._stopped), verdict.reason, process)
        ended = EndedTask(
            self._fence,
            verdict.verdict,
            verdict.reason,
            _record(self._at, claimed, self._started_ms, verdict.reason, message, process),
            stdout.kept(),
            stderr.kept(),
            stdout.size,
            stderr.size,
        )
        self._on_report(self._fence, ended)

    def _tell(self, level: int, event: str, *args: object, exc_info: bool = False) -> None:
        """A line about this attempt: the event, which it is, and what else `event` has, of which `args` are."""
        event, _, more = event.partition(" ")
        line = f"{event} task=%s attempt=%d name=%s queue=%s worker=%s {more}".rstrip()
        claimed = self._claimed
        whose = (claimed.id, claimed.number, claimed.name, claimed.queue, self._at.worker)
        log.log(level, line, *whose, *args, exc_info=exc_info)

    def _count(self, outcome: str, reason: str, process: Process | None) -> None:
        figures = self._at.figures
        if figures is None:
            return
        figures.ended(self._claimed.queue, outcome, reason)
        if process is not None and process.exited_s is not None:
            figures.ran(self._claimed.queue, process.exited_s - self._began_s)


def _outcome(verdict: AttemptOutcome, stopped: Stop | None) -> str:
    """As figures tell it; what was fenced is somebody else's, and has no outcome here."""
    if stopped in ("cancelled", "fenced"):
        return stopped
    return "succeeded" if verdict.verdict == "succeeded" else "failed"


def release_record(at: Conditions, claimed: Claimed, why: str) -> bytes:
    """The record of an attempt that is handed back unstarted."""
    return _record(at, claimed, claimed.claimed_ms, "released", why, None)


def _record(
    at: Conditions, claimed: Claimed, started_ms: int, reason: str, message: str, process: Process | None
) -> bytes:
    code = process.returncode if process is not None else None
    ended_ms = at.now_ms()
    if process is not None and process.exited_s is not None:
        ended_ms -= round((at.loop.time() - process.exited_s) * 1000)
    return codec.pack_attempt(
        claimed.number,
        at.worker,
        started_ms,
        max(ended_ms, started_ms),
        reason,
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        message=message,
        stderr=process.stderr.kept() if process is not None else b"",
    )
