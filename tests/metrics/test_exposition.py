"""Plain values as Prometheus's text: what is counted is what is read."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from kingtask.metrics import exposition
from kingtask.metrics.family import counter, counters, facts, gauge, histograms
from kingtask.metrics.histogram import LATE_S, Histogram
from tests.metrics.scrape import Figures


def read(*families: object) -> Figures:
    return Figures(b"".join(exposition.slices(families)).decode())  # type: ignore[arg-type]


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


def test_each_kind_is_read_as_it_was_told() -> None:
    times = Histogram((0.5, 1.0))
    for value in (0.5, 0.6, 7.0):
        times.observe(value)
    figures = read(
        counter("kingtask_a_total", "A.", 3),
        gauge("kingtask_b", "B.", True),
        counters("kingtask_c_total", "C.", "code", {"x": 1, 'quo"te\n\\': 2}),
        histograms("kingtask_d_seconds", "D.", "op", {"get": times}),
        facts("kingtask_e_info", "E.", {"version": "1", "name": "n"}),
        counters("kingtask_f_total", "F.", "code", {}),
    )
    assert (figures("kingtask_a_total"), figures("kingtask_b")) == (3.0, 1.0)
    assert figures("kingtask_c_total", code='quo"te\n\\') == 2.0
    assert figures("kingtask_d_seconds_bucket", op="get", le="0.5") == 1.0
    assert figures("kingtask_d_seconds_bucket", op="get", le="+Inf") == 3.0
    assert (figures("kingtask_d_seconds_sum"), figures("kingtask_d_seconds_count")) == (8.1, 3.0)
    assert figures("kingtask_e_info", version="1", name="n") == 1.0
    assert "kingtask_f_total" in figures.heads
    assert figures("process_resident_memory_bytes") > 1e6


@given(st.integers(1, 300))
def test_a_family_in_slices_has_one_head_and_every_sample(many: int) -> None:
    parts = list(exposition.slices([counters("kingtask_a_total", "A.", "queue", {f"q{n}": n for n in range(many)})]))
    assert len(parts) > many // 50
    assert max(part.count(b"\n") for part in parts[:-1]) <= 52
    figures = Figures(b"".join(parts).decode())
    assert figures.heads.count("kingtask_a_total") == 1
    assert sorted(figures.all("kingtask_a_total")) == [float(n) for n in range(many)]
