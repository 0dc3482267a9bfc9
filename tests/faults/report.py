"""What the checker found: verdict, breaches by invariant, counts, lateness; and how people read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.rules import INVARIANTS, Rules

SHOWN = 10
"""Breaches told in full, per invariant; the others are counted."""

COUNTS = {
    "submits": "submits and requeues sent",
    "acknowledged": "tasks acknowledged",
    "lost": "acknowledged, promised and lost",
    "unpromised": "acknowledged at a level that does not promise to survive this, and lost",
    "executions": "attempts that began to run",
    "duplicated": "executions more than tasks and their failures ask for",
    "overlaps": "of them while the one before still ran, its worker cut off",
    "stale_refused": "attempts that came to their end, but had been given away: not recorded",
    "undone": "outcomes that were read and then undone by a failover",
    "recovered": "tasks without an acknowledgement that were stored all the same",
    "refused": "tasks refused by every answer, and absent",
    "unexpected": "tasks that nobody asked for",
    "early": "starts before their instant",
    "unknown": "calls without a certain answer",
}
"""In the order in which they are told."""


@dataclass(slots=True)
class CheckReport:
    rules: Rules
    counts: Counter[str] = field(default_factory=Counter)
    breaches: dict[str, list[str]] = field(default_factory=dict)
    """By invariant, the first of them in words."""
    totals: Counter[str] = field(default_factory=Counter)
    """By invariant, all of them."""
    waived: Counter[str] = field(default_factory=Counter)
    doubts: list[str] = field(default_factory=list)
    """Why nothing can be said."""
    lateness_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """Of every start, by whether a fault was active between its instant and the start."""
    lost_during: Counter[str] = field(default_factory=Counter)
    lost_at: Counter[str] = field(default_factory=Counter)
    """Where in the work of its client a lost task stood: prefix, middle or suffix (of a tenth each end)."""

    def found(self, invariant: str, text: str) -> None:
        """Note a breach."""
        if invariant not in self.rules.invariants:
            self.waived[invariant] += 1
            return
        self.totals[invariant] += 1
        told = self.breaches.setdefault(invariant, [])
        if len(told) < SHOWN:
            told.append(text)

    def doubt(self, text: str) -> None:
        self.doubts.append(text)

    @property
    def verdict(self) -> Literal["valid", "invalid", "unknown"]:
        return "invalid" if self.totals else "unknown" if self.doubts else "valid"

    def late_ms(self, faulty: bool) -> dict[str, float]:
        """Percentiles, empty if nothing started."""
        values = sorted(self.lateness_ms[faulty])
        if not values:
            return {}
        last = len(values) - 1
        return {name: values[round(last * part)] for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict}"]
        for invariant in sorted(self.totals, key=list(INVARIANTS).index):
            lines.append(f"{invariant}: {INVARIANTS[invariant]}: broken {self.totals[invariant]} times")
            lines += [f"    {text}" for text in self.breaches[invariant]]
        lines += [f"unknown: {text}" for text in self.doubts]
        lines += [f"{self.counts[name]:>10,}  {name}: {what}" for name, what in COUNTS.items()]
        for faulty, when in ((False, "without a fault"), (True, "during one")):
            figures = ", ".join(f"{name} {value:,.1f}" for name, value in self.late_ms(faulty).items())
            lines.append(f"late by, {when} (ms): {figures or 'nothing started'}")
        for title, counter in (("lost during", self.lost_during), ("lost at", self.lost_at), ("waived", self.waived)):
            if counter:
                lines.append(f"{title}: " + ", ".join(f"{name} {n:,}" for name, n in counter.most_common()))
        return "\n".join(lines)
