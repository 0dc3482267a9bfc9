"""What kingtask has to reach, computed from a run: each a figure of its own or a ratio to others in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.contestants import PEERS
from tests.bench.figures import Found

Scenarios = Mapping[str, Found]
"""By scenario; all of one kind of server."""


@dataclass(frozen=True)
class PerformanceTarget:
    what: str
    bound: float
    least: bool
    """True: at least the bound, False: at most."""
    found: Callable[[Scenarios], float | None]

    def reached(self, found: Scenarios) -> bool | None:
        """None if the run does not say."""
        value = self.found(found)
        if value is None:
            return None
        return value >= self.bound if self.least else value <= self.bound


def _to(scenario: str, figure: str, reference: str, its_figure: str = "") -> Callable[[Scenarios], float | None]:
    def found(all_: Scenarios) -> float | None:
        here = all_.get(scenario)
        return here.ratio("kingtask", figure, reference, its_figure) if here else None

    return found


def _to_best_peer(scenario: str, figure: str, its_figure: str = "") -> Callable[[Scenarios], float | None]:
    def found(all_: Scenarios) -> float | None:
        if not (here := all_.get(scenario)):
            return None
        ratios = [here.ratio("kingtask", figure, peer, its_figure or figure) for peer in PEERS]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return found


def _own(
    scenario: str, figure: str, worst: Callable[[list[float]], float] = max
) -> Callable[[Scenarios], float | None]:
    def found(all_: Scenarios) -> float | None:
        here = all_.get(scenario)
        values = here.all("kingtask", figure) if here else []
        return worst(values) if values else None

    return found


def _median(scenario: str, figure: str) -> Callable[[Scenarios], float | None]:
    def found(all_: Scenarios) -> float | None:
        here = all_.get(scenario)
        return here.median("kingtask", figure) if here else None

    return found


def _beside_a_million(all_: Scenarios) -> float | None:
    full = _median("schedule", "late p99 ms")(all_)
    idle = _median("lateness", "idle p99 ms")(all_)
    return full / idle if full is not None and idle else None


def targets(valkey: bool) -> list[PerformanceTarget]:
    """In the order in which a task's life goes; a scheduled task takes less room in Valkey."""
    most, least = False, True
    return [
        PerformanceTarget("start latency p50, × list", 1.15, most, _to("latency", "start p50 ms", "list")),
        PerformanceTarget("start latency p99, × list", 1.5, most, _to("latency", "start p99 ms", "list")),
        PerformanceTarget("round trip p50, × list", 1.35, most, _to("latency", "round trip p50 ms", "list")),
        PerformanceTarget("round trip p99, × list", 2.0, most, _to("latency", "round trip p99 ms", "list")),
        PerformanceTarget("executables a second, × list", 1.15, least, _to("execute", "executables /s", "list")),
        PerformanceTarget("executables a second, × best peer", 1.7, least, _to_best_peer("execute", "executables /s")),
        PerformanceTarget(
            "executables a second, × posix_spawn", 0.55, least, _to("execute", "executables /s", "spawn")
        ),
        PerformanceTarget("submits one by one, × list", 0.45, least, _to("submit", "one by one /s", "list")),
        PerformanceTarget("submits pipelined, × echo", 0.5, least, _to("submit", "pipelined /s", "echo")),
        PerformanceTarget(
            "submits pipelined, × best peer's bulk", 2.0, least, _to_best_peer("submit", "pipelined /s", "in bulk /s")
        ),
        PerformanceTarget("submits in bulk, × list", 0.6, least, _to("submit", "in bulk /s", "list")),
        PerformanceTarget("lateness p50, ms", 2.3, most, _median("lateness", "idle p50 ms")),
        PerformanceTarget("lateness p99, ms", 3.2, most, _median("lateness", "idle p99 ms")),
        PerformanceTarget("lateness p50, × celery", 1.0, most, _to("lateness", "idle p50 ms", "celery")),
        PerformanceTarget("lateness p99, × celery", 1.0, most, _to("lateness", "idle p99 ms", "celery")),
        PerformanceTarget("earliest start after its instant, ms", 0.0, least, _own("lateness", "idle min ms", min)),
        PerformanceTarget("the same beside many scheduled tasks, ms", 0.0, least, _own("schedule", "late min ms", min)),
        PerformanceTarget("lateness p99 beside many scheduled tasks, × idle", 1.25, most, _beside_a_million),
        PerformanceTarget("scheduling, × list", 0.6, least, _to("schedule", "scheduled /s", "list")),
        PerformanceTarget(
            "Redis bytes per scheduled task", 220.0 if valkey else 360.0, most, _own("schedule", "Redis bytes per task")
        ),
        PerformanceTarget(
            "broker RSS growth when scheduling, MB", 10.0, most, _own("schedule", "broker RSS growth MB")
        ),
        PerformanceTarget("restarted broker on time after, s", 1.0, most, _own("schedule", "restart: on time after s")),
        PerformanceTarget("idle worker RSS, MB", 40.0, most, _own("idle", "worker RSS MB")),
        PerformanceTarget("idle CPU of broker and worker, % of a core", 0.5, most, _own("idle", "CPU % together")),
        PerformanceTarget("claims per task with idle slots", 3.0, most, _own("wakeups", "claims per task")),
    ]
