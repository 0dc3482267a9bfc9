"""Huey: one process of threads; an instant is an `eta`, which its scheduler looks for once a second."""

from __future__ import annotations

import datetime
from typing import Any

import redis
from huey import RedisHuey

from tests.bench.adapters import base

queue = RedisHuey("bench", url=base.REDIS)


@queue.task()
def run(argv: list[str]) -> str:
    return base.execute(argv)


class Huey(base.ContestantAdapter):
    config = f"{base.SLOTS} threads"
    packages = ("huey", "redis", "hiredis")

    def workers(self) -> list[list[str]]:
        return [base.script("huey_consumer", "tests.bench.adapters.huey.queue", "-w", str(base.SLOTS), "-q")]

    def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS)

    def submit(self, argv: list[str]) -> Any:
        return run(argv)

    def submit_at(self, argv: list[str], at: float) -> Any:
        return run.schedule((argv,), eta=datetime.datetime.fromtimestamp(at, datetime.UTC))

    def wait(self, task: Any) -> str:
        return str(task.get(blocking=True, timeout=60))

    def finished(self, _: int) -> int:
        results: Any = self._redis.hlen("huey.results.bench")
        return int(results)


adapter = Huey
