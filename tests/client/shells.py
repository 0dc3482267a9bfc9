"""Both clients behind one face, so that one test tells the same story of each."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from functools import partial
from threading import Thread
from typing import Any

from kingtask import AsyncClient, AsyncTask, Client, Outcome
from tests.client.responder import PATIENCE_S


class Awaited:
    """An AsyncClient (or a task of its) used like a Client: each call is run to its end on a loop in another thread."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        return partial(self._call, attribute) if callable(attribute) else attribute

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return self._present(asyncio.run_coroutine_threadsafe(self._settle(method, args, kwargs), self._loop).result())

    async def _settle(self, method: Any, args: Any, kwargs: Any) -> Any:
        value = method(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    def _present(self, value: Any) -> Any:
        if isinstance(value, AsyncTask):
            return Awaited(value, self._loop)
        if isinstance(value, AsyncIterator):
            return self._iterate(value)
        return value

    def _iterate(self, source: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield asyncio.run_coroutine_threadsafe(anext(source), self._loop).result()
                except StopAsyncIteration:
                    return
        finally:
            asyncio.run_coroutine_threadsafe(source.aclose(), self._loop).result()


class Shell:
    """Makes clients of one kind and closes them all."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._clients: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def client(self, *endpoints: str, timeout: float = PATIENCE_S) -> Any:
        client: Any = None
        if self.kind == "blocking":
            client = Client(endpoints, timeout=timeout)
        else:
            client = Awaited(AsyncClient(endpoints, timeout=timeout), self._running_loop())
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        return self._loop


def outcomes(found: list[Outcome[Any]]) -> list[str]:
    return [one.outcome if one.error is None else type(one.error).__name__ for one in found]
