"""What is measured: each scenario takes one contestant on a fresh server and returns its figures."""

from __future__ import annotations

from tests.bench.scenarios import execute, idle, latency, lateness, memory, schedule, submit, wakeups
from tests.bench.scenarios.base import Scenario

ALL: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (submit, execute, latency, lateness, schedule, idle, wakeups, memory)
}
"""In the order of the report."""
