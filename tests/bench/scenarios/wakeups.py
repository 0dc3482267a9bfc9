"""How many workers a single task wakes: claims per task, as the server counts them."""

from __future__ import annotations

import re
import time

from tests.bench.measure import Figures
from tests.bench.scenarios.base import Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import Stage
from tests.processes import until

PERIOD_S = 60.0
"""Between the claims that a worker makes unasked: none falls into the measurement."""

START_S = 120.0
"""How long all of them may take to start."""

CLAIM = re.compile(rb"FCALL kingtask_\w*claim")


def measure(stage: Stage, sizes: Sizes) -> Figures:
    for _ in range(sizes.idle_workers):
        stage.rig.start_worker(ready=False, concurrency=sizes.idle_slots, period=PERIOD_S)
    client = stage.rig.client()
    until(lambda: len(client.stats()["workers"]) == sizes.idle_workers, "all workers are known", START_S)
    time.sleep(sizes.settle_s)
    stage.client.call("warm", n=2)
    server = stage.rig.redis.client()
    server.config_set("slowlog-max-len", 1_000_000)
    server.config_set("slowlog-log-slower-than", 0)
    server.slowlog_reset()
    trips = stage.client.call("round_trip", n=sizes.wakeups, limit_s=60.0)["samples"]
    server.config_set("slowlog-log-slower-than", -1)
    claims = sum(bool(CLAIM.match(entry["command"])) for entry in server.slowlog_get(1_000_000))
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
