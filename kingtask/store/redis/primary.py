"""The address of the primary: as configured, or as the sentinels name it, also after a failover."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kingtask.errors import StoreError
from kingtask.event import Event
from kingtask.store.redis.address import RedisAddress

if TYPE_CHECKING:
    from kingtask.store.redis.sentinel import Asker, Named

log = logging.getLogger("kingtask.store")

EVERY_S = 1.0
"""Poll interval: the longest delay until a failover is noticed if no connection breaks."""
TIMEOUT_S = 1.0
"""Timeout of each step of a query to a sentinel."""
OTHERS_S = 0.2
"""Wait for the other sentinels after the first answer; they may know a later failover."""


class Primary:
    """Calls `on_moved` with each new primary; belongs to the loop's thread.

    `login` reads user and password again for each connect, since they may change.
    """

    def __init__(
        self,
        address: RedisAddress,
        on_moved: Callable[[RedisAddress], None],
        login: Callable[[], RedisAddress] | None = None,
    ) -> None:
        self.address = address
        self._on_moved = on_moved
        self._login = login or (lambda: address)
        self._known: RedisAddress | None = None if address.sentinels else address
        self._asker: Asker | None = None
        self._pool: ThreadPoolExecutor | None = None
        if address.sentinels:
            from kingtask.store.redis.sentinel import Asker

            self._asker = Asker(address, TIMEOUT_S)
            self._pool = ThreadPoolExecutor(len(address.sentinels.hosts), "sentinel")
        self._asked: dict[Any, asyncio.Future[Named | StoreError]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self.replicas = 0
        """Number of replicas that the sentinels know."""

    async def find(self) -> RedisAddress:
        """Ask the sentinels and return the server to connect to; the last known one if no sentinel answers.

        Raises StoreError if no sentinel has ever answered, ConfigurationError if the password cannot be read.
        """
        try:
            await self._ask()
        except StoreError:
            if self._known is None:
                raise
        assert self._known is not None
        login = self._login()
        return replace(self._known, user=login.user, password=login.password)

    def follow(self) -> None:
        """Poll the sentinels until `close`."""
        if self._asker is not None:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for client, asked in self._asked.items():
            if asked.done():
                client.close()
            else:  # a thread uses the client until its timeout
                asked.cancel()

    async def _watch(self) -> None:
        problem = ""
        while True:
            await asyncio.sleep(EVERY_S * random.uniform(0.75, 1.25))
            try:
                await self._ask()
            except StoreError as error:
                if not problem:
                    log.warning(Event("sentinels=unreachable", f"going on with {self._known}", error=str(error)))
                problem = str(error)
            else:
                if problem:
                    log.info(Event("sentinels=up", primary=self._known))
                problem = ""

    async def _ask(self) -> None:
        asker = self._asker
        if asker is None:
            return
        waiting = {self._ask_one(asker, client) for client in asker.clients}
        answers: list[Named | StoreError] = []
        while waiting and all(isinstance(answer, StoreError) for answer in answers):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            answers += [future.result() for future in done]
        if waiting:
            done, _ = await asyncio.wait(waiting, timeout=OTHERS_S)
            answers += [future.result() for future in done]
        self._learn(asker, asker.believe(answers))

    def _ask_one(self, asker: Asker, client: Any) -> asyncio.Future[Named | StoreError]:
        """Return the query in progress, or start one: a sentinel that hangs gets one query at a time."""
        asked = self._asked.get(client)
        if asked is None or asked.done():
            asked = self._asked[client] = asyncio.get_running_loop().run_in_executor(self._pool, asker.ask, client)
        return asked

    def _learn(self, asker: Asker, named: Named) -> None:
        self.replicas = named.replicas
        address = asker.address_of(named)
        if address == self._known:
            return
        before, self._known = self._known, address
        if before is not None:
            log.warning(Event("primary=moved", before=before, now=address))
            self._on_moved(address)
