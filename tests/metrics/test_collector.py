"""Numbers as Prometheus's text: the text that is read back has the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kingtask.metrics.call_times import LATE_S, Histogram
from kingtask.metrics.collector import by_label, of_daemon, text_parts
from tests.metrics.scrape import Figures


def read(*metrics: Iterable[Metric]) -> Figures:
    return Figures(b"".join(text_parts(chain(*metrics))).decode())


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_counts_each_value_once_in_its_bucket(values: list[float]) -> None:
    histogram = Histogram(LATE_S)
    for value in values:
        histogram.observe(value)
    buckets = histogram.buckets()
    for bound, count in buckets:
        assert count == sum(value <= float(bound) for value in values)
    assert buckets[-1] == ("+Inf", len(values))
    assert math.isclose(histogram.total, math.fsum(values), rel_tol=1e-9, abs_tol=1e-9)


def test_each_kind_of_metric_is_read_back() -> None:
    times = Histogram((0.5, 1.0))
    for value in (0.5, 0.6, 7.0):
        times.observe(value)
    figures = read(
        [CounterMetricFamily("kingtask_a_total", "A.", 3), GaugeMetricFamily("kingtask_b", "B.", True)],
        by_label(CounterMetricFamily, "kingtask_c_total", "C.", "code", {"x": 1, 'quo"te\n\\': 2}),
        by_label(HistogramMetricFamily, "kingtask_d_seconds", "D.", "op", {"get": times}),
        of_daemon("broker", "n", "ns", {"info": 4}, {}),
        by_label(CounterMetricFamily, "kingtask_f_total", "F.", "code", {}),
    )
    assert (figures("kingtask_a_total"), figures("kingtask_b")) == (3.0, 1.0)
    assert figures("kingtask_c_total", code='quo"te\n\\') == 2.0
    assert figures("kingtask_d_seconds_bucket", op="get", le="0.5") == 1.0
    assert figures("kingtask_d_seconds_bucket", op="get", le="+Inf") == 3.0
    assert (figures("kingtask_d_seconds_sum"), figures("kingtask_d_seconds_count")) == (8.1, 3.0)
    assert figures("kingtask_build_info", program="broker", name="n", namespace="ns") == 1.0
    assert figures("kingtask_log_lines_total", level="info") == 4.0
    assert "kingtask_f_total" in figures.heads
    assert figures("process_resident_memory_bytes") > 1e6


@given(st.integers(1, 300))
def test_a_metric_in_parts_has_one_head_and_every_sample(many: int) -> None:
    values = {f"q{n}": n for n in range(many)}
    parts = list(text_parts(by_label(CounterMetricFamily, "kingtask_a_total", "A.", "queue", values)))
    assert len(parts) > many // 50
    assert max(part.count(b"\n") for part in parts[:-1]) <= 52
    figures = Figures(b"".join(parts).decode())
    assert figures.heads.count("kingtask_a_total") == 1
    assert sorted(figures.all("kingtask_a_total")) == [float(n) for n in range(many)]
