"""How much of everything a run does: the full one, and the smallest that still goes through all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Durations are seconds; a limit ends a slow contestant's part early, a rate is then over what was done."""

    submits: int = 5_000
    bulk: int = 20_000
    pipelined: int = 20_000
    submit_limit_s: float = 1.5
    executables: int = 2_000
    latencies: int = 150
    trips: int = 100
    trips_limit_s: float = 6.0
    instants: int = 300
    span_s: float = 10.0
    ahead_s: float = 1.0
    """From planning instants to the first of them."""
    flow: float = 500.0
    """Tasks a second beside the instants."""
    scheduled: int = 1_000_000
    scheduled_by_floors: int = 200_000
    scheduled_by_peers: int = 20_000
    schedule_limit_s: float = 60.0
    schedule_limit_of_peers_s: float = 8.0
    restart_instants: int = 200
    restart_span_s: float = 4.0
    idle_s: float = 30.0
    idle_of_peers_s: float = 10.0
    settle_s: float = 2.0
    """Between starting workers, or scheduling many tasks, and measuring."""
    idle_workers: int = 20
    idle_slots: int = 10
    """Of each of those workers."""
    wakeups: int = 200
    memory_tasks: int = 200_000


FULL = Sizes()

TINY = Sizes(
    submits=20,
    bulk=1_000,
    pipelined=200,
    submit_limit_s=0.3,
    executables=20,
    latencies=5,
    trips=5,
    instants=10,
    span_s=0.2,
    ahead_s=0.2,
    flow=50.0,
    scheduled=2_000,
    scheduled_by_floors=2_000,
    scheduled_by_peers=50,
    restart_instants=20,
    restart_span_s=0.8,
    idle_s=0.2,
    idle_of_peers_s=0.2,
    settle_s=0.05,
    idle_workers=2,
    idle_slots=2,
    wakeups=5,
    memory_tasks=100,
)
