"""Times and durations as people type them. Pure: callers pass the present time.

An instant is one of FORMS. A date and time without a zone is local time, as for at(1) and cron: a time that the clocks
skip in spring is refused, a time that occurs twice in autumn means the first. A time relative to now starts with +.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import NamedTuple

from kingtask.task import LATEST_S

FORMS = (
    "2026-07-01T08:30:00Z or 2026-07-01T08:30+02:00 (ISO 8601 with a zone), '2026-07-01 08:30[:SS]' (local time),"
    " 1782887400 (epoch seconds), +90s, +5m, +1h30m (from now)"
)
DURATION_FORMS = "seconds (2.5) or 90s, 5m, 1h30m, 7d"

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

EARLIEST_S = 1_000_000_000.0
"""September 2001. A smaller number is more likely a delay whose + was forgotten than an instant."""

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_EPOCH = re.compile(rf"{_NUMBER}\Z")
_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_PARTS = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+\Z")
_CALENDAR = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[T ](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,6})?)?)"
    r"(?P<zone>Z|z|[+-][0-9]{2}:?[0-9]{2})?\Z"
)


class When(NamedTuple):
    """Epoch seconds, or if `relative` seconds from now (negative: ago)."""

    seconds: float
    relative: bool = False

    def at(self, now_s: float) -> float:
        """Return epoch seconds."""
        return now_s + self.seconds if self.relative else self.seconds


def parse_when(text: str) -> When:
    """Read one of FORMS, or the same relative form with - for the past. Raises ValueError with the reason."""
    text = text.strip()
    if text[:1] in ("+", "-"):
        seconds = parse_duration(text[1:])
        return When(seconds if text[0] == "+" else -seconds, relative=True)
    if _EPOCH.match(text):
        return When(_epoch(text))
    match = _CALENDAR.match(text)
    if not match:
        raise ValueError("not a time")
    return When(_calendar(match))


def parse_duration(text: str) -> float:
    """Return the seconds of `2.5`, `90s`, `1h30m`. Raises ValueError with the reason."""
    text = text.strip()
    if _EPOCH.match(text):
        return float(text)
    if not _PARTS.match(text):
        raise ValueError("not a duration")
    return math.fsum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))


def parse_intervals(text: str) -> tuple[float, ...]:
    """Read the retry list `5,8,9`. Raises ValueError naming the entry."""
    intervals = []
    for i, part in enumerate(text.split(","), 1):
        try:
            intervals.append(parse_duration(part))
        except ValueError:
            raise ValueError(f"entry {i} is {part.strip()!r}, not a duration") from None
    return tuple(intervals)


def local_time(at_s: float | None) -> str:
    """Format epoch seconds as local time for people; `-` for None."""
    return "-" if at_s is None else datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short_duration(seconds: float) -> str:
    """Format a duration for people: `4ms`, `1.4s`, `12s`, `3m05s`, `2h10m`, `5d03h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, unit, part_size, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part_size:02}{part}"
    return f"{whole}s"


def _epoch(text: str) -> float:
    seconds = float(text)
    if seconds > LATEST_S:
        raise ValueError("beyond the year 2286: are these milliseconds?")
    if 0 < seconds < EARLIEST_S:
        raise ValueError(f"before September 2001: is +{text}s meant?")
    return seconds


def _calendar(match: re.Match[str]) -> float:
    zone = (match["zone"] or "").upper()
    try:
        instant = datetime.fromisoformat(f"{match['date']}T{match['time']}{zone}")
        seconds = instant.timestamp()
        # astimezone moves a local time that does not exist to one that does.
        skipped = instant.tzinfo is None and instant.astimezone().replace(tzinfo=None) != instant
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(str(error) or "no such date") from None
    if skipped:
        raise ValueError("the local clocks skip this time")
    if not 0 <= seconds <= LATEST_S:
        raise ValueError("not between 1970 and 2286")
    return seconds
