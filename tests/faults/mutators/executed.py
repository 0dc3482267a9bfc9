"""What ran is not what was asked for, or not what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from tests.faults.generator import Good
from tests.faults.history import (
    Execution,
    Op,
    Reading,
    Tried,
    args_digest,
    digest,
)
from tests.faults.making import LEASE_MS, to_ns
from tests.faults.mutators.edit import (
    Catalogue,
    altered,
    asked_of,
    in_attempts,
    in_calls,
    in_ledger,
    in_record,
    lines_of,
    record_of,
    run_with,
    twice,
    without,
)
from tests.faults.rules import Rules
from tests.faults.story import History

MUTATORS = Catalogue()


def _without_faults(good: Good, task_id: str) -> History:
    """Only those that begin and end before the task was stored, or after it had ended."""
    record = record_of(good, task_id)
    far = (to_ns(record.created_ms), to_ns(record.finished_ms))
    spans: dict[int, list[int]] = {}
    for fault in good.history.faults:
        spans.setdefault(fault.n, []).append(fault.mono_ns)
    kept = {n for n, (start, stop) in spans.items() if stop < far[0] or start > far[1]}
    return replace(
        good.history, faults=[f for f in good.history.faults if f.n in kept], run=run_with(good, planned_faults=0)
    )


@MUTATORS("I4")
def swap_fences(good: Good, random: Random) -> History:
    """Two attempts' workers change places."""

    def change(attempts: list[Tried]) -> None:
        mine, other = attempts[0].worker, attempts[1].worker
        other = other if other != mine else f"{mine}.other"
        attempts[0], attempts[1] = altered(attempts[0], worker=other), altered(attempts[1], worker=mine)

    return in_attempts(good, random.choice(good.kinds["overlapping"]), change)


@MUTATORS("I4")
def record_a_stale_result(good: Good, random: Random) -> History:
    """The output of the attempt that was given away stands in the record of the one that followed."""
    task_id = random.choice(good.kinds["overlapping"])
    stale = next(line.out for line in lines_of(good, task_id) if line.attempt == 1 and line.event == "end")
    size = int(stale.split(":")[1])
    return in_record(good, task_id, lambda reading: altered(reading, stdout=stale, stdout_size=size))


