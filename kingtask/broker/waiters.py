"""Clients that wait for a task's end, answered by push.

The task is marked as watched, and the end of a watched task publishes its id. A publication may be lost, so all waited
ids are looked at once a second in one call, and again whenever the subscription comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kingtask.errors import StoreError
from kingtask.result import Result
from kingtask.states import TERMINAL
from kingtask.store import functions
from kingtask.store.store import Store

LOOK_S = 1.0
CHUNK = 200

_STOPPING = StoreError("stopping", "this broker is stopping; ask another one")

Answer = Callable[[Result | StoreError | None], None]
"""Called once: the record (ended or, after the time-out, as it stands), None if there is no such task, or an error."""


@dataclass(eq=False, slots=True)
class _Wait:
    id: str
    answer: Answer
    timer: asyncio.TimerHandle | None = None


class Waiters:
    """All waits of this broker, by task id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, list[_Wait]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __len__(self) -> int:
        return self._count

    def stop(self) -> None:
        """Send every waiting client to another broker; idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for wait in [wait for waits in self._by_id.values() for wait in waits]:
            self._remove(wait)
            wait.answer(_STOPPING)

    def add(self, task_id: str, timeout_s: float, answer: Answer) -> None:
        if self._stopped:
            answer(_STOPPING)
            return
        wait = _Wait(task_id, answer)
        self._by_id.setdefault(task_id, []).append(wait)  # before the mark, so that no publication finds nobody
        self._count += 1
        if self._timer is None:
            self._look_later()
        wait.timer = asyncio.get_running_loop().call_later(timeout_s, self._overdue, wait)

        def marked(state: str | StoreError) -> None:
            if isinstance(state, StoreError) or state == "missing":
                if self._remove(wait):
                    answer(state if isinstance(state, StoreError) else None)
            elif state in TERMINAL:
                self._settle(task_id)

        self._store.send(functions.wait(task_id), marked)

    def ended(self, task_id: str) -> None:
        """A publication: this task has ended."""
        if task_id in self._by_id:
            self._settle(task_id)

    def look(self) -> None:
        """Look at every waited task: for what was published while nobody listened."""
        ids = list(self._by_id)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]

            def looked(states: list[str] | StoreError, chunk: list[str] = chunk) -> None:
                if not isinstance(states, StoreError):
                    for task_id, state in zip(chunk, states, strict=True):
                        if not state or state in TERMINAL:
                            self._settle(task_id)

            self._store.send(functions.states(chunk), looked)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look_regularly)

    def _look_regularly(self) -> None:
        """As long as anybody waits: a broker with nothing to do shall not wake up for it."""
        self._timer = None
        if not self._by_id or self._stopped:
            return
        self._look_later()
        if self._store.up:
            self.look()

    def _overdue(self, wait: _Wait) -> None:
        if self._remove(wait):
            self._fetch(wait.id, [wait])

    def _settle(self, task_id: str) -> None:
        waits = self._by_id.pop(task_id, None)
        if not waits:
            return
        self._count -= len(waits)
        for wait in waits:
            if wait.timer is not None:
                wait.timer.cancel()
        self._fetch(task_id, waits)

    def _fetch(self, task_id: str, waits: list[_Wait]) -> None:
        def found(reply: functions.StoredTask | StoreError) -> None:
            for wait in waits:
                wait.answer(reply if isinstance(reply, StoreError) else reply.result)

        self._store.send(functions.get(task_id), found)

    def _remove(self, wait: _Wait) -> bool:
        waits = self._by_id.get(wait.id)
        if waits is None or wait not in waits:
            return False
        waits.remove(wait)
        if not waits:
            del self._by_id[wait.id]
        if wait.timer is not None:
            wait.timer.cancel()
        self._count -= 1
        return True
