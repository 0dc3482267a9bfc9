"""How soon a task starts on an idle system, and its result is in the hands of the client that waits."""

from __future__ import annotations

from tests.bench.measure import Figures, percentiles
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    stage.start_workers(settle_s=sizes.settle_s)
    starts = stage.client.call("latency", n=sizes.latencies)["samples"]
    trips = stage.client.call("round_trip", n=sizes.trips, limit_s=sizes.trips_limit_s)["samples"]
    return {**percentiles(starts, "start"), **percentiles(trips, "round trip")}


SCENARIO = Scenario(
    name="latency",
    about="On an idle system: from the submit call to the probe's `main()` (a task every 20 to 40 ms), and to the"
    " result in hand of the client that waits (one task at a time).",
    contestants=known("list", "hops", "kingtask", *PEERS),
    measure=measure,
    fsync_rounds=1,
    peer_rounds=2,
)
