"""One metric with all its label values, as a plain value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kingtask.metrics.histogram import Histogram

Kind = Literal["counter", "gauge", "histogram"]

Sample = tuple[tuple[str, ...], float | Histogram]
"""Values of the labels, and what was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`name` as people write it: a counter's ends in _total. `text` is its help, one line."""

    kind: Kind
    name: str
    text: str
    labels: tuple[str, ...] = ()
    samples: Iterable[Sample]
    """Perhaps made as they are read, once: of a thousand queues they would take some milliseconds at a time."""


def counter(name: str, text: str, value: float) -> Family:
    return Family(kind="counter", name=name, text=text, samples=(((), value),))


def gauge(name: str, text: str, value: float) -> Family:
    return Family(kind="gauge", name=name, text=text, samples=(((), value),))


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    return Family(kind="counter", name=name, text=text, labels=(label,), samples=_labelled(values))


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    return Family(kind="gauge", name=name, text=text, labels=(label,), samples=_labelled(values))


def histograms(name: str, text: str, label: str, values: Mapping[str, Histogram]) -> Family:
    return Family(kind="histogram", name=name, text=text, labels=(label,), samples=_labelled(values))


def facts(name: str, text: str, values: Mapping[str, str]) -> Family:
    """What is told by labels alone; the value is 1."""
    samples = ((tuple(values.values()), 1.0),)
    return Family(kind="gauge", name=name, text=text, labels=tuple(values), samples=samples)


def _labelled(values: Mapping[str, float | Histogram]) -> tuple[Sample, ...]:
    return tuple(((value,), sample) for value, sample in sorted(values.items()))
