"""Passes 8 and 9: brokers and workers while they were hurt, and what is left of attempts (I13, I14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from tests.faults.history import Ping, Sample
from tests.faults.story import History
from tests.faults.view import CheckContext

ENOUGH = 10
"""Samples from which a growth of descriptors can be told."""


def judge_processes(view: CheckContext, history: History) -> None:
    for residue in history.residue:
        view.report.found("I13", f"{residue.kind} left over: {residue.what}")
    for exit_ in history.exits:
        if not exit_.wanted:
            view.report.found("I14", f"{exit_.proc} ended by itself with {exit_.status}: {exit_.said}")
    _pings(view, history.pings)
    _samples(view, history.samples)


def _pings(view: CheckContext, pings: Iterable[Ping]) -> None:
    by_broker: dict[str, list[Ping]] = defaultdict(list)
    for ping in pings:
        by_broker[ping.broker].append(ping)
        if not ping.expected:
            continue
        if ping.took_ns is None:
            view.report.found("I14", f"{ping.broker} did not answer a ping")
        elif ping.took_ns > view.rules.ping_ms * 1_000_000:
            view.report.found("I14", f"{ping.broker} answered a ping after {ping.took_ns / 1e6:.0f} ms")
    for broker, series in by_broker.items():
        series.sort(key=lambda ping: ping.mono_ns)
        gap_ms = max(((b.mono_ns - a.mono_ns) / 1e6 for a, b in pairwise(series)), default=0.0)
        if gap_ms > view.rules.ping_gap_ms:
            view.report.doubt(f"{broker} was not pinged for {gap_ms / 1000:.1f} s")


def _samples(view: CheckContext, samples: Iterable[Sample]) -> None:
    by_process: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_process[sample.proc, sample.pid].append(sample)
    for (proc, _), series in by_process.items():
        series.sort(key=lambda sample: sample.mono_ns)
        grown = max(sample.rss_bytes for sample in series) - series[0].rss_bytes
        if grown > view.rules.rss_growth_bytes:
            view.report.found("I14", f"{proc} grew by {grown / 2**20:.0f} MiB")
        if len(series) >= ENOUGH:
            fds = median(s.fds for s in series[-5:]) - median(s.fds for s in series[:5])
            if fds > view.rules.fd_growth:
                view.report.found("I13", f"{proc} has {fds:.0f} descriptors more than at first")
