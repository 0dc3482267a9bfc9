"""The checker calls good histories valid, and catches each way to spoil one, whatever the seed."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from tests.faults import stored
from tests.faults.checker import check
from tests.faults.generator import generate
from tests.faults.mutators import doubts, executed, processes, replies
from tests.faults.mutators import stored as stored_wrong
from tests.faults.mutators.edit import DOUBT, Mutator
from tests.faults.rules import INVARIANTS
from tests.store.key_patterns import KEY_PATTERNS

SEEDS = range(50)
MUTATORS = [*replies.MUTATORS, *executed.MUTATORS, *stored_wrong.MUTATORS, *processes.MUTATORS, *doubts.MUTATORS]

good = cache(generate)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_good_history_is_valid(seed):
    report = check(good(seed).history)
    assert report.verdict == "valid", str(report)
    assert report.counts["acknowledged"] > report.counts["lost"] == report.counts["unexpected"] == 0
    for name in ("overlaps", "stale_refused", "duplicated", "recovered", "refused", "unknown"):
        assert report.counts[name] > 0, name


@pytest.mark.parametrize("mutator", MUTATORS, ids=lambda mutator: mutator.name)
def test_a_spoilt_history_is_caught(mutator: Mutator):
    for seed in SEEDS:
        report = check(mutator.spoil(good(seed), Random(seed)), mutator.rules)
        if mutator.breaks == DOUBT:
            assert report.verdict == "unknown", f"seed {seed}: {report}"
        else:
            assert report.verdict == "invalid", f"seed {seed}: {report}"
            assert report.totals[mutator.breaks] > 0, f"seed {seed}: {report}"


def test_every_invariant_is_spoilt_by_some_mutator():
    assert {mutator.breaks for mutator in MUTATORS} == {*INVARIANTS, DOUBT}


def test_every_kind_of_key_has_its_rule():
    assert stored.WITH_TTL | stored.BOUNDED | {"task"} == set(KEY_PATTERNS)
