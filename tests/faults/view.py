"""What every pass of the checker is given."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.history import RunRecord
from tests.faults.report import CheckReport
from tests.faults.rules import Rules
from tests.faults.timeline import RedisClock, Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    run: RunRecord
    rules: Rules
    report: CheckReport
    windows: Windows
    clock: RedisClock

    @property
    def steady(self) -> bool:
        """True if times of Redis's clock can be compared with monotonic ones, and with each other."""
        return bool(self.clock) and not self.rules.steps_clock

    def faulty(self, from_ms: int, to_ms: int) -> bool:
        """True if a fault was active between two times of Redis's clock, or if that cannot be told."""
        if not self.steady:
            return True
        return self.windows.any(self.clock.about_ns(from_ms), self.clock.about_ns(to_ms) + 1)
