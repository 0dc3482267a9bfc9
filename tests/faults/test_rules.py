"""What a case's rules excuse makes no run invalid, and nothing else is excused with it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.faults.checker import check
from tests.faults.history import ClockSample, Fault
from tests.faults.rules import INVARIANTS, Rules
from tests.faults.test_checker import MUTATORS, good
from tests.faults.timeline import RedisClock, Windows

BY_NAME = {mutator.name: mutator for mutator in MUTATORS}

EXCUSED = {
    "lose_an_acknowledged_task": (Rules(promised=frozenset({"replicas"})), "unpromised"),
    "read_another_outcome": (Rules(forgets=True), "undone"),
    "drop_an_output": (Rules(drops_outputs=True), ""),
    "cut_a_short_output": (Rules(kept_bytes=20), ""),
    "retry_a_millisecond_early": (Rules(steps_clock=True), ""),
    "hurt_nobody": (Rules(needs_faults=False), ""),
    "lose_an_attempt_without_a_fault": (Rules(loses_anytime=True), ""),
    "drop_an_execution": (Rules(silent=frozenset({"work"})), ""),
    "answer_a_ping_late": (Rules(ping_ms=1_001), ""),
    "stop_pinging": (Rules(ping_gap_ms=8_000), ""),
    "eat_memory": (Rules(rss_growth_bytes=2**30), ""),
    "leak_descriptors": (Rules(fd_growth=100_000), ""),
    "drain_too_late": (Rules(drain_extra_ms=200_000), ""),
}


@pytest.mark.parametrize("name", EXCUSED)
def test_what_the_rules_excuse_is_valid(name):
    rules, count = EXCUSED[name]
    for seed in range(10):
        report = check(BY_NAME[name].spoil(good(seed), Random(seed)), rules)
        assert report.verdict == "valid", f"seed {seed}: {report}"
        assert not count or report.counts[count] == 1


def test_an_invariant_that_is_not_selected_is_waived_and_counted():
    mutator = BY_NAME["start_a_millisecond_early"]
    report = check(mutator.spoil(good(0), Random(0)), Rules(invariants=frozenset(INVARIANTS) - {"I8"}))
    assert (report.verdict, report.waived["I8"], report.counts["early"]) == ("valid", 1, 1)


def test_an_attempt_may_run_twice_under_one_number_when_claims_are_forgotten():
    history = BY_NAME["execute_an_attempt_twice"].spoil(good(0), Random(0))
    failover = [*history.faults, Fault(fault="failover", event="start", mono_ns=0)]
    assert check(replace(history, faults=failover), Rules(forgets=True)).verdict == "valid"
    assert check(history, Rules(forgets=True)).totals["I10"] > 0  # without a fault nothing is forgotten


def test_faults_overlap_and_last_until_they_are_taken_back():
    starts = [
        Fault(fault=name, event="start", mono_ns=ns, n=n) for name, ns, n in [("a", 10, 1), ("a", 20, 2), ("b", 50, 3)]
    ]
    windows = Windows([*starts, Fault(fault="a", event="stop", mono_ns=30, n=1)])
    assert len(windows) == 3
    assert not windows.any(0, 9)
    assert windows.any(0, 10)
    assert windows.any(35, 35), "the second is never taken back"
    assert windows.names(60, 70) == ["a", "b"]
    ended = Windows([Fault(fault="a", event="start", mono_ns=10), Fault(fault="a", event="stop", mono_ns=20)])
    assert ended.any(20, 30)
    assert not ended.any(21, 30)


def test_redis_time_lies_between_what_both_neighbouring_samples_allow():
    """Two seconds apart, the clock steps by a minute somewhere between."""
    samples = [(1_000, 5_000_000), (2_000, 6_000_000), (3_000, 67_000_000)]
    clock = RedisClock(ClockSample(mono_ns=ms * 10**6, redis_us=us, width_ns=2_000) for ms, us in samples)
    assert (clock.earliest_us(1_500 * 10**6), clock.latest_us(1_500 * 10**6)) == (5_499_999, 5_500_001)
    assert (clock.earliest_us(2_500 * 10**6), clock.latest_us(2_500 * 10**6)) == (6_499_999, 66_500_001)
    assert clock.latest_us(4_000 * 10**6) == 68_000_001
    assert clock.about_ns(5_500) == 1_500 * 10**6
