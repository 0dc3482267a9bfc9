"""The broker's heap against its rules: bounded, only the latest go, only a tick's `now` removes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kingtask.broker.due_heap import CAPACITY, DueHeap

INSTANTS = st.integers(0, 200)


class ScheduleMachine(RuleBasedStateMachine):
    """A small heap beside a plain set of what must still be in it."""

    capacity = 8

    def __init__(self) -> None:
        super().__init__()
        self.schedule = DueHeap(self.capacity)
        self.held: set[int] = set()

    @rule(instant_ms=INSTANTS)
    def add(self, instant_ms: int) -> None:
        earliest = not self.held or instant_ms < min(self.held)
        known = instant_ms in self.held
        if not known and len(self.held) == 2 * self.capacity:
            self.held = set(sorted(self.held)[: self.capacity])
        self.held.add(instant_ms)
        assert self.schedule.add(instant_ms) == (earliest and not known)

    @rule(now_ms=INSTANTS)
    def tick(self, now_ms: int) -> None:
        self.held = {instant for instant in self.held if instant > now_ms}
        self.schedule.reached(now_ms)

    @invariant()
    def agrees(self) -> None:
        assert len(self.schedule) == len(self.held) <= 2 * self.capacity
        assert self.schedule.next_ms == min(self.held, default=None)


TestSchedule = ScheduleMachine.TestCase


@given(st.lists(INSTANTS))
def test_instants_come_in_order_once_each(instants: list[int]):
    schedule = DueHeap()
    for instant in instants:
        schedule.add(instant)
    drained = []
    while (instant_ms := schedule.next_ms) is not None:
        drained.append(instant_ms)
        schedule.reached(instant_ms)
    assert drained == sorted(set(instants))


def test_its_size_does_not_depend_on_how_much_is_scheduled():
    schedule = DueHeap()
    for instant_ms in range(200_000, 100_000, -1):
        schedule.add(instant_ms)
    assert len(schedule) <= 2 * CAPACITY
    assert schedule.next_ms == 100_001


def test_a_tick_before_the_instant_leaves_it():
    schedule = DueHeap()
    schedule.add(1_000)
    schedule.reached(999)
    assert schedule.next_ms == 1_000
    schedule.reached(1_000)
    assert schedule.next_ms is None
