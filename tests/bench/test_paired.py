"""The statistics of `compare`: what counts as worse, and how sure it is."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from tests.bench.paired import Estimate, Pair, Verdict, estimate, summarize

NARROW = Estimate(median_a=1.0, median_b=1.0, difference=0.0, low=-0.01, high=0.01, pairs=200, rounds=8.0)


def samples(
    rng: random.Random, rounds: int, shift: float, *, pairs: int = 40, noise: float = 0.15, fresh: float = 0.01
) -> list[list[Pair]]:
    """Pairs as a shared machine gives them: what is common to a pair, noise with a long tail, luck of each round."""
    found = []
    for _ in range(rounds):
        worse = rng.gauss(math.log1p(shift), fresh)
        one: list[Pair] = []
        for _ in range(pairs):
            common = 0.003 * math.exp(rng.gauss(0, 0.5))
            tail = 5 if rng.random() < 0.1 else 1
            one.append((common, common * math.exp(worse + tail * rng.gauss(0, noise))))
        found.append(one)
    return found


def taken_until_settled(seed: int, shift: float) -> Estimate:
    """As the command does: a round at a time, as many as a quarter of an hour has at most."""
    rng = random.Random(seed)
    rounds: list[list[Pair]] = []
    for _ in range(80):
        rounds += samples(rng, 1, shift)
        found = estimate(rounds, rng)
        if found.settled:
            break
    return found


@pytest.mark.parametrize("seed", range(5))
def test_equal_builds_are_not_worse(seed: int) -> None:
    assert taken_until_settled(seed, 0.0).verdict is Verdict.OK


@pytest.mark.parametrize("seed", range(5))
def test_five_percent_worse_is_found(seed: int) -> None:
    found = taken_until_settled(seed, 0.05)
    assert found.verdict is Verdict.WORSE
    assert found.difference == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("seed", range(3))
def test_five_percent_better_is_not_worse(seed: int) -> None:
    found = taken_until_settled(seed, -0.05)
    assert found.verdict is Verdict.OK
    assert found.high < -0.02


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    covered = 0
    for _ in range(200):
        found = estimate(samples(rng, 12, 0.02, pairs=10), rng)
        covered += found.low <= 0.02 <= found.high
    assert 182 <= covered <= 198


def test_few_disturbed_pairs_change_little() -> None:
    rng = random.Random(1)
    rounds = samples(rng, 12, 0.0)
    for one in rounds:
        one[:4] = [(a, 100 * b) for a, b in one[:4]]
    assert estimate(rounds, rng).difference == pytest.approx(0.0, abs=0.03)


def test_a_noisy_round_weighs_little() -> None:
    rng = random.Random(1)
    quiet, noisy = (summarize(samples(rng, 1, 0.0, noise=noise)[0]) for noise in (0.02, 1.0))
    assert noisy.weight < quiet.weight / 20
    found = estimate([*samples(rng, 10, 0.0, noise=0.02), *samples(rng, 3, 0.5, noise=1.0)], rng)
    assert found.difference == pytest.approx(0.0, abs=0.01)
    assert 9 < found.rounds < 11


def test_pairs_of_one_round_are_not_independent() -> None:
    """Many pairs in few rounds that differ do not make the interval narrow."""
    rng = random.Random(1)
    found = estimate(samples(rng, 12, 0.0, pairs=500, noise=0.02, fresh=0.05), rng)
    assert found.pairs == 6_000
    assert found.width > 0.03
    assert found.verdict is Verdict.NOISY


def test_few_rounds_have_no_interval() -> None:
    rng = random.Random(1)
    assert estimate(samples(rng, 3, 0.0), rng).width == math.inf
    assert estimate([[(1.0, 1.1)]], rng).difference == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_interval() -> None:
    rounds = samples(random.Random(1), 12, 0.0)
    assert estimate(rounds, random.Random(2)) == estimate(rounds, random.Random(2))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.OK),
        ({"pairs": 199}, Verdict.NOISY),
        ({"rounds": 7.9}, Verdict.NOISY),
        ({"low": -0.015, "high": 0.0149}, Verdict.OK),
        ({"low": -0.015, "high": 0.0151}, Verdict.NOISY),
        ({"low": 0.01, "high": 0.039}, Verdict.OK),
        ({"low": 0.0101, "high": 0.039}, Verdict.WORSE),
        ({"low": 0.0101, "high": 0.041}, Verdict.NOISY),
        ({"low": 0.06, "high": 0.119}, Verdict.WORSE),
        ({"low": 0.06, "high": 0.121}, Verdict.NOISY),
        ({"low": 0.06, "high": 0.119, "pairs": 199}, Verdict.NOISY),
        ({"low": -0.09, "high": -0.07}, Verdict.OK),
        ({"low": -0.29, "high": -0.25}, Verdict.NOISY),
    ],
)
def test_the_rule_at_its_borders(change: dict[str, Any], verdict: Verdict) -> None:
    assert replace(NARROW, **change).verdict is verdict


def test_a_worse_row_is_sampled_until_its_interval_is_narrower_still() -> None:
    assert NARROW.settled
    assert not replace(NARROW, pairs=100).settled
    assert not replace(NARROW, low=0.02, high=0.04).settled
    assert replace(NARROW, low=0.02, high=0.034).settled
    assert replace(NARROW, low=0.06, high=0.11).settled
