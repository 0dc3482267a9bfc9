"""The asyncio client: runs steps as coroutines, over one connection."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from kingtask.client.call import Steps, StepsWithResults, Yielded
from kingtask.client.handles import AsyncTask, fresh_id
from kingtask.client.loop_connection import ConnectionOnLoop, LoopConnection, Waiter
from kingtask.client.operations import Operations
from kingtask.clock import monotonic_s, wall_s
from kingtask.curve import KeyFile, client_keys
from kingtask.endpoint import endpoints

P = ParamSpec("P")
R = TypeVar("R")


def _method(
    steps: Callable[Concatenate[Operations[AsyncTask], P], Steps[R]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    @wraps(steps)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(steps(self._operations, *args, **kwargs))

    return method


def _iterating(
    steps: Callable[Concatenate[Operations[AsyncTask], P], StepsWithResults[R]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[R]]:
    @wraps(steps)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        return self._iterate(steps(self._operations, *args, **kwargs))

    return method


class AsyncClient:
    """Client for asyncio: the same methods, awaited (and `async for` over what Client iterates over).

    Thousands of calls may be in progress at once. The client belongs to the event loop that uses it first, until client
    or loop is closed, and to one thread.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        timeout: float = 10.0,
        curve_key: KeyFile | None = None,
        server_key: KeyFile | None = None,
    ) -> None:
        self._connection = ConnectionOnLoop(endpoints(address), client_keys(curve_key, server_key))
        self._operations = Operations(
            partial(AsyncTask, self), timeout, new_id=fresh_id, monotonic=monotonic_s, wall=wall_s
        )
        # For a client that is dropped unclosed: the collector might finalize the context before its sockets, and block.
        weakref.finalize(self, self._connection.close).atexit = False

    submit = _method(Operations[AsyncTask].submit)
    submit_many = _method(Operations[AsyncTask].submit_many)
    map = _method(Operations[AsyncTask].map)
    as_completed = _iterating(Operations[AsyncTask].as_completed)
    get = _method(Operations[AsyncTask].get)
    wait = _method(Operations[AsyncTask].wait)
    result = _method(Operations[AsyncTask].result)
    cancel = _method(Operations[AsyncTask].cancel)
    requeue = _method(Operations[AsyncTask].requeue)
    forget = _method(Operations[AsyncTask].forget)
    list = _iterating(Operations[AsyncTask].list)
    stats = _method(Operations[AsyncTask].stats)
    pause = _method(Operations[AsyncTask].pause)
    resume = _method(Operations[AsyncTask].resume)
    ping = _method(Operations[AsyncTask].ping)

    async def close(self) -> None:
        """Close the connection; calls in progress end with NoAnswer. Idempotent."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[R]) -> R:
        try:
            calls = next(steps)  # wrong arguments raise before anything is connected
            connection, waiter = self._connection.get(), Waiter()
            try:
                while True:
                    calls = steps.send(await connection.exchange(calls, waiter))
            finally:
                connection.abandon(waiter)
        except StopIteration as end:
            value: R = end.value
            return value

    async def _iterate(self, steps: StepsWithResults[R]) -> AsyncIterator[R]:
        waiter = Waiter()
        connection: LoopConnection | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Yielded):
                    yield step.value
                    step = next(steps)
                else:
                    connection = self._connection.get()
                    step = steps.send(await connection.exchange(step, waiter))
        except StopIteration:
            return
        finally:
            steps.close()
            if connection is not None:
                connection.abandon(waiter)
