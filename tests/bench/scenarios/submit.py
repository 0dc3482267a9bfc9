"""Submits a second, no worker running."""

from __future__ import annotations

from tests.bench.measure import Figures
from tests.bench.scenarios.base import PEERS, Scenario, known
from tests.bench.sizes import Sizes
from tests.bench.stage import ContestantStack

WARM = 50


def measure(stage: ContestantStack, sizes: Sizes) -> Figures:
    figures: Figures = {}
    client, limit_s = stage.client, sizes.submit_limit_s
    if stage.can("submit"):
        client.call("submit", n=WARM, limit_s=limit_s)
        done = client.call("submit", n=sizes.submits, limit_s=limit_s)
        figures["one by one /s"] = done["n"] / done["seconds"]
    if stage.can("pipelined"):
        figures["pipelined /s"] = pipelined(stage, sizes.pipelined)
    if stage.can("submit_many"):
        done = client.call("submit_many", n=sizes.bulk, limit_s=limit_s)
        figures["in bulk /s"] = done["n"] / done["seconds"]
    return figures


def pipelined(stage: ContestantStack, n: int) -> float:
    """Singles a second, many on their way at a time."""
    done = stage.client.call("pipelined", n=n)
    rate: float = done["n"] / done["seconds"]
    return rate


SCENARIO = Scenario(
    name="submit",
    about="Tasks accepted a second from one client, no worker running: one by one, each after the reply to the one"
    " before; single tasks with many on their way; in calls of 1,000.",
    contestants=known("list", "echo", "function", "hops", "kingtask", "kingtask-async", *PEERS),
    measure=measure,
)
