"""How late tasks start after their instants."""

from __future__ import annotations

from tests.bench.measure import Figures, percentiles
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack

WANTED = (0, 50, 95, 99, 100)


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    stage.start_workers(settle_s=sizes.settle_s)
    figures = percentiles(late(stage, sizes), "idle", WANTED)
    if stage.contestant.kind == "kingtask":
        other = stage.new_client()
        other.call("open")
        flow_s = sizes.ahead_s + sizes.span_s
        other.begin("flow", rate=sizes.flow, seconds=flow_s)
        figures |= percentiles(late(stage, sizes), f"at {sizes.flow:,.0f} tasks/s", WANTED)
        flowed = other.end()["n"]
        figures["flow /s"] = flowed / flow_s
    return figures


def late(stage: ContestantStack, sizes: Sizes) -> list[float]:
    """Seconds by which each of some tasks, spread evenly over a span, began after its instant."""
    stage.client.call("plan", n=sizes.instants, span_s=sizes.span_s, ahead_s=sizes.ahead_s)
    samples: list[float] = stage.client.call("late")["samples"]
    return samples


SCENARIO = Scenario(
    name="lateness",
    about="The probe's `main()` minus the instant asked for, of 300 tasks over 10 s submitted in random order: while"
    " nothing else is to do, and while 500 other tasks a second flow through the system. Less than 0 is too early."
    " With 1,000,000 further tasks: see the next table.",
    contestants=known("kingtask", *PEERS),
    measure=measure,
    rounds=2,
    fsync_rounds=1,
    peer_rounds=1,
    peer_fsync_rounds=0,
)
