"""The seven states of a task, and TRANSITIONS, the only table of moves between them (drawing in ARCHITECTURE.md).

The Lua library holds the same table; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.READY, State.CANCELLED, State.EXPIRED}),
    State.READY: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.SCHEDULED, State.READY, State.CANCELLED}),
    **dict.fromkeys(TERMINAL, frozenset()),
}
