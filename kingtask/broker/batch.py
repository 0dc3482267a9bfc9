"""Submits gathered into few function calls (group commit).

When nothing is under way a batch leaves at the end of the drain that filled it; while a call is under way what arrives
is gathered behind it. So a lone submit waits for nothing, and under load a call and its fsync are shared by many. A
call that waits for its barrier (`ack: replicas`) does not hold up the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kingtask import failpoint, policy
from kingtask.errors import StoreError
from kingtask.store import functions
from kingtask.store.store import BrokerStore

CALLS = 1
"""Under way at once; a second one would halve the batches and win nothing (measured)."""
MAX_ITEMS = 200
MAX_BYTES = 1_048_576
"""A call on more would hold Redis up for others (10,000 moves blocked it for 100 ms)."""

Outcome = str | StoreError
"""What `submit` said of one task, `unconfirmed` if the level was not reached, or why the call failed."""


class SubmitBatcher:
    """`on_stored(reply, what `on_sent` returned)` is called once for each call that Redis has answered.

    `on_sent(task)` is called for a task that is sent alone.
    """

    def __init__(
        self,
        store: BrokerStore,
        policy: policy.Policy,
        *,
        on_sent: Callable[[functions.Prepared], int | None],
        on_stored: Callable[[functions.Submitted, int | None], None],
    ) -> None:
        self._store = store
        self.policy = policy
        """Of calls to come; it may be exchanged."""
        self._on_sent = on_sent
        self._on_stored = on_stored
        self._tasks: list[functions.Prepared] = []
        self._callbacks: list[Callable[[Outcome], None]] = []
        self._bytes = 0
        self._calls = 0

    def add(self, task: functions.Prepared, callback: Callable[[Outcome], None]) -> None:
        """Add one prepared task; `callback` gets its outcome. Sends at once what makes a full call."""
        size = len(task[1]) + len(task[2])
        if self._tasks and self._bytes + size > MAX_BYTES:
            self._send()
        self._tasks.append(task)
        self._callbacks.append(callback)
        self._bytes += size
        if len(self._tasks) >= MAX_ITEMS:
            self._send()

    def flush(self) -> None:
        """The drain has ended: send what was gathered, unless enough is under way."""
        if self._tasks and self._calls < CALLS:
            self._send()

    def _send(self) -> None:
        self._calls += 1
        tasks, callbacks = self._tasks, self._callbacks
        self._tasks, self._callbacks, self._bytes = [], [], 0
        outcomes: list[str] = []
        sent: int | None = None

        def stored(value: Any) -> None:
            self._calls -= 1
            self.flush()
            if isinstance(value, StoreError):
                for callback in callbacks:
                    callback(value)
                return
            nonlocal outcomes
            outcomes = value.outcomes
            self._on_stored(value, sent)

        def confirmed(reached: bool) -> None:
            if failpoint.ACTIVE and reached:
                failpoint.reach("before_ack")
            for callback, outcome in zip(callbacks, outcomes, strict=True):
                held = reached or outcome == "conflict" or outcome in functions.REFUSED
                callback(outcome if held else "unconfirmed")

        self._store.submit(functions.submit(self.policy, tasks), stored, confirmed)
        if len(tasks) == 1:
            sent = self._on_sent(tasks[0])
