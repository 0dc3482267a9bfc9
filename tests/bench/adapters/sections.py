"""What is timed, the same for every contestant: each section drives an adapter and returns plain numbers (seconds).

A section `x` of an adapter's own, `x_section`, takes the place of the one here.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.bench.adapters.base import ARGV, ContestantAdapter

Numbers = dict[str, Any]

BATCH = 1_000
SILENCE_S = 60.0
"""After which a contestant that ends nothing more has failed."""


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _started(stdout: str) -> float:
    return int(stdout) / 1e9


async def warm(adapter: ContestantAdapter, n: int) -> Numbers:
    """Run some tasks, one after the other, so that all has been used once."""
    for _ in range(n):
        await _settled(adapter.wait(await _settled(adapter.submit(adapter.prepare(ARGV)))))
    return {}


async def submit(adapter: ContestantAdapter, n: int, limit_s: float) -> Numbers:
    """One by one, each after the reply to the one before; at most `limit_s` long."""
    tasks = [adapter.prepare(ARGV) for _ in range(n)]
    start = time.perf_counter()
    done = 0
    while done < n and time.perf_counter() - start < limit_s:
        await _settled(adapter.submit(tasks[done]))
        done += 1
    return {"n": done, "seconds": time.perf_counter() - start}


async def submit_many(adapter: ContestantAdapter, n: int, limit_s: float) -> Numbers:
    """In calls of BATCH tasks; at most `limit_s` long."""
    batches = [adapter.prepare_many([ARGV] * BATCH) for _ in range(max(1, n // BATCH))]
    start = time.perf_counter()
    done = 0
    while done < len(batches) and time.perf_counter() - start < limit_s:
        await _settled(adapter.submit_many(batches[done]))
        done += 1
    return {"n": done * BATCH, "seconds": time.perf_counter() - start}


async def pipelined(adapter: ContestantAdapter, n: int) -> Numbers:
    return {"n": n, "seconds": await _settled(adapter.pipelined(n))}


async def execute(adapter: ContestantAdapter, n: int, bulk: bool = False) -> Numbers:
    """From the first submit, one by one or in bulk, to the end of the last task."""
    before = await _settled(adapter.finished(0))
    start = time.perf_counter()
    if bulk:
        for i in range(0, n, BATCH):
            await _settled(adapter.submit_many(adapter.prepare_many([ARGV] * min(BATCH, n - i))))
    else:
        for _ in range(n):
            await _settled(adapter.submit(adapter.prepare(ARGV)))
    submitted_s = time.perf_counter() - start
    seen, heard = 0, time.perf_counter()
    while (done := await _settled(adapter.finished(n)) - before) < n:
        if done > seen:
            seen, heard = done, time.perf_counter()
        elif time.perf_counter() - heard > SILENCE_S:
            raise RuntimeError(f"only {done} of {n} tasks ended")
        await asyncio.sleep(0.01)
    return {"n": n, "seconds": time.perf_counter() - start, "submitted_s": submitted_s}


async def latency(adapter: ContestantAdapter, n: int) -> Numbers:
    """Submit call to main(), a task every 20 to 40 ms; results are read afterwards."""
    sent = []
    for _ in range(n):
        task = adapter.prepare(ARGV)
        now = time.time()
        sent.append((now, await _settled(adapter.submit(task))))
        await asyncio.sleep(random.uniform(0.02, 0.04))
    return {"samples": [_started(await _settled(adapter.wait(handle))) - now for now, handle in sent]}


async def round_trip(adapter: ContestantAdapter, n: int, limit_s: float) -> Numbers:
    """Submit call to result in hand, a task at a time; at most `limit_s` long."""
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < n and time.perf_counter() - begin < limit_s:
        task = adapter.prepare(ARGV)
        start = time.perf_counter()
        await _settled(adapter.wait(await _settled(adapter.submit(task))))
        samples.append(time.perf_counter() - start)
        await asyncio.sleep(random.uniform(0, 0.02))
    return {"samples": samples}


_planned: list[tuple[float, Any]] = []


async def plan(adapter: ContestantAdapter, n: int, span_s: float, ahead_s: float) -> Numbers:
    """Submit n tasks for instants evenly over `span_s`, in random order, the first `ahead_s` from now."""
    instants = [time.time() + ahead_s + span_s * i / n for i in range(n)]
    random.shuffle(instants)
    _planned[:] = [(at, await _settled(adapter.submit_at(ARGV, at))) for at in instants]
    return {}


async def late(adapter: ContestantAdapter) -> Numbers:
    """Wait for what `plan` submitted: the instants, and how much later each main() began."""
    await asyncio.sleep(max(at for at, _ in _planned) - time.time())
    starts = [(at, _started(await _settled(adapter.wait(handle)))) for at, handle in _planned]
    return {"at": [at for at, _ in starts], "samples": [start - at for at, start in starts]}


async def schedule(adapter: ContestantAdapter, n: int, limit_s: float, ahead_s: float = 3600.0) -> Numbers:
    """Submit n tasks for an hour ahead, in bulk where the product can; at most `limit_s` long."""
    at = time.time() + ahead_s
    start = time.perf_counter()
    done = 0
    while done < n and time.perf_counter() - start < limit_s:
        if adapter.submit_at_many:
            count = min(adapter.at_once, n - done)
            await _settled(adapter.submit_at_many([ARGV] * count, at + done / 1000))
            done += count
        else:
            await _settled(adapter.submit_at(ARGV, at + done / 1000))
            done += 1
    return {"n": done, "seconds": time.perf_counter() - start}


async def flow(adapter: ContestantAdapter, rate: float, seconds: float) -> Numbers:
    """Submit tasks at a steady rate for a while; return how many it came to."""
    start = time.perf_counter()
    n = 0
    while (now := time.perf_counter() - start) < seconds:
        while n < now * rate:
            await _settled(adapter.submit(adapter.prepare(ARGV)))
            n += 1
        await asyncio.sleep(0.001)
    return {"n": n}


Section = Callable[..., Awaitable[Numbers]]

SECTIONS: dict[str, tuple[Section, tuple[str, ...]]] = {
    "warm": (warm, ("submit", "wait")),
    "submit": (submit, ("submit",)),
    "submit_many": (submit_many, ("submit_many",)),
    "pipelined": (pipelined, ("pipelined",)),
    "execute": (execute, ("submit", "finished")),
    "latency": (latency, ("submit", "wait")),
    "round_trip": (round_trip, ("submit", "wait")),
    "plan": (plan, ("submit_at", "wait")),
    "late": (late, ("submit_at", "wait")),
    "schedule": (schedule, ()),
    "flow": (flow, ("submit",)),
}
"""Each with what an adapter must have for it."""


def sections_of(adapter: ContestantAdapter) -> dict[str, Section]:
    """What can be timed of this adapter."""
    found: dict[str, Section] = {}
    for name, (section, needed) in SECTIONS.items():
        own = getattr(adapter, f"{name}_section", None)
        if own is not None:
            found[name] = _own(own)
        elif all(getattr(adapter, method) is not None for method in needed):
            found[name] = section
    if found["schedule"] is schedule and not (adapter.submit_at or adapter.submit_at_many):
        del found["schedule"]
    return found


def _own(method: Callable[..., Any]) -> Section:
    async def section(_: ContestantAdapter, **arguments: Any) -> Numbers:
        numbers: Numbers = await _settled(method(**arguments))
        return numbers

    return section
