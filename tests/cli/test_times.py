"""Times and durations as people type them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask.cli.times import (
    EARLIEST_S,
    When,
    local_time,
    parse_duration,
    parse_intervals,
    parse_when,
    short_duration,
)
from kingtask.task import LATEST_S

instants = st.datetimes(datetime(2001, 9, 10), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@pytest.fixture
def zone() -> Iterator[Callable[[str], None]]:
    """Sets the local time zone of this process."""
    before = os.environ.get("TZ")

    def set_zone(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield set_zone
    if before is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-07-01T08:30:00Z", 1782894600),
        ("2026-07-01T10:30:00+02:00", 1782894600),
        ("2026-07-01 10:30+0200", 1782894600),
        ("2026-07-01T08:30:00.25z", 1782894600.25),
        (" 1782894600 ", 1782894600),
        ("1782894600.125", 1782894600.125),
        ("0", 0),
    ],
)
def test_an_instant_is_epoch_seconds_whatever_its_form(text, seconds):
    assert parse_when(text) == When(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("+90s", 90), ("+5m", 300), ("+1h30m", 5400), ("+250ms", 0.25), ("+2", 2), ("-1h", -3600)]
)
def test_a_sign_makes_it_relative(text, seconds):
    when = parse_when(text)
    assert when == When(seconds, relative=True)
    assert when.at(1000.0) == 1000.0 + seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "tomorrow 8:00",
        "24:61",
        "08:30",
        "2026-02-30",
        "2026-02-30 10:00",
        "2026-07-01",
        "2026-07-01 24:00",
        "2026-07-01 08:60",
        "2026-07-01T08:30:60Z",
        "2026-07-01T08:30:00+25:00",
        "2026-W01-1T08:30",
        "1969-12-31T23:59:59Z",
        "2300-01-01T00:00:00Z",
        "1782894600000",
        "90",
        "1e9",
        "nan",
        "inf",
        "+",
        "+-5s",
        "+5 minutes",
        "+1y",
        "٣٠",
        "2026-07-01T08:30:00Z\nx",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse_when(text)


def test_milliseconds_and_a_forgotten_plus_are_named_as_such():
    with pytest.raises(ValueError, match="milliseconds"):
        parse_when("1782894600000")
    with pytest.raises(ValueError, match=r"\+90s"):
        parse_when("90")


def test_without_a_zone_it_is_local_time(zone):
    zone("America/New_York")
    assert parse_when("2026-07-01 04:30") == parse_when("2026-07-01T08:30:00Z")
    zone("Asia/Kolkata")
    assert parse_when("2026-07-01 14:00:00") == parse_when("2026-07-01T08:30:00Z")


def test_a_local_time_that_the_clocks_skip_is_refused_and_of_two_the_first_is_meant(zone):
    zone("Europe/Berlin")
    with pytest.raises(ValueError, match="skip"):
        parse_when("2026-03-29 02:30")
    assert parse_when("2026-10-25 02:30") == parse_when("2026-10-25T02:30:00+02:00")


@given(instants, st.sampled_from([0, 60, -300, 330, 840]))
def test_every_instant_with_a_zone_is_read_back(instant, minutes):
    text = instant.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
    assert parse_when(text).seconds == pytest.approx(instant.timestamp(), abs=1e-6)


@given(st.floats(EARLIEST_S, LATEST_S))
def test_epoch_seconds_are_read_back(seconds):
    assert parse_when(f"{seconds:.6f}").seconds == pytest.approx(seconds, abs=1e-6)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_value_error(text):
    try:
        when = parse_when(text)
    except ValueError:
        return
    assert when.relative or 0 <= when.seconds <= LATEST_S


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_the_sum_of_its_parts(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.lists(st.integers(0, 10**6).map(lambda n: n / 100), min_size=1, max_size=64))
def test_a_retry_list_is_read_back(intervals):
    assert parse_intervals(",".join(str(interval) for interval in intervals)) == tuple(intervals)


@pytest.mark.parametrize("text", ["", ",", "1,,2", "1,", ",1", "1,x", "1;2", "-1", "1,nan", "[1, 2]"])
def test_a_retry_list_is_strict(text):
    with pytest.raises(ValueError, match=r"entry \d+ is"):
        parse_intervals(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4ms"),
        (0.9996, "1.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (12.4, "12s"),
        (185, "3m05s"),
        (7800, "2h10m"),
        (442_800, "5d03h"),
    ],
)
def test_durations_for_people(seconds, text):
    assert short_duration(seconds) == text


def test_local_times_for_people(zone):
    zone("Asia/Kolkata")
    assert local_time(1782894600) == "2026-07-01 14:00:00"
    assert local_time(None) == "-"
