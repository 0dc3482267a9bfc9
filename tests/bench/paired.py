"""Two builds compared: the paired difference of a row, its interval, and the verdict. Pure.

A cost is a positive number of which less is better. A pair is the costs of both builds in two neighboring samples, and
a round is all pairs of two fresh stacks. Differences are fractions of the first build's cost; above 0 the second build
is worse.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

Pair = tuple[float, float]

MIN_PAIRS = 200
MIN_ROUNDS = 8
"""By weight. Fewer say too little about how much two fresh stacks of one build differ."""
MAX_WIDTH = 0.03
"""Of the 95 % interval."""
TOLERANCE = 0.01
"""How far on the worse side the better end of the interval may lie."""
SURE_WIDTH = 0.015
"""A row that is little worse is sampled until its interval is narrower than this: chance makes few rows worse."""

LEVEL = 0.95
RESAMPLES = 1_000
FEWER = 3
"""Rounds that a resample lacks."""
FRESH = 0.02
"""About the standard deviation of a round's difference, however many pairs it has: no two fresh stacks are alike."""


class Verdict(StrEnum):
    OK = "ok"
    WORSE = "worse"
    NOISY = "too noisy"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The difference between two builds in one row, with its 95 % interval."""

    median_a: float
    median_b: float
    difference: float
    low: float
    high: float
    pairs: int
    rounds: float
    """Effective ones: of equal weight they would say as much."""

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def verdict(self) -> Verdict:
        if self.pairs < MIN_PAIRS or self.rounds < MIN_ROUNDS or not (self.width < MAX_WIDTH or self._far_worse):
            return Verdict.NOISY
        return Verdict.OK if self.low <= TOLERANCE else Verdict.WORSE

    @property
    def settled(self) -> bool:
        """Whether more samples are not worth their time."""
        sure = self.width < SURE_WIDTH or self._far_worse
        return self.verdict is Verdict.OK or (self.verdict is Verdict.WORSE and sure)

    @property
    def _far_worse(self) -> bool:
        """Whether the interval is farther from 0 than it is wide."""
        return self.low > max(TOLERANCE, self.width)


class Round(NamedTuple):
    """The difference in one round, as a logarithm, and its weight."""

    difference: float
    weight: float


def estimate(rounds: Sequence[Sequence[Pair]], rng: random.Random) -> Estimate:
    """Estimate the difference from at least one round of at least one pair each.

    The interval is a bootstrap over rounds: pairs of one round share their processes and are not independent. A
    resample has three rounds fewer than there are. With few rounds the interval is then as wide as Student's t.
    """
    summaries = [summarize(pairs) for pairs in rounds]
    pairs = [pair for one in rounds for pair in one]
    low, high = -math.inf, math.inf
    if len(summaries) > FEWER:
        draws = len(summaries) - FEWER
        resampled = sorted(weighted_mean(rng.choices(summaries, k=draws)) for _ in range(RESAMPLES))
        tail = round(RESAMPLES * (1 - LEVEL) / 2)
        low, high = math.expm1(resampled[tail]), math.expm1(resampled[-1 - tail])
    return Estimate(
        median_a=statistics.median(a for a, _ in pairs),
        median_b=statistics.median(b for _, b in pairs),
        difference=math.expm1(weighted_mean(summaries)),
        low=low,
        high=high,
        pairs=len(pairs),
        rounds=sum(one.weight for one in summaries) ** 2 / sum(one.weight**2 for one in summaries),
    )


def summarize(pairs: Sequence[Pair]) -> Round:
    """Take the mean of the middle half of the logarithms of the ratios; a round that was noisy weighs little."""
    ratios = sorted(math.log(b / a) for a, b in pairs)
    cut = len(ratios) // 4
    middle = ratios[cut : len(ratios) - cut]
    spread = middle[-1] - middle[0]
    return Round(statistics.fmean(middle), 1 / (FRESH**2 + spread**2 / len(ratios)))


def weighted_mean(rounds: Sequence[Round]) -> float:
    return sum(one.difference * one.weight for one in rounds) / sum(one.weight for one in rounds)
