"""Dramatiq: processes of threads, with its middleware for results; an instant is a delay."""

from __future__ import annotations

import time
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.bench.adapters import base

broker = RedisBroker(url=base.REDIS)
broker.add_middleware(Results(backend=RedisBackend(url=base.REDIS), store_results=True))
dramatiq.set_broker(broker)

PROCESSES = 2


@dramatiq.actor
def run(argv: list[str]) -> str:
    return base.execute(argv)


class Dramatiq(base.ContestantAdapter):
    config = f"{PROCESSES} processes of {base.SLOTS // PROCESSES} threads; middleware Results"
    packages = ("dramatiq", "redis", "hiredis")

    def workers(self) -> list[list[str]]:
        options = ["-p", str(PROCESSES), "-t", str(base.SLOTS // PROCESSES)]
        return [base.script("dramatiq", *options, "tests.bench.adapters.dramatiq")]

    def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS)

    def submit(self, argv: list[str]) -> Any:
        return run.send(argv)

    def submit_at(self, argv: list[str], at: float) -> Any:
        return run.send_with_options(args=(argv,), delay=max(0, round((at - time.time()) * 1000)))

    def wait(self, task: Any) -> str:
        return str(task.get_result(block=True, timeout=60_000))

    def finished(self, submitted: int) -> int:
        """A message is deleted when it has been acknowledged, after its result was stored."""
        left: Any = self._redis.hlen("dramatiq:default.msgs")
        return submitted - int(left)


adapter = Dramatiq
