"""The command `compare` around its statistics: the order of samples, the rows, the exit status."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import cast

import pytest

from tests.bench import compare
from tests.bench.build import Build, Costs
from tests.bench.compare import KINDS, ROWS, WARM_PAIRS, Builds, Comparison, in_turns, lateness
from tests.bench.paired import MIN_ROUNDS, Pair


class FakeBuild:
    """A build without processes, which notes the order of the samples."""

    def __init__(self, name: str, asked: list[str], cost: float) -> None:
        self.name = name
        self.asked = asked
        self.cost = cost
        self.instants: list[float] = []
        self.plans = 0

    def sample(self, tasks: int) -> Costs:
        self.asked.append(self.name)
        return {"start": self.cost * tasks}

    def plan(self, instants: list[float]) -> None:
        self.instants = instants
        self.plans += 1

    def late(self) -> list[float]:
        return [self.cost for _ in self.instants]


def builds(asked: list[str]) -> Builds:
    return cast(Builds, (FakeBuild("a", asked, 1.0), FakeBuild("b", asked, 2.0)))


def flat(ratio: float, rounds: int) -> list[list[Pair]]:
    return [[(0.001, 0.001 * ratio)] * 40] * rounds


def compared(**ratios: float) -> Comparison:
    comparison = Comparison([row for row in ROWS if row in ratios], random.Random(1))
    for row, ratio in ratios.items():
        for pairs in flat(ratio, MIN_ROUNDS + 2):
            comparison.add({row: pairs})
    return comparison


@pytest.fixture
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REST_S", (0.0, 0.0))


@pytest.mark.usefixtures("_no_rest")
def test_both_builds_are_sampled_in_each_pair_in_random_order() -> None:
    asked: list[str] = []
    measure = in_turns(cast(Callable[[Build, int], Costs], FakeBuild.sample))
    found = measure(builds(asked), 40, 3, random.Random(1))
    assert found == {"start": [(3.0, 6.0)] * 40}
    orders = ["".join(asked[i : i + 2]) for i in range(0, len(asked), 2)]
    assert len(orders) == WARM_PAIRS + 40
    assert set(orders) == {"ab", "ba"}
    assert 10 < orders.count("ab") < 30


def test_instants_belong_to_both_builds_in_turns_and_lie_ahead() -> None:
    both = builds([])
    before = time.time()
    found = lateness(both, 25, 1, random.Random(1))
    assert found == {"lateness": [(1.0, 2.0)] * 25}
    a, b = (cast(FakeBuild, build).instants for build in both)
    assert len(a) == len(b) == WARM_PAIRS + 25
    assert min(a + b) > before
    assert len({*a, *b}) == len(a) + len(b)
    assert all(abs(x - y) == pytest.approx(compare.SPACING_S, abs=1e-4) for x, y in zip(a, b, strict=True))
    assert len({x < y for x, y in zip(a, b, strict=True)}) == 2


def test_instants_that_passed_while_they_were_planned_are_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "AHEAD_S", 0.0)
    monkeypatch.setattr(compare, "AHEAD_PAIR_S", 1e-9)
    both = builds([])
    assert lateness(both, 25, 1, random.Random(1)) == {"lateness": [(1.0, 2.0)] * 25}
    assert all(cast(FakeBuild, build).plans > 1 for build in both)


def test_the_exit_status_says_whether_a_row_is_worse_or_undecided() -> None:
    assert compared(start=1.0, submits=0.9).status == 0
    assert compared(start=1.0, submits=1.05).status == 1
    undecided = compared(start=1.0, submits=1.0)
    undecided.rounds["reply"] = []
    assert undecided.status == 2
    both = compared(start=1.05)
    both.rounds["reply"] = []
    assert both.status == 1
    assert both.summary() == "worse: start; too noisy: reply"
    assert compared(start=1.0).summary() == "no row worse"


def test_only_kinds_with_an_unsettled_row_are_sampled_on() -> None:
    comparison = compared(start=1.0, submits=1.0)
    trip, execute, submit, pipeline, late = KINDS
    assert not any(comparison.open(kind) for kind in KINDS)
    comparison.rounds["lateness"] = []
    assert [kind for kind in KINDS if comparison.open(kind)] == [late]
    comparison.rounds["cpu-redis"] = []
    assert [kind for kind in KINDS if comparison.open(kind)] == [execute, late]
    assert {*trip.rows, *submit.rows, *pipeline.rows} < {*ROWS}


def test_a_row_outside_only_is_left_out() -> None:
    comparison = Comparison(["start"], random.Random(1))
    comparison.add({"start": [(1.0, 1.0)], "reply": [(1.0, 1.0)]})
    assert [*comparison.rounds] == [*comparison.estimates] == ["start"]


def test_the_table_shows_rates_as_tasks_a_second_and_times_as_times() -> None:
    table = compared(**{"start": 1.05, "executables": 1.25, "cpu-redis": 0.5}).table()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2:] == [
        ["start", "1 ms", "1.05 ms", "+5.00 %", "+5.00 … +5.00 %", "400", "worse"],
        ["executables", "1,000 /s", "800 /s", "+25.00 %", "+25.00 … +25.00 %", "400", "worse"],
        ["cpu-redis", "1,000 µs", "500 µs", "-50.00 %", "-50.00 … -50.00 %", "400", "ok"],
    ]
    assert "too noisy" in Comparison(["start"], random.Random(1)).table()
