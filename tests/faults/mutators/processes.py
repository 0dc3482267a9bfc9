"""Brokers, workers and what they leave behind."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.faults.generator import Good
from tests.faults.history import (
    Exit,
    Residue,
)
from tests.faults.mutators.edit import (
    Catalogue,
    altered,
)
from tests.faults.story import History

MUTATORS = Catalogue()


@MUTATORS("I13")
def leave_a_process(good: Good, random: Random) -> History:
    return replace(good.history, residue=[Residue(mono_ns=1, kind="process", what="4711 work")])


@MUTATORS("I13")
def leak_descriptors(good: Good, random: Random) -> History:
    grown = [
        altered(sample, fds=sample.fds + 30 * i) if sample.proc == "worker 1" else sample
        for i, sample in enumerate(good.history.samples)
    ]
    return replace(good.history, samples=grown)


@MUTATORS("I14")
def eat_memory(good: Good, random: Random) -> History:
    samples = list(good.history.samples)
    i = random.randrange(1, len(samples) // 3)
    samples[i] = altered(samples[i], rss_bytes=2**30)
    return replace(good.history, samples=samples)


@MUTATORS("I14")
def leave_a_ping_without_answer(good: Good, random: Random) -> History:
    pings = list(good.history.pings)
    i = random.choice([i for i, ping in enumerate(pings) if ping.expected])
    pings[i] = altered(pings[i], took_ns=None)
    return replace(good.history, pings=pings)


@MUTATORS("I14")
def answer_a_ping_late(good: Good, random: Random) -> History:
    pings = list(good.history.pings)
    i = random.choice([i for i, ping in enumerate(pings) if ping.expected])
    pings[i] = altered(pings[i], took_ns=1_000_000_001)
    return replace(good.history, pings=pings)


@MUTATORS("I14")
def crash_a_worker(good: Good, random: Random) -> History:
    return replace(good.history, exits=[*good.history.exits, Exit(mono_ns=1, proc="worker 1", status=1)])
