"""Whether the daemons' memory stays what it is over very many tasks."""

from __future__ import annotations

from tests.bench.measure import Figures, rss_mb
from tests.bench.scenarios.base import Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack

LOOKS = 10
WARM = 2
"""Looks that come before the first that counts: caches and the allocator's pools fill with the first tasks."""


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    stage.start_workers()
    assert stage.broker is not None
    looks = []
    seconds = 0.0
    for _ in range(LOOKS):
        seconds += stage.client.call("execute", n=sizes.memory_tasks // LOOKS, bulk=True)["seconds"]
        looks.append((rss_mb([stage.broker.pid]), rss_mb(stage.worker_pids)))
    (broker, worker), (broker_end, worker_end) = looks[WARM - 1], looks[-1]
    return {
        "tasks": sizes.memory_tasks,
        "executables /s": sizes.memory_tasks / seconds,
        "broker RSS MB": broker_end,
        "broker RSS growth MB": broker_end - broker,
        "worker RSS MB": worker_end,
        "worker RSS growth MB": worker_end - worker,
    }


SCENARIO = Scenario(
    name="memory",
    about="Resident memory of broker and worker over 200,000 tasks, and how much of it came after the first fifth.",
    contestants=known("kingtask"),
    measure=measure,
    rounds=1,
    fsync_rounds=0,
)
