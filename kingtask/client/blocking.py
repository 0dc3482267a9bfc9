"""The blocking client: plans run on a channel of the calling thread; no thread of its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from kingtask.client import address as addresses
from kingtask.client.call import Steps, StepsWithResults, Yielded
from kingtask.client.channel import Channel
from kingtask.client.handles import Task
from kingtask.client.operations import Operations
from kingtask.client.pool import Pool
from kingtask.clock import monotonic_s, wall_s
from kingtask.curve import KeyFile, client_keys

P = ParamSpec("P")
R = TypeVar("R")


def _method(plan: Callable[Concatenate[Operations[Task], P], Steps[R]]) -> Callable[Concatenate[Client, P], R]:
    @wraps(plan)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(plan(self._operations, *args, **kwargs))

    return method


def _iterating(
    flow: Callable[Concatenate[Operations[Task], P], StepsWithResults[R]],
) -> Callable[Concatenate[Client, P], Iterator[R]]:
    @wraps(flow)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._iterate(flow(self._operations, *args, **kwargs))

    return method


class Client:
    """Submits tasks and asks about them; every method blocks until it has its answer.

    `address` is one broker or several: `host:port`, `tcp://host:port`, `ipc://path`; one that does not answer is left
    for the next. Without it they are those of KINGTASK_BROKER (with commas), else this machine's. `timeout`
    (seconds) bounds each call that names no other, with all that is tried again in it. One client serves any number of
    threads, and forked children too. Nothing is connected before the first call.

    `curve_key` and `server_key` are files, for brokers that ask for keys: the client's secret key and the brokers'
    public one; without them those of KINGTASK_CURVE_KEY and KINGTASK_SERVER_KEY.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        timeout: float = 10.0,
        curve_key: KeyFile | None = None,
        server_key: KeyFile | None = None,
    ) -> None:
        self._pool = Pool(addresses.endpoints(address), client_keys(curve_key, server_key))
        self._operations = Operations(self._task, timeout, monotonic=monotonic_s, wall=wall_s)
        # A client that is dropped unclosed: the collector might finalise the context before its sockets and block.
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
    list = _iterating(Operations[Task].list)
    stats = _method(Operations[Task].stats)
    pause = _method(Operations[Task].pause)
    resume = _method(Operations[Task].resume)
    ping = _method(Operations[Task].ping)

    def close(self) -> None:
        """Close all connections; calls under way in other threads end with NoAnswer. Idempotent."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _task(self, task_id: str, name: str | None) -> Task:
        return Task(self, task_id, name)

    def _run(self, plan: Steps[R]) -> R:
        try:
            calls = next(plan)  # what is wrong with the arguments shows before anything is connected
            channel = self._pool.take()
            try:
                while True:
                    calls = plan.send(channel.exchange(calls))
            finally:
                self._pool.give(channel)
        except StopIteration as end:
            value: R = end.value
            return value

    def _iterate(self, flow: StepsWithResults[R]) -> Iterator[R]:
        """Run a flow; a channel is held only while something is under way on it."""
        channel: Channel | None = None
        try:
            step = next(flow)
            while True:
                if isinstance(step, Yielded):
                    yield step.value
                    step = next(flow)
                    continue
                if channel is None:
                    channel = self._pool.take()
                finished = channel.exchange(step)
                if channel.idle:
                    self._pool.give(channel)
                    channel = None
                step = flow.send(finished)
        except StopIteration:
            return
        finally:
            flow.close()
            if channel is not None:
                self._pool.give(channel)
