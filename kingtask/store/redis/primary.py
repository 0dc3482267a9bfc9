"""Where the primary is: the server that was configured, or the one that sentinels name, now and after each failover."""

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
from kingtask.store.redis.address import RedisAddress

if TYPE_CHECKING:
    from kingtask.store.redis.sentinel import Asker, Named

log = logging.getLogger("kingtask.store")

EVERY_S = 1.0
"""Between looks while all is well: how much later than the sentinels we see a failover, if no connection breaks."""
TIMEOUT_S = 1.0
"""For each step of asking a sentinel."""
OTHERS_S = 0.2
"""Once one has answered: how long the others may take to say something newer."""


class Primary:
    """`on_moved` is told of another primary than the one before; belongs to the loop's thread.

    `login` reads user and password anew for each connection: they may have been changed meanwhile.
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
        """How many the sentinels know of."""

    async def find(self) -> RedisAddress:
        """Ask again, and return the server to connect to; the last one known if no sentinel answers.

        Raises StoreError if none ever has, ConfigurationError if the password cannot be read.
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
        """Go on asking, until `close`."""
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
            else:  # its thread has the client, for as long as the time-outs last
                asked.cancel()

    async def _watch(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(EVERY_S * random.uniform(0.75, 1.25))
            try:
                await self._ask()
            except StoreError as error:
                if not told:
                    log.warning("sentinels=away error=%r: going on with %s", str(error), self._known)
                told = str(error)
            else:
                if told:
                    log.info("sentinels=up primary=%s", self._known)
                told = ""

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
        """The question that is under way, or a new one: a sentinel that hangs is asked once at a time."""
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
            log.warning("primary=moved before=%s now=%s", before, address)
            self._on_moved(address)
