"""kingtask through the blocking client; pipelined singles through a bare DEALER, as from any language."""

from __future__ import annotations

import os
from typing import Any

import redis

from kingtask import Client, TaskSpec
from kingtask.client.handles import Task
from kingtask.store.keys import Keys
from tests.bench.adapters import base, dealer

BROKER = os.environ.get("BENCH_BROKER", "tcp://127.0.0.1:9595")
RETRY = (5, 8, 9)


class Blocking(base.ContestantAdapter):
    config = (
        f"one broker, one worker, concurrency {base.SLOTS}; Client; pipelined: DEALER, {dealer.IN_FLIGHT} in flight"
    )
    packages = ("pyzmq", "redis", "hiredis", "msgpack", "msgspec")
    at_once = 20_000
    """It cuts them into requests of 1,000 by itself, and has several on their way."""

    def open(self) -> None:
        self._client = Client(BROKER, timeout=60)
        self._redis = redis.Redis.from_url(base.REDIS)

    def submit(self, argv: list[str]) -> Task:
        return self._client.submit("probe", argv[1:], retry=RETRY)

    def submit_many(self, argvs: list[list[str]]) -> None:
        for outcome in self._client.submit_many(TaskSpec(name="probe", args=tuple(a[1:]), retry=RETRY) for a in argvs):
            outcome.accepted()

    def submit_at(self, argv: list[str], at: float) -> Task:
        return self._client.submit("probe", argv[1:], retry=RETRY, at=at)

    def submit_at_many(self, argvs: list[list[str]], at: float) -> None:
        specs = (
            TaskSpec(name="probe", args=tuple(argv[1:]), retry=RETRY, start_at=at + i / 1000)
            for i, argv in enumerate(argvs)
        )
        for outcome in self._client.submit_many(specs):
            outcome.accepted()

    def pipelined(self, n: int) -> float:
        return dealer.pipelined(BROKER, dealer.submits(n))

    def wait(self, task: Task) -> str:
        return task.result(60)

    def finished(self, _: int) -> int:
        return succeeded(self._redis)


adapter = Blocking


def succeeded(client: Any) -> int:
    """The queue's counter, read past the broker so that looking costs it nothing."""
    return int(client.hget(f"{Keys('kingtask').prefix}counts:default", "succeeded") or 0)
