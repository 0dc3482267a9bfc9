"""Calls that read records and lists: few at a time, one for equal requests, and the peers take turns.

Redis keeps a reply until the broker has read it: 1,000 `get`s of 2 MB, all sent at once, took 1.25 GB there. So calls
wait here. A request joins an equal call only while that waits: no answer is older than its request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from functools import partial
from typing import Any

from kingtask.store import functions
from kingtask.store.functions import FunctionCall
from kingtask.store.redis.connection import Callback
from kingtask.store.store import Store

MOST, FEWEST = 32, 2
"""Calls under way. A record has at most 6 MiB, so Redis holds at most 192 MiB of replies."""
MOST_BYTES = 2**21
"""The same of calls whose results are as large as the latest: Redis and this broker serve nobody else between them."""


class Reads:
    """All reads of this broker."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: OrderedDict[bytes, deque[tuple[Any, ...]]] = OrderedDict()
        """The calls that wait, by peer: first the peer whose turn comes next."""
        self._asked: dict[tuple[Any, ...], tuple[FunctionCall, list[Callback]]] = {}
        """The calls that wait, and the recipients of the value of each."""
        self._under_way = 0
        self._size = 1
        """Bytes of a large result of the latest."""

    @property
    def _most(self) -> int:
        return max(FEWEST, min(MOST, MOST_BYTES // self._size))

    def send(self, peer: bytes, call: FunctionCall, answer: Callback) -> None:
        """Send a call as soon as this peer has its turn; `answer` gets its value or a StoreError. Raises nothing."""
        if self._under_way < self._most and not self._waiting:
            self._start(call, [answer])
            return
        key = (call.function, *call.arguments.values())
        if key in self._asked:
            self._asked[key][1].append(answer)
        else:
            self._asked[key] = call, [answer]
            self._waiting.setdefault(peer, deque()).append(key)

    def _start(self, call: FunctionCall, answers: list[Callback]) -> None:
        self._under_way += 1
        self._store.send(call, partial(self._answered, answers))

    def _refill(self) -> None:
        while self._waiting and self._under_way < self._most:
            peer, keys = self._waiting.popitem(last=False)
            call, answers = self._asked.pop(keys.popleft())
            if keys:
                self._waiting[peer] = keys
            self._start(call, answers)

    def _answered(self, answers: list[Callback], value: Any) -> None:
        self._under_way -= 1
        if isinstance(value, functions.StoredTask):
            self._size = max(len(value.packed), self._size - self._size // 16, 1)
        # Half of them together: one by one, many reads took twice the CPU. In a turn of its own: a store that is away
        # answers at once, so that each call would nest in the one before.
        if self._waiting and self._under_way <= self._most // 2:
            asyncio.get_running_loop().call_soon(self._refill)
        for answer in answers:
            answer(value)
