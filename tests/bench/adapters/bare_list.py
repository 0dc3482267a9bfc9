"""Floor: the least that a Redis list and `subprocess.run` can do; no broker, no retries, no recovery.

Its workers are this module run as a program.
"""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any

import redis

from tests.bench.adapters import base

QUEUE, SCHEDULE, DONE = "bench:queue", "bench:schedule", "bench:done"
KEEP_S = 600


class ListFloor(base.ContestantAdapter):
    config = f"LPUSH; {base.SLOTS} processes of BRPOP, subprocess.run, LPUSH of the output; BLPOP"
    packages = ("redis", "hiredis")

    def workers(self) -> list[list[str]]:
        return [[sys.executable, "-m", "tests.bench.adapters.bare_list"]] * base.SLOTS

    def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS, socket_timeout=None)

    def submit(self, argv: list[str]) -> str:
        task, text = _entry(argv)
        self._redis.lpush(QUEUE, text)
        return task

    def submit_many(self, argvs: list[list[str]]) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for argv in argvs:
                pipeline.lpush(QUEUE, _entry(argv)[1])
            pipeline.execute()

    def submit_at_many(self, argvs: list[list[str]], at: float) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for i, argv in enumerate(argvs):
                pipeline.zadd(SCHEDULE, {_entry(argv)[1]: at + i / 1000})
            pipeline.execute()

    def wait(self, task: str) -> str:
        found: Any = self._redis.blpop([f"bench:result:{task}"], 60)
        if found is None:
            raise TimeoutError(task)
        return bytes(found[1]).decode()

    def finished(self, _: int) -> int:
        done: Any = self._redis.get(DONE)
        return int(done or 0)


adapter = ListFloor


def _entry(argv: list[str]) -> tuple[str, str]:
    task = uuid.uuid4().hex
    return task, json.dumps([task, argv])


def work() -> None:
    client = redis.Redis.from_url(base.REDIS, socket_timeout=None)
    while True:
        taken: Any = client.brpop([QUEUE])
        task, argv = json.loads(taken[1])
        out = base.execute(argv)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.lpush(f"bench:result:{task}", out)
            pipeline.expire(f"bench:result:{task}", KEEP_S)
            pipeline.incr(DONE)
            pipeline.execute()


if __name__ == "__main__":
    work()
