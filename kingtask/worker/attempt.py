"""One attempt: from a claim to a process, from the end of the process to the report for Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kingtask.config import WorkerConfig
from kingtask.config.sandbox_settings import first_unlisted
from kingtask.errors import describe_error
from kingtask.event import Event
from kingtask.store import codec
from kingtask.store.functions import Claimed, EndedTask, Fence
from kingtask.worker import environment
from kingtask.worker.exec.executable import Shortage, Unusable, find, leads_out
from kingtask.worker.exec.outcome import AttemptOutcome, Stop, explain_memory, judge
from kingtask.worker.exec.process import Host, Process
from kingtask.worker.exec.spawn import PLAIN, Spawned, TextBusy, Unwatched, input_file, kill, spawn
from kingtask.worker.outbox import Report
from kingtask.worker.sandbox.isolate import Isolation, Sandbox

if TYPE_CHECKING:
    from kingtask.worker.metrics import AttemptFigures

log = logging.getLogger("kingtask.worker")

BUSY_TRIES = 5
BUSY_PAUSE_S = 0.1
"""Tries to start an executable that is open for writing, and the pause between them, before the attempt fails."""

STOPPING = "the worker was stopping"
LEFT_BEHIND = "it left a process behind that held its output and was killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The settings that the attempts of a worker share. A running attempt keeps its own across a reload."""

    worker: str
    config: WorkerConfig
    file: str
    """The path of the configuration, for messages."""
    environment: Mapping[str, str]
    host: Host
    isolation: Isolation | None = None
    figures: AttemptFigures | None = None
    """None without `metrics_addr`."""


