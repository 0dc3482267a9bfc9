"""The broker's heap against its rules: bounded, only the latest go, only a tick's `now` removes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kingtask.broker.due_heap import CAPACITY, DueHeap

INSTANTS = st.integers(0, 200)


class DueHeapMachine(RuleBasedStateMachine):
    """A small heap beside a plain set of what must still be in it."""

    capacity = 8

    def __init__(self) -> None:
        super().__init__()
        self.heap = DueHeap(self.capacity)
        self.held: set[int] = set()

    @rule(instant_ms=INSTANTS)
    def add(self, instant_ms: int) -> None:
        earliest = not self.held or instant_ms < min(self.held)
        known = instant_ms in self.held
        if not known and len(self.held) == 2 * self.capacity:
            self.held = set(sorted(self.held)[: self.capacity])
        self.held.add(instant_ms)
        assert self.heap.add(instant_ms) == (earliest and not known)

    @rule(now_ms=INSTANTS)
    def tick(self, now_ms: int) -> None:
        self.held = {instant for instant in self.held if instant > now_ms}
        self.heap.reached(now_ms)

    @invariant()
    def agrees(self) -> None:
        assert len(self.heap) == len(self.held) <= 2 * self.capacity
        assert self.heap.next_ms == min(self.held, default=None)


TestDueHeap = DueHeapMachine.TestCase


@given(st.lists(INSTANTS))
def test_the_heap_returns_each_instant_once_in_order(instants: list[int]):
    heap = DueHeap()
    for instant in instants:
        heap.add(instant)
    drained = []
    while (instant_ms := heap.next_ms) is not None:
        drained.append(instant_ms)
        heap.reached(instant_ms)
    assert drained == sorted(set(instants))


def test_the_heap_is_bounded_whatever_is_scheduled():
    heap = DueHeap()
    for instant_ms in range(200_000, 100_000, -1):
        heap.add(instant_ms)
    assert len(heap) <= 2 * CAPACITY
    assert heap.next_ms == 100_001


def test_a_tick_before_the_instant_keeps_it():
    heap = DueHeap()
    heap.add(1_000)
    heap.reached(999)
    assert heap.next_ms == 1_000
    heap.reached(1_000)
    assert heap.next_ms is None
