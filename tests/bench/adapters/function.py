"""Floor: kingtask's own function of the store, called straight from one client; the other hop of the two.

Calls are packed before the clock starts, so this is Redis's work and one round trip, and nothing else.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import redis

from kingtask import TaskSpec, policy
from kingtask.store import functions
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from tests.bench.adapters import base

BATCH = 200
"""Tasks a call: the bound of every function."""


class Function(base.ContestantAdapter):
    config = f"FCALL of the submit function, {BATCH} tasks a call in bulk, pipelined by 5; packed beforehand"
    packages = ("redis", "hiredis")

    def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS)
        self._meta = Keys("floor").meta
        self._redis.function_load(shipped().text)
        self._submit = shipped().function("submit")
        self.ask(functions.open_namespace(1, uuid.uuid4().hex))

    def ask(self, call: functions.FunctionCall) -> Any:
        name = shipped().function(call.function)
        return call.decode(self._redis.fcall(name, 1, self._meta, call.payload(0)))

    @staticmethod
    def prepare(argv: list[str]) -> bytes:
        return _packed([argv], 0.0)

    @staticmethod
    def prepare_many(argvs: list[list[str]], at: float = 0.0) -> list[bytes]:
        return [_packed(argvs[i : i + BATCH], at) for i in range(0, len(argvs), BATCH)]

    def submit(self, payload: bytes) -> None:
        self._redis.fcall(self._submit, 1, self._meta, payload)

    def submit_many(self, payloads: list[bytes]) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for payload in payloads:
                pipeline.fcall(self._submit, 1, self._meta, payload)
            pipeline.execute()

    def schedule_section(self, n: int, limit_s: float) -> dict[str, float]:
        """As everybody's, but that only the calls are timed."""
        at = time.time() + 3600
        taken_s, done = 0.0, 0
        while done < n and taken_s < limit_s:
            count = min(1_000, n - done)
            payloads = self.prepare_many([base.ARGV] * count, at + done / 1000)
            start = time.perf_counter()
            self.submit_many(payloads)
            taken_s += time.perf_counter() - start
            done += count
        return {"n": done, "seconds": taken_s}


adapter = Function


def _packed(argvs: list[list[str]], at: float) -> bytes:
    tasks = []
    for i, argv in enumerate(argvs):
        task = str(uuid.uuid4())
        start_at = at + i / 1000 if at else 0.0
        spec = TaskSpec(name="probe", id=task, args=tuple(argv[1:]), retry=(5, 8, 9), start_at=start_at)
        tasks.append(functions.prepare(task, spec))
    return functions.submit(policy.Policy(), tasks).payload(0)
