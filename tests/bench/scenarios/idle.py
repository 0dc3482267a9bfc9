"""What an installation costs that has nothing to do."""

from __future__ import annotations

import time

from tests.bench.measure import Figures, cpu_s, rss_mb
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    stage.start_workers(settle_s=sizes.settle_s)
    span_s = sizes.idle_s if stage.broker else sizes.idle_of_peers_s
    groups = {"worker": stage.worker_pids}
    if stage.broker is not None:
        groups["broker"] = [stage.broker.pid]
    before = {name: cpu_s(pids) for name, pids in groups.items()}
    start = time.perf_counter()
    time.sleep(span_s)
    taken = time.perf_counter() - start
    used = {name: 100 * (cpu_s(pids) - before[name]) / taken for name, pids in groups.items()}
    figures: Figures = {}
    for name, pids in groups.items():
        figures[f"{name} CPU %"] = used[name]
        figures[f"{name} RSS MB"] = rss_mb(pids)
    figures["CPU % together"] = sum(used.values())
    return figures


SCENARIO = Scenario(
    name="idle",
    about="Processor time, as a share of one core over 30 s (10 s of the others), and resident memory of all worker"
    " processes and of the broker, after ten tasks and with nothing to do.",
    contestants=known("list", "kingtask", *PEERS),
    measure=measure,
    rounds=1,
    fsync_rounds=0,
)
