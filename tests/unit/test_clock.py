"""Nothing is early: how instants are rounded, and how far the estimate of Redis's clock can be trusted."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import clock
from kingtask.clock import Backoff, ServerClock, duration_ms, start_ms
from kingtask.task import LATEST_S

UNTIL_2106_US = 2**32 * 1_000_000
"""Up to here a float holds epoch seconds to half a microsecond."""


@given(st.integers(0, UNTIL_2106_US))
def test_an_instant_in_microseconds_is_rounded_up_exactly(at_us: int):
    assert start_ms(at_us / 1_000_000) == -(-at_us // 1000)


@given(st.integers(0, UNTIL_2106_US // 1000))
def test_whole_milliseconds_stay_as_they_are(at_ms: int):
    assert start_ms(at_ms / 1000) == at_ms


@given(st.floats(0, LATEST_S))
def test_no_instant_is_early_by_what_a_clock_can_tell_nor_late_by_more_than_a_millisecond(at_s: float):
    late_ms = start_ms(at_s) - at_s * 1000
    assert -0.002 <= late_ms <= 1.002  # a float near the year 2286 holds two microseconds


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0, 0), (1.1, 1100), (0.0001, 1), (1e-9, 0), (0.001, 1), (0.0011, 2), (2_592_000, 2_592_000_000)],
)
def test_a_duration_is_never_cut_short(seconds: float, ms: int):
    assert duration_ms(seconds) == ms


def test_backoff_doubles_up_to_its_longest_pause_and_starts_again_after_a_reset():
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    fresh = [backoff.is_fresh]
    backoff.reset()
    assert [*fresh, backoff.is_fresh] == [False, True]
    assert backoff.next() == 0.5


def test_backoff_after_many_pauses_does_not_overflow():
    assert [Backoff(0.001, 60.0).after(times) for times in (0, 3, 10_000)] == [0.001, 0.008, 60.0]


# ── Redis's clock seen from here ─────────────────────────────────────────────────────────────────────────────────────

TRAVEL_US = st.integers(0, 500_000)
GAP_US = st.integers(0, 10_000_000)
EXCHANGES = st.lists(st.tuples(GAP_US, TRAVEL_US, TRAVEL_US), min_size=1, max_size=30)


def exchange(estimate: ServerClock, sent_us: int, there_us: int, back_us: int, offset_us: int) -> int:
    """One call: it reaches the server `there_us` after it was sent, the reply is `back_us` on its way. Returns now."""
    received_us = sent_us + there_us + back_us
    estimate.observe(sent_us + there_us + offset_us, sent_us, received_us)
    return received_us


@given(EXCHANGES, st.integers(-(10**15), 10**15))
def test_it_is_never_ahead_and_behind_by_the_quickest_reply_at_most(
    exchanges: list[tuple[int, int, int]], offset_us: int
):
    estimate, now_us, quickest_us = ServerClock(), 0, 10**9
    for gap_us, there_us, back_us in exchanges:
        now_us = exchange(estimate, now_us + gap_us, there_us, back_us, offset_us)
        quickest_us = min(quickest_us, back_us)
        assert estimate.now_us(now_us) == now_us + offset_us - quickest_us


@given(EXCHANGES, st.integers(0, 10**12), st.integers(1, 10**9))
def test_a_timer_armed_by_it_does_not_fire_early(exchanges: list[tuple[int, int, int]], offset_us: int, ahead_ms: int):
    estimate, now_us = ServerClock(), 0
    for gap_us, there_us, back_us in exchanges:
        now_us = exchange(estimate, now_us + gap_us, there_us, back_us, offset_us)
    due_ms = (now_us + offset_us) // 1000 + ahead_ms
    fires_us = ceil(estimate.monotonic_s(due_ms) * 1_000_000)
    assert fires_us + offset_us >= due_ms * 1000 - 1  # a float of seconds rounds by less than a microsecond


@given(EXCHANGES, st.integers(-(10**12), 10**12), TRAVEL_US, TRAVEL_US)
def test_one_reply_after_the_servers_clock_was_set_is_enough(
    exchanges: list[tuple[int, int, int]], step_us: int, there_us: int, back_us: int
):
    estimate, now_us = ServerClock(), 0
    for gap_us, there, back in exchanges:
        now_us = exchange(estimate, now_us + gap_us, there, back, 0)
    now_us = exchange(estimate, now_us, there_us, back_us, step_us)
    assert -back_us <= estimate.now_us(now_us) - (now_us + step_us) <= there_us


@given(EXCHANGES, st.integers(-200, 200))
def test_drift_shows_only_since_the_last_reply(exchanges: list[tuple[int, int, int]], ppm: int):
    """The server's seconds are `ppm` millionths longer or shorter than ours."""
    estimate, now_us, before_us = ServerClock(), 0, 0
    for gap_us, there_us, back_us in exchanges:
        sent_us = now_us + gap_us
        read_us = sent_us + there_us
        now_us = read_us + back_us
        truth_us = read_us + read_us * ppm // 1_000_000
        estimate.observe(truth_us, sent_us, now_us)
        ahead_us = estimate.now_us(now_us) - (now_us + now_us * ppm // 1_000_000)
        drifted_us = abs(ppm) * (now_us - before_us) // 1_000_000 + 2
        assert ahead_us <= there_us + drifted_us
        assert ahead_us >= -back_us - drifted_us
        before_us = sent_us


def test_it_says_how_far_it_was_corrected():
    estimate = ServerClock()
    assert not estimate.known
    assert estimate.observe(1_000, 0, 200) == 0
    assert estimate.observe(2_000, 1_000, 1_100) == 100  # a quicker reply
    assert estimate.observe(3_000, 2_000, 2_500) == 0  # a slower one says nothing new
    assert estimate.observe(1_003_000, 2_000, 2_500) == 999_600  # the server's clock was set


def test_before_the_first_reply_it_says_nothing():
    for ask in (ServerClock().now_us, ServerClock().monotonic_s):
        with pytest.raises(ValueError, match="no reply"):
            ask(0)


def test_the_hosts_clocks_have_their_units():
    assert clock.wall_s() > 1_700_000_000
    first_us, now_s = clock.monotonic_us(), clock.monotonic_s()
    assert first_us <= now_s * 1_000_000 + 1
