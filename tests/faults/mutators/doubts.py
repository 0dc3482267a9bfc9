"""Nothing can be said."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.faults.generator import Good
from tests.faults.history import (
    Fault,
    Op,
)
from tests.faults.making import OFFSET_MS, to_ns
from tests.faults.mutators.edit import (
    DOUBT,
    Catalogue,
    altered,
    each,
    in_calls,
    in_ledger,
    of,
    run_with,
    without,
)
from tests.faults.story import History

MUTATORS = Catalogue()


@MUTATORS(DOUBT)
def acknowledge_nothing(good: Good, random: Random) -> History:
    unsure = {*good.kinds["unsure"], *good.kinds["vanished"], *good.kinds["refused"]}
    return without(good.history, {task_id for ids in good.kinds.values() for task_id in ids} - unsure)


@MUTATORS(DOUBT)
def hurt_nobody(good: Good, random: Random) -> History:
    after_ns = max(op.mono_ns for op in good.history.ops) + 1
    faults = [Fault(fault="kill broker 1", event="start", mono_ns=after_ns)]
    lossy = [task_id for kind in ("lost", "poison", "once_lost", "overlapping") for task_id in good.kinds[kind]]
    return replace(without(good.history, lossy), run=run_with(good, planned_faults=0), faults=faults)


@MUTATORS(DOUBT)
def hurt_less_than_planned(good: Good, random: Random) -> History:
    return replace(good.history, run=run_with(good, planned_faults=good.history.run.planned_faults * 2))


@MUTATORS(DOUBT)
def end_before_the_drain(good: Good, random: Random) -> History:
    return replace(good.history, run=run_with(good, drained_ns=0))


@MUTATORS(DOUBT)
def ask_for_nothing_after_the_drain(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["now"])
    finals = each(good.history.finals, of(task_id), lambda final: altered(final, reading=None, code="unavailable"))
    return replace(good.history, finals=finals)


@MUTATORS(DOUBT)
def lose_sight_of_the_clock(good: Good, random: Random) -> History:
    return replace(good.history, clock=[])


@MUTATORS(DOUBT)
def dump_nothing(good: Good, random: Random) -> History:
    return replace(good.history, dump=[])


@MUTATORS(DOUBT)
def stop_pinging(good: Good, random: Random) -> History:
    from_ns = to_ns(OFFSET_MS + 1_002_000)
    until_ns = from_ns + 6 * 10**9
    return replace(good.history, pings=[p for p in good.history.pings if not from_ns < p.mono_ns < until_ns])


@MUTATORS(DOUBT)
def tear_a_line_out_of_the_ledger(good: Good, random: Random) -> History:
    return in_ledger(good, random.choice(good.kinds["now"]), lambda line: line if line.event == "end" else None)


@MUTATORS(DOUBT)
def tear_a_line_out_of_a_client(good: Good, random: Random) -> History:
    torn = False

    def change(op: Op) -> Op | None:
        nonlocal torn
        first, torn = op.type == "invoke" and not torn, True
        return None if first else op

    return in_calls(good, random.choice(good.kinds["now"]), change)