class RunningAttempt:
    """Calls `on_end` once, possibly before `start` returns; with a Shortage if the host could not start a process."""

    def __init__(
        self, conditions: Conditions, fence: Fence, claimed: Claimed, on_end: Callable[[Fence, Report | Shortage], None]
    ) -> None:
        self._at = conditions
        self._fence = fence
        self.claimed = claimed
        self._on_end = on_end
        self._process: Process | None = None
        self._sandbox: Sandbox | None = None
        self._spec: codec.Execution | None = None
        self._started_ms = 0
        self._began_s = 0.0
        self._limit_ms = 0
        self._stopped: Stop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tries = 0

    def start(self) -> bool:
        """Spawn the process; blocks until its exec (about 0.3 ms). Returns whether it was spawned."""
        host = self._at.host
        self._tries += 1
        self._timer = None
        # The estimate of Redis's clock may be behind by one reply's travel; no attempt begins before its claim.
        self._started_ms = max(host.now_ms(), self.claimed.claimed_ms)
        self._began_s = host.loop.time()
        try:
            spawned = self._spawn()
        except TextBusy as error:
            if self._tries < BUSY_TRIES:
                self._timer = host.loop.call_later(BUSY_PAUSE_S, self.start)
            else:
                self._report(AttemptOutcome("failed", "exec", f"cannot execute it: {error}"))
        except Shortage as error:
            self._fall_short(f"this host could not start a process: {error}")
        except Unwatched as error:
            host.orphans.scan()
            why = f"this host could not watch what it had started, and killed it: {error}"
            if self.claimed.fail_if_lost:
                self._report(AttemptOutcome("final", "interrupted", why))
            else:
                self._fall_short(why)
        except Unusable as error:
            self._report(AttemptOutcome(error.verdict, error.reason, str(error)))
        except Exception as error:
            log.exception(self._event("attempt=broken"))
            why = f"the worker could not make sense of this task: {describe_error(error)}"
            self._report(AttemptOutcome("final", "exec", why))
        else:
            self._started(spawned)
        finally:
            if self._process is None:
                self._release_sandbox()
        return self._process is not None

    def _started(self, spawned: Spawned) -> None:
        at, host, claimed = self._at, self._at.host, self.claimed
        pid = spawned.popen.pid
        host.orphans.add(pid, self._fence.id, self._fence.number)
        self._process = Process(host, spawned, at.config.max_output_bytes, self._ended)
        self._timer = host.loop.call_later(self._limit_ms / 1000, self.stop, "time_limit")
        if at.figures is not None:
            at.figures.started(claimed, self._started_ms)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(self._event("attempt=started", pid=pid))

    def stop(self, why: Stop) -> None:
        """Stop the process, unless it has exited; the first reason counts. `fenced` gives no grace."""
        if self._process is not None:
            if not self._process.has_exited:
                self._stopped = self._stopped or why
                self._process.stop(0 if why == "fenced" else self._at.config.kill_grace)
        elif self._timer is not None:  # between two tries to start it
            self._timer.cancel()
            self._timer = None
            if why == "cancelled":
                self._report(AttemptOutcome("failed", "cancelled", ""))
            else:
                release = pack_release(self._at.worker, self.claimed, STOPPING, self._at.host.now_ms())
                self._on_end(self._fence, release)

    def kill(self) -> None:
        """Cut the grace short."""
        if self._process is not None:
            self._process.stop(0)

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self) -> Spawned:
        claimed, config, isolation = self.claimed, self._at.config, self._at.isolation
        spec = self._spec = self._spec or codec.unpack_spec(claimed.spec)
        self._limit_ms = spec.time_limit_ms or round(config.task_run_time * 1000)
        if (name := first_unlisted(spec.env, config.task_env)) is not None:
            why = f"the task sets the variable {name}, which task_env in {self._at.file} does not allow"
            raise Unusable("env", why, "final")
        path = find(claimed.name, config.bin_path)
        common, request, manner, directory = self._at.environment, spec.env, PLAIN, None
        if isolation is not None:
            if isolation.launcher and request and "=" in path:
                raise Unusable(
                    "not_executable", f"{path}: env(1) would take it for a variable; another bin_path, without ="
                )
            sandbox = self._sandbox = isolation.acquire()
            common, manner = {**common, **isolation.variables(sandbox)}, isolation.manner(sandbox, request)
            request = {} if isolation.launcher else request
            directory = sandbox.directory
        variables = environment.of_attempt(
            common, request, claimed, deadline_ms=self._started_ms + self._limit_ms, directory=directory
        )
        stdin = input_file(spec.stdin) if spec.stdin else self._at.host.null
        try:
            spawned = spawn(path, spec.args, variables, stdin, directory or config.work_dir, manner)
        finally:
            if spec.stdin:
                os.close(stdin)
        if leads_out(path, claimed.name, config.bin_path):
            kill(spawned.popen)
            spawned.close()
            raise Unusable("not_executable", f"{path} was exchanged as it was started, and leads out of bin_path")
        return spawned

    def _release_sandbox(self) -> None:
        if self._sandbox is not None and self._at.isolation is not None:
            sandbox, self._sandbox = self._sandbox, None
            self._at.isolation.release(sandbox)

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ended(self, process: Process) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._release_sandbox()
        if process.left_behind:
            words = "they held its output after its exit and were killed"
            log.warning(self._event("attempt=left_processes", words, out_of_reach="yes" if process.escaped else "no"))
        if self._stopped == "released":
            log.info(self._event("attempt=released", returncode=process.returncode))
            self._count("released", "released")
            self._on_end(self._fence, self._pack("released", STOPPING))
            return
        assert self._spec is not None
        outcome = judge(
            process.returncode,
            process.stderr.kept(),
            process.stderr.size,
            keep_stderr=(self._spec.stderr or self._at.config.stderr) == "keep",
            stopped=self._stopped,
            limit_s=self._limit_ms / 1000,
        )
        if outcome.reason in ("exit", "signal"):
            outcome = self._explained(outcome, process)
        self._report(outcome)

    def _explained(self, outcome: AttemptOutcome, process: Process) -> AttemptOutcome:
        """Name the isolation or the want of memory, if the failure came from there."""
        isolation, stderr = self._at.isolation, process.stderr.kept()
        limit = None
        if isolation is not None:
            limit = isolation.limits.memory
            why = isolation.not_executed(process.returncode, stderr)
            if why:
                return AttemptOutcome("failed", "exec", f"cannot execute {self.claimed.name}: {why}")
            if process.returncode == -signal.SIGXCPU and isolation.limits.cpu_time is not None:
                used = f"it used the {isolation.limits.cpu_time:,} s of CPU time that a process may have"
                return outcome._replace(message=f"{outcome.message}: {used} (limits.cpu_time)")
        return explain_memory(
            outcome,
            stderr,
            oom_killed=process.returncode == -signal.SIGKILL and self._at.host.oom_kills.increased(),
            limit=limit,
            peak_bytes=process.peak_bytes,
            own_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def _fall_short(self, why: str) -> None:
        log.error(self._event("spawn=failed", "released; claiming pauses", error=why))
        self._on_end(self._fence, Shortage(why))

    def _report(self, outcome: AttemptOutcome) -> None:
        process, message, outputs = self._process, outcome.message, (b"", b"", 0, 0)
        if process is not None:
            outputs = (process.stdout.kept(), process.stderr.kept(), process.stdout.size, process.stderr.size)
            if process.left_behind and (message or not outcome.reason):
                message = f"{message}; {LEFT_BEHIND}" if message else LEFT_BEHIND
        if outcome.verdict != "succeeded":
            # Only a reader of the result may see the output of a task; `set -x` writes every secret to stderr.
            shown = "" if outcome.reason == "stderr" else outcome.message
            code = process.returncode if process is not None else "none"
            log.info(self._event("attempt=failed", reason=outcome.reason, returncode=code, message=shown))
        elif log.isEnabledFor(logging.DEBUG):
            log.debug(self._event("attempt=succeeded"))
        if self._stopped in ("cancelled", "fenced"):  # a fenced attempt has its outcome elsewhere
            self._count(self._stopped, outcome.reason)
        else:
            self._count("succeeded" if outcome.verdict == "succeeded" else "failed", outcome.reason)
        record = self._pack(outcome.reason, message)
        self._on_end(self._fence, EndedTask(self._fence, outcome.verdict, outcome.reason, record, *outputs))

    def _pack(self, reason: str, message: str) -> bytes:
        process, code = self._process, None
        ended_ms, stderr = self._at.host.now_ms(), b""
        if process is not None:
            code, stderr = process.returncode, process.stderr.kept()
            if process.exited_s is not None:
                ended_ms -= round((self._at.host.loop.time() - process.exited_s) * 1000)
        return codec.pack_attempt(
            self.claimed.number,
            self._at.worker,
            self._started_ms,
            max(ended_ms, self._started_ms),
            reason,
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            message=message,
            stderr=stderr,
        )

    def _event(self, name: str, words: str = "", /, **fields: object) -> Event:
        """Return an event with the fields of this attempt."""
        claimed = self.claimed
        attempt = {"task": claimed.id, "attempt": claimed.number, "name": claimed.name, "queue": claimed.queue}
        return Event(name, words, **attempt, worker=self._at.worker, **fields)

    def _count(self, outcome: str, reason: str) -> None:
        if self._at.figures is not None:
            self._at.figures.ended(self.claimed.queue, outcome, reason)
            if self._process is not None and self._process.exited_s is not None:
                self._at.figures.ran(self.claimed.queue, self._process.exited_s - self._began_s)


def pack_release(worker: str, claimed: Claimed, why: str, now_ms: int) -> bytes:
    """Pack the record of an attempt that is released without a start."""
    start_ms = claimed.claimed_ms
    return codec.pack_attempt(claimed.number, worker, start_ms, max(now_ms, start_ms), "released", message=why)
