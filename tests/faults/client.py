"""One client of a case, in a process of its own: asks for tasks as its loads say, and writes its history.

`python -m tests.faults.client ORDERS`, a JSON object. It ends, with what is under way, at SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

import msgspec

from kingtask import AsyncClient, TaskSpec
from kingtask.errors import KingtaskError
from tests.faults import loads
from tests.faults.history import HistoryRecorder

AT_ONCE = 100
"""Calls under way of one load; a fault must not pile up more."""


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    proc: str
    brokers: list[str]
    loads: dict[str, float]
    """Tasks a second of each."""
    seed: str
    shared_seed: str
    lease_s: float
    timeout_s: float
    ack: str


class LoadGenerator:
    """Runs the loads of one client."""

    def __init__(self, orders: Orders, client: AsyncClient) -> None:
        self._orders = orders
        self._client = client
        self._recorder = HistoryRecorder(Path(orders.directory), orders.proc)
        self._under_way: set[asyncio.Task[None]] = set()
        self.stop = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._offer(kind, rate) for kind, rate in self._orders.loads.items()))
        while self._under_way:
            await asyncio.wait(self._under_way)
        self._recorder.close()

    async def _offer(self, kind: str, rate: float) -> None:
        random = Random(f"{self._orders.seed}-{kind}")
        room = asyncio.Semaphore(AT_ONCE)
        per_call = loads.BULK if kind in loads.IN_BULK else 1
        number = 0
        while not self.stop.is_set():
            await room.acquire()
            items = []
            for _ in range(per_call):
                items.append(loads.make(kind, random, number, self._orders.shared_seed, self._orders.lease_s))
                number += 1
            act = self._many([item.spec for item in items]) if kind in loads.IN_BULK else self._one(items[0], random)
            task = asyncio.create_task(act)
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            task.add_done_callback(lambda _: room.release())
            try:
                await asyncio.wait_for(self.stop.wait(), random.expovariate(rate / per_call))
            except TimeoutError:
                continue

    async def _one(self, item: loads.Item, random: Random) -> None:
        spec = item.spec
        assert spec.id is not None
        if not await self._submit(spec):
            return
        if item.after == "cancel":
            await asyncio.sleep(random.uniform(0, 1))
            await self._cancel(spec.id)
        elif item.after:
            await self._read(spec.id, item.after)

    async def _submit(self, spec: TaskSpec) -> bool:
        assert spec.id is not None
        op = self._recorder.invoke("submit", spec.id, spec=spec)
        try:
            task = await self._client.submit(
                spec.name,
                spec.args,
                id=spec.id,
                at=spec.start_at or None,
                delay=spec.delay_s or None,
                retry=spec.retry,
                stdin=spec.stdin or None,
                on_lost=spec.on_lost,
            )
        except KingtaskError as error:
            self._recorder.error(op, error)
            return False
        self._recorder.ok(op, outcome=task.outcome or "", ack=self._orders.ack)
        return True

    async def _many(self, specs: list[TaskSpec]) -> None:
        ops = [self._recorder.invoke("submit", str(spec.id), spec=spec) for spec in specs]
        outcomes = await self._client.submit_many(specs)
        for op, outcome in zip(ops, outcomes, strict=True):
            if outcome.error is not None:
                self._recorder.error(op, outcome.error)
            else:
                self._recorder.ok(op, outcome=outcome.outcome, ack=self._orders.ack)

    async def _read(self, task_id: str, how: str) -> None:
        op = self._recorder.invoke("result", task_id)
        try:
            if how == "wait":
                result = await self._client.wait(task_id, 4 * self._orders.lease_s)
            else:
                result = await self._client.get(task_id)
        except KingtaskError as error:
            self._recorder.error(op, error)
        else:
            self._recorder.ok(op, result=result)

    async def _cancel(self, task_id: str) -> None:
        op = self._recorder.invoke("cancel", task_id)
        try:
            outcome = await self._client.cancel(task_id)
        except KingtaskError as error:
            self._recorder.error(op, error)
        else:
            self._recorder.ok(op, outcome=outcome)


async def main(orders: Orders) -> None:
    async with AsyncClient(orders.brokers, timeout=orders.timeout_s) as client:
        worker = LoadGenerator(orders, client)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop.set)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
