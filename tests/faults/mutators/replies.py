"""A client gets a reply that does not fit what happened to its task."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.faults.generator import Good
from tests.faults.history import (
    Execution,
    Key,
    Op,
    Tried,
    digest,
)
from tests.faults.making import to_ns
from tests.faults.mutators.edit import (
    STRANGER,
    Catalogue,
    altered,
    and_keys,
    each,
    in_attempts,
    in_calls,
    in_key,
    in_ledger,
    in_record,
    of,
    record_of,
    twice,
)
from tests.faults.rules import Rules
from tests.faults.story import History

MUTATORS = Catalogue()


@MUTATORS("I1")
def drop_an_execution(good: Good, random: Random) -> History:
    return in_ledger(good, random.choice(good.kinds["now"]), lambda line: None)


@MUTATORS("I1")
def lose_an_acknowledged_task(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["scheduled"])
    finals = each(good.history.finals, of(task_id), lambda final: altered(final, reading=None))
    ops = [op for op in good.history.ops if op.id != task_id or op.f == "submit"]
    dump = [key for key in good.history.dump if key.key != f"task:{task_id}"]
    return replace(in_ledger(good, task_id, lambda line: None), finals=finals, ops=ops, dump=dump)


@MUTATORS("I1")
def leave_a_task_waiting(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["cancelled"])
    finals = each(
        good.history.finals, of(task_id), lambda f: altered(f, reading=f.reading and altered(f.reading, state="ready"))
    )
    ops = [op for op in good.history.ops if op.id != task_id or op.f == "submit"]
    return replace(good.history, finals=finals, ops=ops)


@MUTATORS("I1")
def deny_an_acknowledged_task(good: Good, random: Random) -> History:
    def deny(op: Op) -> Op:
        return altered(op, type="fail", code="not_found", stored="no", reading=None) if op.reading else op

    return in_calls(good, random.choice(good.kinds["cancelled"]), deny)


@MUTATORS("I1")
def store_a_lost_task_again(good: Good, random: Random) -> History:
    return in_record(good, random.choice(good.kinds["scheduled"]), lambda r: altered(r, created_ms=r.created_ms + 400))


@MUTATORS("I1", Rules(acks=frozenset({"replicas"})))
def acknowledge_at_a_lower_level(good: Good, random: Random) -> History:
    return good.history


@MUTATORS("I2")
def forge_an_id_in_the_ledger(good: Good, random: Random) -> History:
    return in_ledger(good, random.choice(good.kinds["lost"]), lambda line: altered(line, id=STRANGER))


@MUTATORS("I2")
def store_a_task_that_nobody_asked_for(good: Good, random: Random) -> History:
    return and_keys(good, Key(key=f"task:{STRANGER}", type="hash", ttl_ms=1000))


@MUTATORS("I2")
def tell_of_a_task_that_nobody_asked_for(good: Good, random: Random) -> History:
    finals = [altered(final, id=STRANGER) for final in good.history.finals if final.id == good.kinds["cancelled"][0]]
    return replace(good.history, finals=[*good.history.finals, *finals])


@MUTATORS("I3")
def read_another_outcome(good: Good, random: Random) -> History:
    def change(op: Op) -> Op:
        if op.reading is None or not op.reading.finished_ms:
            return op
        return altered(op, reading=altered(op.reading, state="failed", reason="exit"))

    return in_calls(good, random.choice(good.kinds["now"]), change)


@MUTATORS("I3")
def drop_an_output(good: Good, random: Random) -> History:
    """A client has read it, and it is gone after the drain."""
    task_id = random.choice(good.kinds["now"])
    reading = altered(record_of(good, task_id), stdout=digest(b""))
    finals = each(good.history.finals, of(task_id), lambda final: altered(final, reading=reading))
    return replace(good.history, finals=finals)


@MUTATORS("I3")
def end_a_task_twice(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["now"])
    return in_key(good, "finished:failed", lambda key: altered(key, members={**(key.members or {}), task_id: "1"}))


@MUTATORS("I3")
def run_on_after_the_end(good: Good, random: Random) -> History:
    """A client reads a running task that another has seen ended."""
    task_id = random.choice(good.kinds["now"])
    end = next(op for op in good.history.ops if op.id == task_id and op.reading and op.reading.finished_ms)
    begun = Op(proc="z", op=1, mono_ns=end.mono_ns + 1, type="invoke", f="result", id=task_id)
    running = altered(record_of(good, task_id), state="running", finished_ms=0)
    return replace(good.history, ops=[*good.history.ops, begun, altered(begun, type="ok", reading=running)])


@MUTATORS("I3")
def execute_a_cancelled_task(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["cancelled"])
    at_ns = to_ns(record_of(good, task_id).finished_ms + 5)
    run = Execution(id=task_id, attempt=1, event="start", mono_ns=at_ns, pid=1)
    return replace(good.history, executions=[*good.history.executions, run])


@MUTATORS("I3")
def let_a_cancelled_task_succeed(good: Good, random: Random) -> History:
    return in_record(good, random.choice(good.kinds["cancelled"]), lambda r: altered(r, state="succeeded"))


@MUTATORS("I3")
def go_on_after_a_success(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["failed"])

    def change(attempts: list[Tried]) -> None:
        attempts[0] = altered(attempts[0], reason="", exit_code=0)

    return in_attempts(good, task_id, change)


@MUTATORS("I6")
def execute_an_attempt_twice(good: Good, random: Random) -> History:
    return twice(good, random.choice(good.kinds["shared"]))


@MUTATORS("I6")
def create_a_task_twice(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["now"])
    ops = [op for op in good.history.ops if op.id == task_id and op.f == "submit"]
    return replace(good.history, ops=[*good.history.ops, *(altered(op, proc="z") for op in ops)])


@MUTATORS("I6")
def take_the_same_submit_for_another(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["shared"])
    begin = next(op for op in good.history.ops if op.id == task_id and op.asked is not None)
    refused = Op(proc="z", op=1, mono_ns=begin.mono_ns + 1, type="fail", f="submit", id=task_id, code="id_conflict")
    return replace(good.history, ops=[*good.history.ops, altered(begin, proc="z", op=1), refused])


@MUTATORS("I6")
def acknowledge_two_tasks_under_one_id(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["now"])
    ops = [op for op in good.history.ops if op.id == task_id and op.f == "submit"]
    other = [altered(op, proc="z", asked=op.asked and altered(op.asked, queue="other"), outcome="") for op in ops]
    return replace(good.history, ops=[*good.history.ops, *other])


@MUTATORS("I7")
def execute_a_refused_task(good: Good, random: Random) -> History:
    run = Execution(id=random.choice(good.kinds["refused"]), attempt=1, event="start", mono_ns=10**12, pid=1)
    return replace(good.history, executions=[*good.history.executions, run])


@MUTATORS("I7")
def store_a_refused_task(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["refused"])
    reading = record_of(good, random.choice(good.kinds["cancelled"]))
    finals = each(good.history.finals, of(task_id), lambda final: altered(final, reading=reading))
    return replace(good.history, finals=finals)
