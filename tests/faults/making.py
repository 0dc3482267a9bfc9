"""Tasks whose lives make up a good history: calls, attempts, and the faults that explain the lost ones."""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from random import Random
from uuid import UUID

import msgspec

from tests.faults.history import (
    Asked,
    Execution,
    Fault,
    Function,
    Op,
    Reading,
    Tried,
    args_digest,
    digest,
)

LEASE_MS = 2_000
MAX_LOST = 3
OFFSET_MS = 1_800_000_000_000
"""Redis's clock minus the monotonic one."""
BEGIN_MS = OFFSET_MS + 1_000_000
WORKERS = ("host.11.aa", "host.12.bb", "host.13.cc")
CLIENTS = ("a", "b", "c")


def to_ns(redis_ms: float) -> int:
    return round((redis_ms - OFFSET_MS) * 1_000_000)


class GeneratedTask:
    """One task: what was asked, and what came of it."""

    def __init__(self, maker: Maker, **asked: object) -> None:
        self.maker, self.random = maker, maker.random
        self.id = str(UUID(int=self.random.getrandbits(128), version=4))
        self.args = (str(self.random.randrange(1000)), "x" * self.random.randrange(20))
        fields = {"name": "work", "args": args_digest(self.args), **asked}
        self.asked = msgspec.convert(fields, Asked)
        self.sent_ms = maker.now_ms = maker.now_ms + self.random.randrange(100, 500)
        self.created_ms = self.sent_ms + self.random.randrange(1, 4)
        self.acked_ms = self.created_ms + self.random.randrange(1, 5)
        self.attempts: list[Tried] = []
        self.stdout = digest(b"")
        self.size = 0

    @property
    def due_ms(self) -> int:
        return self.asked.start_ms or self.created_ms + self.asked.delay_ms

    @property
    def free_ms(self) -> int:
        """When the next attempt may be claimed at the earliest."""
        if not self.attempts:
            return max(self.due_ms, self.created_ms + 2)
        last = self.attempts[-1]
        failures = sum(attempt.reason in ("exit", "signal") for attempt in self.attempts)
        failed = last.reason in ("exit", "signal")
        return last.ended_ms + (self.asked.retry_ms[failures - 1] if failed else 0)

    def ran(self, reason: str = "", code: int = 0, *, cut: bool = False, took_ms: int | None = None) -> None:
        """An attempt that came to its end and was recorded so."""
        claimed_ms = self.free_ms + self.random.randrange(0, 30)
        worker = self.random.choice(WORKERS)
        took_ms = self.random.randrange(1, 200) if took_ms is None else took_ms
        start_ms = claimed_ms + self.random.uniform(0.5, 4)
        end_ms = start_ms + took_ms
        self.stdout = self._execution(worker, start_ms, end_ms, code)
        self.size = int(self.stdout.split(":")[1])
        if cut:
            self.size = 5_000_000
            self.maker.executions[-1] = msgspec.structs.replace(self.maker.executions[-1], out="12345678:5000000")
        self._tried(worker, claimed_ms, int(end_ms) + 2, reason, code)

    def lost(self, what: str, *, ends: bool = False, runs: bool = True, next_ran_ms: int = 0) -> None:
        """An attempt whose worker was hurt; with `ends` it goes on meanwhile, and is told of its fence later."""
        claimed_ms = self.free_ms + self.random.randrange(0, 30)
        worker = self.random.choice(WORKERS)
        start_ms = claimed_ms + self.random.uniform(0.5, 4)
        lost_ms = claimed_ms + LEASE_MS + self.random.randrange(0, 400)
        if runs:
            self._execution(worker, start_ms, lost_ms + next_ran_ms if ends else None, 0)
        self.maker.fault(what, claimed_ms + self.random.randrange(1, 1000), self.random.randrange(50, 700))
        self._tried(worker, claimed_ms, lost_ms, "lost", None)

    def released(self) -> None:
        claimed_ms = self.free_ms + self.random.randrange(0, 30)
        self._tried(
            self.random.choice(WORKERS), claimed_ms, claimed_ms + self.random.randrange(1, 50), "released", None
        )

    def ended(self, state: str, reason: str = "", at_ms: int = 0) -> Reading:
        finished_ms = at_ms or self.attempts[-1].ended_ms + self.random.randrange(0, 3)
        output = self.attempts and self.attempts[-1].reason in ("", "exit", "no_retry")
        return Reading(
            state=state,
            created_ms=self.created_ms,
            due_ms=self.due_ms,
            args=self.asked.args,
            reason=reason,
            attempt=len(self.attempts),
            finished_ms=finished_ms,
            stdout=(digest(b"kept") if self.size > 2**20 else self.stdout) if output else digest(b""),
            stderr=digest(b""),
            stdout_size=self.size if output else 0,
            attempts=tuple(self.attempts),
        )

    def _execution(self, worker: str, start_ms: float, end_ms: float | None, code: int) -> str:
        number, pid = len(self.attempts) + 1, next(self.maker.pids)
        out = digest(f"{self.id} {number} {pid}".encode())
        begun = {"id": self.id, "attempt": number, "pid": pid, "worker": worker}
        found = {"args": self.asked.args, "stdin": self.asked.stdin}
        lines = [{**begun, **found, "event": "start", "mono_ns": to_ns(start_ms)}]
        if end_ms is not None:
            told = {"exit": code, "out": out, "err": digest(b"")}
            lines.append({**begun, **told, "event": "end", "mono_ns": to_ns(end_ms)})
        self.maker.executions += msgspec.convert(lines, list[Execution])
        return out

    def _tried(self, worker: str, claimed_ms: int, ended_ms: int, reason: str, code: int | None) -> None:
        number = len(self.attempts) + 1
        self.attempts.append(
            Tried(
                number=number,
                worker=worker,
                started_ms=claimed_ms,
                ended_ms=ended_ms,
                reason=reason,
                exit_code=code,
            )
        )


