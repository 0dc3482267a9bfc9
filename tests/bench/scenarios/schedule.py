"""Very many tasks scheduled an hour ahead: what they cost, how late others start meanwhile, a broker's restart."""

from __future__ import annotations

import time

from tests.bench.measure import Figures, percentiles, rss_mb
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.scenarios.lateness import WANTED, late
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack

WARM = 1_000
"""Tasks scheduled before anything is measured: what the first requests allocate is not the tasks' cost."""

ON_TIME_S = 0.05
"""A start no later than this after its instant is on time, on a machine that does other things as well."""


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    peer = stage.contestant.kind == "peer"
    if stage.contestant.name != "function":  # whose tasks no worker can see
        stage.start_workers(settle_s=sizes.settle_s)
    sizes_of = {"kingtask": sizes.scheduled, "floor": sizes.scheduled_by_floors, "peer": sizes.scheduled_by_peers}
    n = sizes_of[stage.contestant.kind]
    limit_s = sizes.schedule_limit_of_peers_s if peer else sizes.schedule_limit_s
    stage.client.call("schedule", n=min(WARM, n), limit_s=limit_s)
    time.sleep(sizes.settle_s)
    used, broker_mb, workers_mb = _used(stage), _broker_mb(stage), rss_mb(stage.worker_pids)
    done = stage.client.call("schedule", n=n, limit_s=limit_s)
    time.sleep(sizes.settle_s)
    figures: Figures = {
        "tasks": done["n"],
        "scheduled /s": done["n"] / done["seconds"],
        "Redis bytes per task": (_used(stage) - used) / done["n"],
        "workers' bytes per task": (rss_mb(stage.worker_pids) - workers_mb) * 2**20 / done["n"],
    }
    if stage.broker is not None:
        figures["broker RSS growth MB"] = _broker_mb(stage) - broker_mb
        figures |= percentiles(late(stage, sizes), "late", WANTED)
        figures["restart: on time after s"] = on_time_after(stage, sizes)
    return figures


def on_time_after(stage: ContestantStack, sizes: Sizes) -> float:
    """Kill the broker and start it anew: seconds from its exec to the instant from which on all starts were on time."""
    assert stage.broker is not None
    stage.client.call("plan", n=sizes.restart_instants, span_s=sizes.restart_span_s, ahead_s=0.2)
    stage.broker.kill()
    started = time.time()
    stage.broker.start(ready=False)
    found = stage.client.call("late")
    instants = sorted(zip(found["at"], found["samples"], strict=True))
    missed = [at for at, by in instants if not 0 <= by <= ON_TIME_S]
    good = [at for at, _ in instants if at > started and (not missed or at > missed[-1])]
    return good[0] - started if good else sizes.restart_span_s + 1


def _used(stage: ContestantStack) -> int:
    used: int = stage.rig.redis.client().info("memory")["used_memory"]
    return used


def _broker_mb(stage: ContestantStack) -> float:
    return rss_mb([stage.broker.pid]) if stage.broker else 0.0


SCENARIO = Scenario(
    name="schedule",
    about="1,000,000 tasks an hour ahead (200,000 of each floor, 20,000 of each peer) with two short arguments, workers"
    " running: rate, memory of the server and of the processes; then kingtask's lateness over 10 s with all those"
    " scheduled, and the time from a killed broker's new start until tasks start on time again (at once, if it is up"
    " before the next instant).",
    contestants=known("list", "function", "kingtask", *PEERS),
    measure=measure,
    rounds=2,
    fsync_rounds=1,
    peer_rounds=1,
    peer_fsync_rounds=0,
)
