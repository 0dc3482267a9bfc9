"""Submitting many tasks as a plan: no socket, no clock, every chunk by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from kingtask import protocol, wire
from kingtask.client.bulk import CHUNK_TASKS, IN_FLIGHT, Bulk
from kingtask.client.call import Call, CallStage, SendOnly
from kingtask.client.handles import Outcome, Task
from kingtask.errors import Busy, KingtaskError, NoAnswer, NotConfirmed, RequestRefused
from kingtask.task import TaskSpec
from tests.client.shells import outcomes


class ManualClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class BulkRun:
    """Runs a bulk submit step by step."""

    def __init__(self, tasks: Iterable[TaskSpec], clock: ManualClock | None = None) -> None:
        make: Any = lambda task_id, name: Task(None, task_id, name)  # type: ignore[arg-type] # noqa: E731
        bulk = Bulk(10.0, clock or ManualClock(), make)
        self._plan = bulk.submit(tasks)
        self.under_way: list[Call] = []
        self.found: list[Outcome[Task]] | None = None
        self._go(lambda: next(self._plan))

    def finish(self, *calls: Call) -> None:
        """Go on with these calls done."""
        for call in calls:
            call.stage = CallStage.DONE
            self.under_way.remove(call)
        self._go(lambda: self._plan.send(calls))

    def store(self, call: Call) -> None:
        answers = [{"id": task.id, "outcome": "created"} for task in tasks_of(call)]
        call.tries, call.reply = 1, {"ok": True, "outcomes": answers}

    def _go(self, step: Any) -> None:
        try:
            calls = step()
            while isinstance(calls, SendOnly):
                self.under_way += calls
                calls = self._plan.send(())
            self.under_way += calls
        except StopIteration as end:
            self.found = end.value


def tasks_of(call: Call) -> list[TaskSpec]:
    tasks: list[TaskSpec] = call.fields["tasks"]
    return tasks


def task(number: int, **fields: Any) -> TaskSpec:
    return TaskSpec(id=task_id(number), name="example", **fields)


def task_id(number: int) -> str:
    return str(UUID(int=number))


@given(
    sizes=st.lists(st.one_of(st.integers(0, 2_000), st.integers(100_000, 1_000_000)), max_size=40),
    repeat=st.integers(1, 60),
    data=st.data(),
)
def test_every_task_is_sent_once_in_a_message_that_fits_and_has_its_outcome_in_its_place(sizes, repeat, data):
    sizes = (sizes * repeat)[: 1_500 if max(sizes, default=0) < 100_000 else 60]
    run = BulkRun(task(i, stdin=b"x" * size) for i, size in enumerate(sizes))
    sent: list[str] = []

    while run.found is None:
        assert 0 < len(run.under_way) <= IN_FLIGHT
        call = data.draw(st.sampled_from(run.under_way))
        assert len(tasks_of(call)) <= wire.MAX_BATCH
        protocol.encode_request(1, call.op, call.fields)
        sent += [str(one.id) for one in tasks_of(call)]
        run.store(call)
        run.finish(call)

    assert sorted(sent) == [task_id(i) for i in range(len(sizes))]
    assert [one.task.id for one in run.found] == [task_id(i) for i in range(len(sizes))]
    assert all(one.outcome == "created" for one in run.found)


def test_a_slow_source_takes_nothing_from_the_time_of_what_it_gave():
    clock = ManualClock()

    def slow() -> Iterator[TaskSpec]:
        for i in range(3 * CHUNK_TASKS + 100):
            clock.now += 1.0
            yield task(i)

    run = BulkRun(slow(), clock)

    assert [len(tasks_of(call)) for call in run.under_way] == [CHUNK_TASKS, 2 * CHUNK_TASKS, 100]
    assert {call.timeout_s for call in run.under_way} == {10.0}


def test_what_is_refused_for_now_is_sent_again_until_the_time_of_its_chunk_is_over():
    clock = ManualClock()
    run = BulkRun([task(0), task(1)], clock)
    busy = {"outcome": "error", "error": protocol.error_fields(Busy("queue: full", retry_after_s=4.0))}
    rounds = 0
    while run.found is None:
        rounds += 1
        [call] = run.under_way
        answers = [busy if one.id == task_id(1) else {"id": one.id, "outcome": "created"} for one in tasks_of(call)]
        clock.now += call.delay_s
        call.tries, call.reply = 1, {"ok": True, "outcomes": answers}
        run.finish(call)

    assert outcomes(run.found) == ["created", "Busy"]
    assert rounds == 3, "at 0, 4 and 8 s"


def test_what_may_be_stored_by_an_earlier_call_is_not_called_not_stored_by_a_later_one():
    """Neither by its own refusal nor by that of the whole call; of its neighbour the truth is known."""
    for whole in (True, False):
        run = BulkRun([task(0), task(1)])
        (call,) = run.under_way
        later = {"outcome": "error", "error": protocol.error_fields(Busy("later"))}
        unsure = {"outcome": "error", "error": protocol.error_fields(NotConfirmed("later"))}
        call.tries, call.reply = 1, {"ok": True, "outcomes": [unsure, later]}
        run.finish(call)
        (again,) = run.under_way
        failed = RequestRefused("the store failed at this", stored="no")
        if whole:
            again.tries, again.error = 1, failed
        else:
            outcome = {"outcome": "error", "error": protocol.error_fields(failed)}
            again.tries, again.reply = 1, {"ok": True, "outcomes": [outcome, outcome]}
        run.finish(again)
        assert run.found is not None
        assert [getattr(found.error, "stored", None) for found in run.found] == ["unknown", "no"]


def test_the_error_of_a_chunk_is_that_of_each_of_its_tasks_and_of_no_other():
    run = BulkRun(task(i) for i in range(CHUNK_TASKS + 50))
    first, second = run.under_way
    first.tries, first.error = 1, NoAnswer("nobody there")
    run.store(second)

    run.finish(second, first)

    assert run.found is not None
    assert outcomes(run.found) == ["NoAnswer"] * CHUNK_TASKS + ["created"] * 50
    assert run.found[0].error is first.error


def test_one_chunk_that_cannot_be_packed_is_halved_until_the_culprit_is_alone():
    run = BulkRun(task(i, args=["x" * 200_000] if i == 70 else []) for i in range(100))

    while run.found is None:
        call = run.under_way[0]
        if any(one.id == task_id(70) for one in tasks_of(call)):
            call.error = _unpackable()
        else:
            run.store(call)
        run.finish(call)

    assert [i for i, one in enumerate(run.found) if one.error is not None] == [70]
    assert str(run.found[70].error).startswith("tasks[70].args[0]")


def _unpackable() -> KingtaskError:
    try:
        protocol.encode_request(1, "submit", {"tasks": [object()]})
    except KingtaskError as error:
        return error
    raise AssertionError("this has a form on the wire now")
