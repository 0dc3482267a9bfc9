"""kingtask through the asyncio client."""

from __future__ import annotations

import asyncio
import time

import redis

from kingtask import AsyncClient, TaskSpec
from kingtask.client.handles import AsyncTask
from tests.bench.adapters import base, dealer
from tests.bench.adapters.kingtask import BROKER, RETRY, succeeded


class Async(base.ContestantAdapter):
    config = f"as kingtask; AsyncClient; pipelined: {dealer.IN_FLIGHT} coroutines"
    packages = ("pyzmq", "redis", "hiredis", "msgpack", "msgspec")

    def open(self) -> None:
        self._client = AsyncClient(BROKER, timeout=60)
        self._redis = redis.Redis.from_url(base.REDIS)

    async def submit(self, argv: list[str]) -> AsyncTask:
        return await self._client.submit("probe", argv[1:], retry=RETRY)

    async def submit_many(self, argvs: list[list[str]]) -> None:
        specs = (TaskSpec(name="probe", args=tuple(argv[1:]), retry=RETRY) for argv in argvs)
        for outcome in await self._client.submit_many(specs):
            outcome.accepted()

    async def submit_at(self, argv: list[str], at: float) -> AsyncTask:
        return await self._client.submit("probe", argv[1:], retry=RETRY, at=at)

    async def pipelined(self, n: int) -> float:
        left = iter(range(n))

        async def some() -> None:
            for _ in left:
                await self.submit(base.ARGV)

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(dealer.IN_FLIGHT):
                group.create_task(some())
        return time.perf_counter() - start

    async def wait(self, task: AsyncTask) -> str:
        return await task.result(60)

    def finished(self, _: int) -> int:
        return succeeded(self._redis)


adapter = Async
