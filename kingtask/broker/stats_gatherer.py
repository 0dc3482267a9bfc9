"""Reads all numbers of queues, workers and brokers from Redis, for the op `stats` and for the metrics.

All requests share one gathering at a time, which begins at least APART_S after the one before. A request joins the next
one, so that no reply is older than its request. A gathering is many short calls: Redis serves others in between, and
after a long one for REST times as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import Any

from kingtask.clock import monotonic_s
from kingtask.errors import StoreError
from kingtask.store import functions
from kingtask.store.stats import StoreStats
from kingtask.store.store import Store

APART_S = 1.0
REST = 3

Calls = Generator[functions.FunctionCall, Any, StoreStats]
Callback = Callable[[StoreStats | StoreError], None]
"""Raises nothing."""


class StatsGatherer:
    """`waiting` requests wait for the current gathering or the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next: list[Callback] = []
        self._busy = False
        """A gathering is in progress, or a timer will begin it."""
        self._began_s = self._next_s = -inf
        self.waiting = 0

    def ask(self, callback: Callback) -> None:
        """Give the callback the result of the next gathering."""
        self.waiting += 1
        self._next.append(callback)
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        now_s = monotonic_s()
        if now_s < self._next_s:
            asyncio.get_running_loop().call_at(self._next_s, self._begin)
            return
        asked, self._next, self._began_s = self._next, [], now_s
        self._step(functions.gather_stats(), asked, None)

    def _step(self, calls: Calls, asked: list[Callback], value: Any) -> None:
        """Take the value of a call, and send the next one."""
        try:
            if not isinstance(value, StoreError):
                self._store.send(calls.send(value), partial(self._step, calls, asked))
                return
        except StopIteration as done:
            value = done.value
        self._busy = False
        now_s = monotonic_s()
        self._next_s = max(self._began_s + APART_S, now_s + REST * (now_s - self._began_s))
        if self._next:
            self._begin()
        self.waiting -= len(asked)
        for callback in asked:
            callback(value)
