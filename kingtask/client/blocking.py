"""The blocking client: runs steps on a channel of the calling thread, without a thread of its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Self, TypeVar

from kingtask.client.call import Steps, StepsWithResults, Yielded
from kingtask.client.channel import Channel, Pool
from kingtask.client.handles import Task, fresh_id
from kingtask.client.operations import Operations
from kingtask.clock import monotonic_s, wall_s
from kingtask.curve import KeyFile, client_keys
from kingtask.endpoint import endpoints

P = ParamSpec("P")
R = TypeVar("R")


def _method(steps: Callable[Concatenate[Operations[Task], P], Steps[R]]) -> Callable[Concatenate[Client, P], R]:
    @wraps(steps)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(steps(self._operations, *args, **kwargs))

    return method


def _iterating(
    steps: Callable[Concatenate[Operations[Task], P], StepsWithResults[R]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @wraps(steps)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._iterate(steps(self._operations, *args, **kwargs))

    return method


class Client:
    """Submits tasks and queries them; every method blocks until it has its answer.

    `address` is one broker or several: `host:port`, `tcp://host:port`, `ipc://path`; the client leaves a broker that
    does not answer for the next. The default is KINGTASK_BROKER (with commas), else the broker of this machine.
    `timeout` (seconds) bounds each call that names no other, retries included. One client serves any number of threads,
    and forked children too. The first call connects.

    `curve_key` and `server_key` are files, for brokers that require keys: the client's secret key and the brokers'
    public key. Their defaults are KINGTASK_CURVE_KEY and KINGTASK_SERVER_KEY.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        timeout: float = 10.0,
        curve_key: KeyFile | None = None,
        server_key: KeyFile | None = None,
    ) -> None:
        self._pool = Pool(endpoints(address), client_keys(curve_key, server_key))
        self._operations = Operations(partial(Task, self), timeout, new_id=fresh_id, monotonic=monotonic_s, wall=wall_s)
        # For a client that is dropped unclosed: the collector might finalize the context before its sockets, and block.
        weakref.finalize(self, self._pool.close).atexit = False

    submit = _method(Operations[Task].submit)
    submit_many = _method(Operations[Task].submit_many)
    map = _method(Operations[Task].map)
    as_completed = _iterating(Operations[Task].as_completed)
    get = _method(Operations[Task].get)
    wait = _method(Operations[Task].wait)
    result = _method(Operations[Task].result)
    cancel = _method(Operations[Task].cancel)
    requeue = _method(Operations[Task].requeue)
    forget = _method(Operations[Task].forget)
    list = _iterating(Operations[Task].list)
    stats = _method(Operations[Task].stats)
    pause = _method(Operations[Task].pause)
    resume = _method(Operations[Task].resume)
    ping = _method(Operations[Task].ping)

    def close(self) -> None:
        """Close all connections; calls in progress in other threads end with NoAnswer. Idempotent."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, steps: Steps[R]) -> R:
        try:
            calls = next(steps)  # wrong arguments raise before anything is connected
            channel = self._pool.take()
            try:
                while True:
                    calls = steps.send(channel.exchange(calls))
            finally:
                self._pool.give(channel)
        except StopIteration as end:
            value: R = end.value
            return value

    def _iterate(self, steps: StepsWithResults[R]) -> Iterator[R]:
        """Run steps with results; hold a channel only while calls are in progress on it."""
        channel: Channel | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Yielded):
                    yield step.value
                    step = next(steps)
                    continue
                if channel is None:
                    channel = self._pool.take()
                finished = channel.exchange(step)
                if channel.idle:
                    self._pool.give(channel)
                    channel = None
                step = steps.send(finished)
        except StopIteration:
            return
        finally:
            steps.close()
            if channel is not None:
                self._pool.give(channel)