@MUTATORS("I4")
def record_an_attempt_after_the_next_claim(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        attempts[0] = altered(attempts[0], ended_ms=attempts[1].started_ms + 1)

    return in_attempts(good, random.choice(good.kinds["overlapping"]), change)


@MUTATORS("I4")
def forget_an_attempt(good: Good, random: Random) -> History:
    return in_attempts(good, random.choice(good.kinds["retried"]), lambda attempts: attempts.__delitem__(2))


@MUTATORS("I4")
def end_with_a_lost_attempt(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        attempts[-1] = altered(attempts[-1], reason="lost")

    return in_attempts(good, random.choice(good.kinds["now"]), change)


@MUTATORS("I4")
def fail_with_a_success(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        attempts[-1] = altered(attempts[-1], reason="")

    return in_attempts(good, random.choice(good.kinds["no_retry"]), change)


@MUTATORS("I4")
def execute_an_attempt_that_nobody_claimed(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["now"])
    return twice(good, task_id, attempt=2)


@MUTATORS("I5")
def run_a_lost_attempt_again(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        last = attempts[-1]
        attempts.append(altered(last, number=2, started_ms=last.ended_ms, ended_ms=last.ended_ms + LEASE_MS))

    return in_attempts(good, random.choice(good.kinds["once_lost"]), change)


@MUTATORS("I5")
def execute_what_may_run_once_twice(good: Good, random: Random) -> History:
    return twice(good, random.choice(good.kinds["once"]))


@MUTATORS("I5", Rules(forgets=True))
def execute_what_may_run_once_twice_in_a_failover(good: Good, random: Random) -> History:
    return twice(good, random.choice(good.kinds["once"]))


@MUTATORS("I5")
def hand_back_what_may_run_once(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        first = attempts[0]
        attempts[0] = altered(first, reason="released", exit_code=None)
        attempts.append(altered(first, number=2, started_ms=first.ended_ms))

    return in_attempts(good, random.choice(good.kinds["once"]), change)


def _started_at(mono_ns: int) -> Callable[[Execution], Execution]:
    return lambda line: altered(line, mono_ns=mono_ns) if line.event == "start" else line


@MUTATORS("I8")
def start_a_millisecond_early(good: Good, random: Random) -> History:
    """By the ledger alone; the record says that it was claimed in time."""
    task_id = random.choice(good.kinds["scheduled"])
    return in_ledger(good, task_id, _started_at(to_ns(asked_of(good, task_id).start_ms - 1)))


@MUTATORS("I8")
def claim_a_millisecond_early(good: Good, random: Random) -> History:
    """By the record alone."""
    task_id = random.choice(good.kinds["delayed"])
    record = record_of(good, task_id)
    at_ms = record.created_ms + asked_of(good, task_id).delay_ms - 1
    return in_record(good, task_id, lambda r: altered(r, attempts=(altered(r.attempts[0], started_ms=at_ms),)))


@MUTATORS("I8")
def take_the_intervals_out_of_order(good: Good, random: Random) -> History:
    """The waits were those of the list as it is, the client asked for them in the opposite order."""

    def change(op: Op) -> Op:
        return altered(op, asked=altered(op.asked, retry_ms=op.asked.retry_ms[::-1])) if op.asked else op

    return in_calls(good, random.choice(good.kinds["retried"]), change)


@MUTATORS("I8")
def retry_a_millisecond_early(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["retried"])
    due_ms = record_of(good, task_id).attempts[0].ended_ms + asked_of(good, task_id).retry_ms[0]
    at_ns = to_ns(due_ms - 1)
    return in_ledger(
        good, task_id, lambda line: altered(line, mono_ns=at_ns) if line.event == "start" else line, attempt=2
    )


@MUTATORS("I8")
def start_what_is_too_late(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["in_time"])
    at_ms = record_of(good, task_id).attempts[0].started_ms

    def change(op: Op) -> Op:
        return altered(op, asked=altered(op.asked, expires_ms=at_ms)) if op.asked else op

    return in_calls(good, task_id, change)


@MUTATORS("I8")
def give_up_a_task_before_its_time(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["expired"])
    at_ms = asked_of(good, task_id).expires_ms - 1
    return in_record(good, task_id, lambda reading: altered(reading, finished_ms=at_ms))


@MUTATORS("I9")
def try_too_often(good: Good, random: Random) -> History:
    def change(op: Op) -> Op:
        return altered(op, asked=altered(op.asked, retry_ms=op.asked.retry_ms[:-1])) if op.asked else op

    return in_calls(good, random.choice(good.kinds["failed"]), change)


@MUTATORS("I9")
def give_up_too_early(good: Good, random: Random) -> History:
    def change(op: Op) -> Op:
        return altered(op, asked=altered(op.asked, retry_ms=(*op.asked.retry_ms, 100))) if op.asked else op

    return in_calls(good, random.choice(good.kinds["failed"]), change)


@MUTATORS("I9")
def lose_a_task_too_often(good: Good, random: Random) -> History:
    return replace(good.history, run=run_with(good, max_lost=2))


@MUTATORS("I9")
def give_up_a_lost_task_too_early(good: Good, random: Random) -> History:
    return replace(good.history, run=run_with(good, max_lost=4))


@MUTATORS("I10")
def overlap_without_a_fault(good: Good, random: Random) -> History:
    return _without_faults(good, random.choice(good.kinds["overlapping"]))


@MUTATORS("I10")
def lose_an_attempt_without_a_fault(good: Good, random: Random) -> History:
    alone = replace(good, history=without(good.history, good.kinds["overlapping"]))
    return _without_faults(alone, random.choice(good.kinds["lost"]))


@MUTATORS("I10")
def give_an_attempt_away_during_its_lease(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        attempts[0] = altered(attempts[0], ended_ms=attempts[0].started_ms + LEASE_MS - 1)

    return in_attempts(good, random.choice(good.kinds["lost"]), change)


@MUTATORS("I10")
def overlap_a_failed_attempt(good: Good, random: Random) -> History:
    task_id = random.choice(good.kinds["failed"])
    second_ns = next(line.mono_ns for line in lines_of(good, task_id) if line.attempt == 2)
    return in_ledger(
        good, task_id, lambda line: altered(line, mono_ns=second_ns + 1) if line.event == "end" else line, attempt=1
    )


@MUTATORS("I10")
def execute_attempts_in_the_wrong_order(good: Good, random: Random) -> History:
    return in_ledger(good, random.choice(good.kinds["failed"]), lambda line: altered(line, attempt=4 - line.attempt))


@MUTATORS("I15")
def change_a_byte_of_the_output(good: Good, random: Random) -> History:
    def change(reading: Reading) -> Reading:
        return altered(reading, stdout=digest(b"x" * reading.stdout_size))

    return in_record(good, random.choice(good.kinds["now"]), change)


@MUTATORS("I15")
def cut_a_short_output(good: Good, random: Random) -> History:
    return in_record(good, random.choice(good.kinds["now"]), lambda reading: altered(reading, stdout=digest(b"x")))


@MUTATORS("I15")
def tell_another_size(good: Good, random: Random) -> History:
    return in_record(good, random.choice(good.kinds["cut"]), lambda r: altered(r, stdout_size=r.stdout_size - 1))


@MUTATORS("I15")
def write_to_stderr_unseen(good: Good, random: Random) -> History:
    said = digest(b"said")
    return in_ledger(
        good, random.choice(good.kinds["now"]), lambda line: altered(line, err=said if line.event == "end" else "")
    )


@MUTATORS("I15")
def pass_other_arguments(good: Good, random: Random) -> History:
    other = args_digest(["other"])
    return in_ledger(
        good, random.choice(good.kinds["now"]), lambda line: altered(line, args=other if line.args else "")
    )


@MUTATORS("I15")
def keep_other_arguments(good: Good, random: Random) -> History:
    return in_record(good, random.choice(good.kinds["now"]), lambda r: altered(r, args=args_digest(["other"])))


@MUTATORS("I15")
def record_another_status(good: Good, random: Random) -> History:
    def change(attempts: list[Tried]) -> None:
        attempts[0] = altered(attempts[0], exit_code=8)

    return in_attempts(good, random.choice(good.kinds["failed"]), change)


@MUTATORS("I15")
def succeed_without_an_end(good: Good, random: Random) -> History:
    return in_ledger(good, random.choice(good.kinds["now"]), lambda line: line if line.event == "start" else None)
