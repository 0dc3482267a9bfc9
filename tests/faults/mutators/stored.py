"""What lies in Redis does not fit together, or is not over in time."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.faults.generator import Good
from tests.faults.history import (
    Key,
)
from tests.faults.mutators.edit import (
    Catalogue,
    altered,
    and_keys,
    asked_of,
    each,
    in_key,
    of,
    record_of,
    run_with,
    zset,
)
from tests.faults.story import History

MUTATORS = Catalogue()


def _waiting(good: Good, task_id: str, ttl_ms: int, *indexes: str) -> History:
    """A task of which no client knows the end is waiting."""
    args = asked_of(good, task_id).args
    reading = altered(record_of(good, good.kinds["cancelled"][0]), state="ready", finished_ms=0, args=args)
    finals = each(good.history.finals, of(task_id), lambda final: altered(final, reading=reading))
    key = Key(key=f"task:{task_id}", type="hash", ttl_ms=ttl_ms)
    return replace(and_keys(good, key, *(zset(index, task_id) for index in indexes)), finals=finals)


@MUTATORS("I11")
def name_an_id_in_two_indexes(good: Good, random: Random) -> History:
    indexes = random.sample(["schedule", "running", "ready:default", "ready:other"], 2)
    return _waiting(good, random.choice(good.kinds["vanished"]), -1, *indexes)


@MUTATORS("I11")
def let_a_waiting_task_vanish(good: Good, random: Random) -> History:
    return _waiting(good, random.choice(good.kinds["vanished"]), 1000, "ready:default")


@MUTATORS("I11")
def name_a_waiting_task_nowhere(good: Good, random: Random) -> History:
    return _waiting(good, random.choice(good.kinds["vanished"]), -1)


@MUTATORS("I11")
def keep_a_task_that_the_api_denies(good: Good, random: Random) -> History:
    return and_keys(good, Key(key=f"task:{random.choice(good.kinds['vanished'])}", type="hash", ttl_ms=1000))


@MUTATORS("I11")
def name_an_ended_task_beside_the_indexes(good: Good, random: Random) -> History:
    return and_keys(good, zset(random.choice(["expiry", "held:host.11.aa"]), random.choice(good.kinds["now"])))


@MUTATORS("I11")
def leave_an_orphan_key(good: Good, random: Random) -> History:
    return and_keys(good, Key(key=random.choice(["tasks", "task:1", "lock", "ready:"]), type="string", ttl_ms=-1))


@MUTATORS("I11")
def name_a_missing_task(good: Good, random: Random) -> History:
    return and_keys(
        good, zset(random.choice(["schedule", "running", "ready:default"]), random.choice(good.kinds["vanished"]))
    )


@MUTATORS("I11")
def keep_an_ended_task_on_an_index(good: Good, random: Random) -> History:
    index = random.choice(["schedule", "running", "ready:default"])
    task_id = random.choice(good.kinds["now"])
    kept = in_key(good, f"task:{task_id}", lambda key: altered(key, ttl_ms=-1))
    return and_keys(replace(good, history=kept), zset(index, task_id))


@MUTATORS("I11")
def keep_a_record_for_ever(good: Good, random: Random) -> History:
    return in_key(good, f"task:{random.choice(good.kinds['now'])}", lambda key: altered(key, ttl_ms=-1))


@MUTATORS("I11")
def keep_what_a_worker_held_for_ever(good: Good, random: Random) -> History:
    return in_key(good, "held:w1", lambda key: altered(key, ttl_ms=-1))


@MUTATORS("I11")
def let_an_index_vanish(good: Good, random: Random) -> History:
    return in_key(good, random.choice(["queues", "meta", "finished:failed"]), lambda key: altered(key, ttl_ms=1000))


@MUTATORS("I11")
def count_a_task_too_many(good: Good, random: Random) -> History:
    what = random.choice(["running", "scheduled"])
    return in_key(good, "counts:default", lambda key: altered(key, members={what: random.choice(["1", "-1"])}))


@MUTATORS("I11")
def count_a_living_task_too_many(good: Good, random: Random) -> History:
    return in_key(good, "meta", lambda key: altered(key, members={"live": random.choice(["1", "-1"])}))


@MUTATORS("I11")
def leave_an_ended_task_off_its_list(good: Good, random: Random) -> History:
    gone = random.choice(good.kinds["now"])

    def change(key: Key) -> Key:
        return altered(key, members={task_id: at for task_id, at in (key.members or {}).items() if task_id != gone})

    return in_key(good, "finished:succeeded", change)


@MUTATORS("I11")
def tell_of_a_task_that_is_not_there(good: Good, random: Random) -> History:
    return in_key(good, f"task:{random.choice(good.kinds['now'])}", lambda key: None)


@MUTATORS("I12")
def drain_too_late(good: Good, random: Random) -> History:
    return replace(good.history, run=run_with(good, drained_ns=good.history.run.drained_ns + 120 * 10**9))
