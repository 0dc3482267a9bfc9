"""Families as Prometheus's text format, a few samples at a time. To be imported when metrics are on: it takes 5 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from kingtask.metrics.family import Family, Sample
from kingtask.metrics.histogram import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LINES = 50
"""Of one slice, about: each line takes some 6 µs."""


class _Registry(CollectorRegistry):
    """What `generate_latest` asks for, with what it finds there."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def slices(families: Iterable[Family]) -> Iterator[bytes]:
    """The text in parts, those of prometheus-client about the process (memory, CPU, descriptors) at the end."""
    for family in families:
        head = True
        for samples in _parts(family.samples):
            text = generate_latest(_Registry([_metric(family, samples)]))
            yield text if head else text.split(b"\n", 2)[2]  # its head stands in the first part
            head = False
    yield generate_latest(_Registry(ProcessCollector(registry=None).collect()))


def _parts(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """At least one, be it empty; each has some LINES lines."""
    part: list[Sample] = []
    lines = 0
    any_yet = False
    for sample in samples:
        part.append(sample)
        lines += _lines(sample[1])
        if lines >= LINES:
            yield part
            part, lines, any_yet = [], 0, True
    if part or not any_yet:
        yield part


def _lines(sample: float | Histogram) -> int:
    return len(sample.buckets()) + 2 if isinstance(sample, Histogram) else 1


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, value in samples:
            assert isinstance(value, Histogram)
            histogram.add_metric(labels, buckets=value.buckets(), sum_value=value.total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for labels, value in samples:
        assert not isinstance(value, Histogram)
        metric.add_metric(labels, value)
    return metric
