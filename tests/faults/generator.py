"""Plausible good histories, from a seed: what the checker must call valid, and what the mutators spoil.

No queue and no process is simulated: each task of a fixed list of kinds lives its life by itself, at random times. Lost
attempts come with the fault that explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from kingtask.states import TERMINAL
from tests.faults.history import (
    ClockSample,
    Exit,
    Final,
    Key,
    Ping,
    Reading,
    RunRecord,
    Sample,
)
from tests.faults.kinds import KINDS
from tests.faults.making import BEGIN_MS, LEASE_MS, MAX_LOST, OFFSET_MS, Maker, to_ns
from tests.faults.story import History

BROKERS = ("broker 1", "broker 2")


@dataclass(slots=True)
class Good:
    history: History
    kinds: dict[str, list[str]]
    """What a task went through, to ids."""


def generate(seed: int, each: int = 1) -> Good:
    """A good history with `each` tasks of every kind."""
    random = Random(seed)
    maker = Maker(random)
    maker.fault("kill broker 1", BEGIN_MS, 300)
    for kind in [*KINDS] * each:
        KINDS[kind](maker, kind)
    end_ms = 500 + max(reading.finished_ms for reading in maker.readings.values() if reading)
    healed_ms = max(fault.mono_ns for fault in maker.faults) / 1e6 + OFFSET_MS
    random.shuffle(maker.executions)
    maker.executions.sort(key=lambda line: line.mono_ns)
    run = RunRecord(
        case="generated",
        lease_ms=LEASE_MS,
        max_lost=MAX_LOST,
        planned_faults=len(maker.faults) // 2,
        healed_ns=to_ns(max(healed_ms, maker.now_ms)),
        drained_ns=to_ns(end_ms),
    )
    seconds = range(BEGIN_MS - 1000, end_ms + 1000, 1000)
    history = History(
        run=run,
        ops=sorted(maker.ops, key=lambda op: op.mono_ns),
        executions=maker.executions,
        faults=maker.faults,
        clock=[_clock(random, at_ms) for at_ms in seconds],
        pings=[_ping(random, broker, at_ms) for broker in BROKERS for at_ms in seconds],
        samples=[_sample(random, proc, at_ms) for proc in (*BROKERS, "worker 1") for at_ms in seconds],
        exits=[Exit(mono_ns=to_ns(BEGIN_MS), proc="broker 1", status=-9, wanted=True)],
        dump=_dump(maker.readings),
        finals=[
            Final(mono_ns=to_ns(end_ms + 100 + again), id=task_id, reading=reading)
            for again in range(2)
            for task_id, reading in maker.readings.items()
        ],
    )
    return Good(history, dict(maker.kinds))


def _clock(random: Random, at_ms: int) -> ClockSample:
    error_us = random.uniform(-90, 90)
    return ClockSample(mono_ns=to_ns(at_ms), redis_us=round(at_ms * 1000 + error_us), width_ns=200_000)


def _ping(random: Random, broker: str, at_ms: int) -> Ping:
    down = broker == "broker 1" and BEGIN_MS <= at_ms < BEGIN_MS + 300
    took_ns = None if down else random.randrange(200_000, 50_000_000)
    return Ping(mono_ns=to_ns(at_ms), broker=broker, took_ns=took_ns, expected=not down)


def _sample(random: Random, proc: str, at_ms: int) -> Sample:
    rss, fds = random.randrange(40 * 2**20, 60 * 2**20), random.randrange(20, 40)
    return Sample(mono_ns=to_ns(at_ms), proc=proc, pid=4000 + len(proc), rss_bytes=rss, fds=fds)


def _dump(readings: dict[str, Reading | None]) -> list[Key]:
    kept = {task_id: reading for task_id, reading in readings.items() if reading}
    keys = [Key(key=f"task:{task_id}", type="hash", ttl_ms=3_600_000, size=12) for task_id in kept]
    for state in sorted(TERMINAL):
        members = {task_id: str(r.finished_ms) for task_id, r in kept.items() if r.state == state}
        keys.append(Key(key=f"finished:{state}", type="zset", ttl_ms=-1, size=len(members), members=members))
    counts = {"submitted": str(len(kept)), "scheduled": "0", "running": "0"}
    return [
        *keys,
        Key(key="queues", type="hash", ttl_ms=-1, size=1),
        Key(key="counts:default", type="hash", ttl_ms=-1, size=3, members=counts),
        Key(key="held:w1", type="hash", ttl_ms=90_000, size=2),
        Key(key="workers", type="hash", ttl_ms=-1, size=3),
        Key(key="brokers", type="hash", ttl_ms=-1, size=2),
        Key(key="meta", type="hash", ttl_ms=-1, size=5, members={"live": "0"}),
    ]
