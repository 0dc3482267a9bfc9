"""SAQ: one asyncio process; an instant is `scheduled`, in whole seconds."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import redis
import saq

from tests.bench.adapters import base

AT_ONCE = 100
"""Coroutines that submit, where there is no call for many tasks."""

queue = saq.Queue.from_url(base.REDIS)


async def run(_context: Any, *, argv: list[str]) -> str:
    return await base.execute_async(argv)


settings = {"queue": queue, "functions": [run], "concurrency": base.SLOTS}


class Saq(base.ContestantAdapter):
    config = f"concurrency {base.SLOTS}; in bulk: {AT_ONCE} coroutines; instants rounded up, so that none is early"
    packages = ("saq", "redis", "hiredis")

    def workers(self) -> list[list[str]]:
        return [base.script("saq", "tests.bench.adapters.saq.settings", "--quiet")]

    async def open(self) -> None:
        self._redis = redis.Redis.from_url(base.REDIS)
        await queue.connect()

    async def submit(self, argv: list[str]) -> Any:
        return await queue.enqueue("run", argv=argv)

    async def submit_many(self, argvs: list[list[str]]) -> None:
        for i in range(0, len(argvs), AT_ONCE):
            await asyncio.gather(*map(self.submit, argvs[i : i + AT_ONCE]))

    async def submit_at(self, argv: list[str], at: float) -> Any:
        return await queue.enqueue("run", argv=argv, scheduled=math.ceil(at))

    async def submit_at_many(self, argvs: list[list[str]], at: float) -> None:
        for i in range(0, len(argvs), AT_ONCE):
            await asyncio.gather(*(self.submit_at(argv, at) for argv in argvs[i : i + AT_ONCE]))

    async def wait(self, task: Any) -> str:
        await task.refresh(until_complete=60)
        return str(task.result)

    def finished(self, submitted: int) -> int:
        left: Any = self._redis.zcard("saq:default:incomplete")
        return submitted - int(left)


adapter = Saq
