"""Metrics that both daemons expose, and the text of metrics in small parts."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily as Counter
from prometheus_client.metrics_core import GaugeMetricFamily as Gauge
from prometheus_client.metrics_core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from kingtask import __version__
from kingtask.clock import US_PER_S, monotonic_us, wall_s
from kingtask.metrics.call_times import CallTimes, Histogram
from kingtask.store.store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SAMPLES = 50
"""Samples in one part, roughly. Each takes some 4 µs."""

Kind = type[Counter] | type[Gauge] | type[HistogramMetricFamily]


def in_parts(
    kind: Kind, name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], Any]]
) -> Iterator[Metric]:
    """Yield one metric in parts of about SAMPLES samples, at least one part.

    A sample is the values of `labels` and a number, or a Histogram for a HistogramMetricFamily.
    """
    part: Any = kind(name, text, labels=labels)
    for values, sample in samples:
        if len(part.samples) >= SAMPLES:
            yield part
            part = kind(name, text, labels=labels)
        if isinstance(sample, Histogram):
            part.add_metric(values, sample.buckets(), sample.total)
        else:
            part.add_metric(values, sample)
    yield part


def by_label(kind: Kind, name: str, text: str, label: str, samples: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield one metric with one label, in parts. `samples` are by the value of the label."""
    return in_parts(kind, name, text, (label,), (((value,), sample) for value, sample in sorted(samples.items())))


def of_daemon(
    program: str, name: str, namespace: str, log_lines: Mapping[str, int], reloads: Mapping[str, int]
) -> Iterator[Metric]:
    """`name`: of this broker or worker, as in logs; `log_lines` by level, `reloads` by outcome."""
    python = platform.python_version()
    build = {"program": program, "name": name, "namespace": namespace, "version": __version__, "python": python}
    # exposed as kingtask_build_info
    yield InfoMetricFamily("kingtask_build", "Program, name, namespace and release of this daemon.", build)
    yield from by_label(Counter, "kingtask_log_lines_total", "Lines written to the log.", "level", log_lines)
    text = "Reloads of the configuration."
    yield from by_label(Counter, "kingtask_reloads_total", text, "outcome", reloads)


def of_redis(calls: CallTimes, store: Store) -> Iterator[Metric]:
    up = {link.purpose: link.up for link in store.links}
    yield from by_label(Gauge, "kingtask_redis_up", "1 if this connection to Redis is usable.", "purpose", up)
    connects = {link.purpose: link.connects for link in store.links}
    text = "Connections made; each after the first replaced a lost one."
    yield from by_label(Counter, "kingtask_redis_connects_total", text, "purpose", connects)
    text = "From sending a call to its reply, with Redis's write to disk."
    yield from by_label(HistogramMetricFamily, "kingtask_redis_call_seconds", text, "function", calls.times)
    text = "Calls without a reply, or with an error."
    yield from by_label(Counter, "kingtask_redis_failures_total", text, "kind", calls.failures)
    if store.clock.known:
        offset_s = store.clock.now_us(monotonic_us()) / US_PER_S - wall_s()
        yield Gauge("kingtask_redis_clock_offset_seconds", "Redis's clock minus this host's clock.", offset_s)


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def text_parts(metrics: Iterable[Metric]) -> Iterator[bytes]:
    """Format `metrics`; at the end prometheus-client's metrics of the process (memory, CPU, descriptors).

    Successive metrics of one name are parts of one metric, and get one head.
    """
    last = ""
    for metric in metrics:
        text = generate_latest(_One(metric))
        yield text if metric.name != last else text.split(b"\n", 2)[2]
        last = metric.name
    yield generate_latest(ProcessCollector(registry=None))
