"""How many workers a single task wakes: claims per task, as the server counts them."""

from __future__ import annotations

import time

from tests.bench.measure import Figures
from tests.bench.scenarios.base import Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack
from tests.processes import until
from tests.slowlog import Calls

PERIOD_S = 60.0
"""Between the claims that a worker makes unasked: none falls into the measurement."""

START_S = 120.0
"""How long all of them may take to start."""


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    for _ in range(sizes.idle_workers):
        stage.rig.start_worker(ready=False, concurrency=sizes.idle_slots, period=PERIOD_S)
    client = stage.rig.client()
    until(lambda: len(client.stats()["workers"]) == sizes.idle_workers, "all workers are known", START_S)
    time.sleep(sizes.settle_s)
    stage.client.call("warm", n=2)
    with Calls(stage.rig.redis.client()) as calls:
        trips = stage.client.call("round_trip", n=sizes.wakeups, limit_s=60.0)["samples"]
    claims = calls.made()["claim"]
    return {"tasks": len(trips), "claims per task": claims / len(trips)}


SCENARIO = Scenario(
    name="wakeups",
    about="200 tasks, one after the other, while 20 workers with 10 free slots each are idle (their own claims, one in"
    " `period`, put off): claims per task in the server's log of commands.",
    contestants=known("kingtask"),
    measure=measure,
    rounds=1,
    fsync_rounds=0,
)
