"""Clients that wait for the end of a task.

`wait` marks the task as watched, and the end of a watched task publishes its id. A publication may get lost. So the
broker polls all waited tasks once a second by one call, and again whenever it has subscribed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kingtask.errors import StoreError
from kingtask.states import TERMINAL
from kingtask.store import functions
from kingtask.store.store import Store

POLL_S = 1.0
CHUNK = 200
"""Tasks polled by one call."""

_STOPPING = StoreError("stopping", "this broker is stopping; ask another one")

Answer = Callable[[str | StoreError | None], None]
"""Called once: with None once the task is to be read, or with `missing`, `foreign` or a StoreError if it cannot be."""


@dataclass(eq=False, slots=True)
class _Waiter:
    id: str
    answer: Answer
    timer: asyncio.TimerHandle | None = None


class Waiters:
    """All waits of this broker, by task id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, dict[_Waiter, None]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def __len__(self) -> int:
        return self._count

    def stop(self) -> None:
        """Refuse all waits, now and later, so that clients ask another broker; idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in [waiter for waiters in self._by_id.values() for waiter in waiters]:
            self._remove(waiter)
            waiter.answer(_STOPPING)

    def add(self, task_id: str, timeout_s: float, answer: Answer, of: str | None = None) -> None:
        """Wait for a task; `of` is its only valid owner, None: any."""
        if self._stopped:
            answer(_STOPPING)
            return
        waiter = _Waiter(task_id, answer)
        self._by_id.setdefault(task_id, {})[waiter] = None  # before the mark, so that no publication is missed
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll_again)
        waiter.timer = asyncio.get_running_loop().call_later(timeout_s, self._timed_out, waiter)
        self._store.send(functions.wait(task_id).of(of), partial(self._marked, waiter))

    def _marked(self, waiter: _Waiter, state: str | StoreError) -> None:
        if isinstance(state, StoreError) or state in ("missing", "foreign"):
            if self._remove(waiter):
                waiter.answer(state)
        elif state in TERMINAL:
            self.ended(waiter.id)

    def ended(self, task_id: str) -> None:
        """Answer all that wait for this task, which has ended."""
        waiters = self._by_id.pop(task_id, {})
        self._count -= len(waiters)
        for waiter in waiters:
            if waiter.timer is not None:
                waiter.timer.cancel()
            waiter.answer(None)

    def poll(self) -> None:
        """Ask Redis for the state of every waited task."""
        ids = list(self._by_id)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            self._store.send(functions.states(chunk), partial(self._polled, chunk))

    def _polled(self, chunk: list[str], states: list[str] | StoreError) -> None:
        if not isinstance(states, StoreError):
            for task_id, state in zip(chunk, states, strict=True):
                if not state or state in TERMINAL:
                    self.ended(task_id)

    def _poll_again(self) -> None:
        """Poll as long as a client waits; a broker without one sleeps."""
        self._timer = None
        if not self._by_id or self._stopped:
            return
        self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll_again)
        if self._store.up:
            self.poll()

    def _timed_out(self, waiter: _Waiter) -> None:
        if self._remove(waiter):
            waiter.answer(None)

    def _remove(self, waiter: _Waiter) -> bool:
        """Return False if this waiter is gone already."""
        waiters = self._by_id.get(waiter.id, {})
        if waiter not in waiters:
            return False
        del waiters[waiter]
        if not waiters:
            del self._by_id[waiter.id]
        if waiter.timer is not None:
            waiter.timer.cancel()
        self._count -= 1
        return True
