"""Executables a second, end to end."""

from __future__ import annotations

from tests.bench.measure import Figures
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    stage.start_workers()
    done = stage.client.call("execute", n=sizes.executables)
    figures: Figures = {"executables /s": done["n"] / done["seconds"]}
    if "submitted_s" in done:
        figures["submitting /s"] = done["n"] / done["submitted_s"]
    if stage.client.hello["bulk"]:
        done = stage.client.call("execute", n=sizes.executables, bulk=True)
        figures["in bulk: executables /s"] = done["n"] / done["seconds"]
    return figures


SCENARIO = Scenario(
    name="execute",
    about="Executables a second, four at a time, from the first submit (one by one; then in bulk where there is such a"
    " call) to the last stored result; client, broker, server and workers share the machine.",
    contestants=known("list", "spawn", "kingtask", *PEERS),
    measure=measure,
    fsync_rounds=1,
)