class Maker:
    """Where tasks note what happens to them; each begins a while after the one before."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ms = BEGIN_MS
        self.ops: list[Op] = []
        self.executions: list[Execution] = []
        self.faults: list[Fault] = []
        self.readings: dict[str, Reading | None] = {}
        self.kinds: dict[str, list[str]] = defaultdict(list)
        self.pids = count(random.randrange(100, 30_000))
        self.numbers = {client: count(1) for client in CLIENTS}

    # ── clients and faults ──────────────────────────────────────────────────────────────────────────────────────────

    def call(self, f: Function, task_id: str, at_ms: float, took_ms: float, end: str, **told: object) -> None:
        """`told`: fields of the end, but for those that go with the invoke."""
        proc = self.random.choice(CLIENTS)
        begun = {"proc": proc, "op": next(self.numbers[proc]), "f": f, "id": task_id}
        asked: dict[str, object] = {name: told.pop(name) for name in ("asked", "origin") if name in told}
        calls: list[dict[str, object]] = [{**begun, **asked, "type": "invoke", "mono_ns": to_ns(at_ms)}]
        if end != "cut":
            calls.append({**begun, **told, "type": end, "mono_ns": to_ns(at_ms + took_ms)})
        self.ops += msgspec.convert(calls, list[Op])

    def submit(
        self, task: GeneratedTask, end: str = "ok", outcome: str = "created", code: str = "", after_ms: int = 0
    ) -> None:
        at_ms = task.sent_ms + after_ms
        told: dict[str, object] = {"outcome": outcome, "ack": "fsync"}
        if end != "ok":
            told = {"code": code, "stored": "no" if end == "fail" else "unknown"}
        self.call("submit", task.id, at_ms, task.acked_ms - task.sent_ms, end, asked=task.asked, **told)

    def fault(self, what: str, at_ms: int, took_ms: int) -> None:
        n = len(self.faults)
        self.faults.append(Fault(fault=what, event="start", mono_ns=to_ns(at_ms), n=n))
        self.faults.append(Fault(fault=what, event="stop", mono_ns=to_ns(at_ms + took_ms), n=n))

    def done(self, kind: str, task: GeneratedTask, reading: Reading) -> None:
        """Note how it ended; a client reads it while it is not over, and when it is."""
        self.readings[task.id] = reading
        self.kinds[kind].append(task.id)
        living = msgspec.structs.replace(reading, state="ready", finished_ms=0, attempt=0, attempts=(), stdout="")
        self.call("result", task.id, task.acked_ms, 1, "ok", reading=living)
        read_ms = reading.finished_ms + self.random.randrange(1, 200)
        for _ in range(self.random.randrange(1, 3)):
            self.call("result", task.id, read_ms, 2, "ok", reading=reading)
