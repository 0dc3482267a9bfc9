"""Celery: prefork workers, results in Redis; an instant is an `eta`."""

from __future__ import annotations

import datetime
from typing import Any

import celery
import redis

from tests.bench.adapters import base

app = celery.Celery("bench", broker=base.REDIS, backend=base.REDIS)

PASSING = ("celery", "unacked", "unacked_index", "unacked_mutex")
"""Keys that come and go with the tasks; every other new one is a result."""


@app.task
def run(argv: list[str]) -> str:
    return base.execute(argv)


class Celery(base.ContestantAdapter):
    config = f"prefork, concurrency {base.SLOTS}; results in Redis"
    packages = ("celery", "kombu", "redis", "hiredis")

    def workers(self) -> list[list[str]]:
        options = ["--concurrency", str(base.SLOTS), "--loglevel", "WARNING"]
        return [base.script("celery", "-A", "tests.bench.adapters.celery", "worker", *options)]

    def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS)

    def submit(self, argv: list[str]) -> Any:
        return run.delay(argv)

    def submit_at(self, argv: list[str], at: float) -> Any:
        return run.apply_async((argv,), eta=datetime.datetime.fromtimestamp(at, datetime.UTC))

    def wait(self, task: Any) -> str:
        return str(task.get(timeout=60))

    def finished(self, _: int) -> int:
        keys: Any = self._redis.dbsize()
        passing: Any = self._redis.exists(*PASSING)
        return int(keys - passing)


adapter = Celery
