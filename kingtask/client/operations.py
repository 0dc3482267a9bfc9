"""What each method of the clients asks for and makes of the replies, written once for both. Pure but for new ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from os import urandom
from typing import Any, Generic, Literal, TypeVar, Unpack
from uuid import UUID

from msgspec.structs import replace

from kingtask import protocol
from kingtask.client.bulk import Bulk
from kingtask.client.call import Reply, Steps, StepsWithResults, Yielded, ask, collect, field, result_in
from kingtask.client.handles import AsyncTask, Outcome, Task
from kingtask.client.options import Duration, Instant, TaskOptions, TaskRef, epoch_s, id_of, task_fields
from kingtask.client.waiting import Waiting
from kingtask.errors import InvalidRequest, TaskFailed
from kingtask.result import Result
from kingtask.states import State
from kingtask.task import TaskSpec

H = TypeVar("H", bound=Task | AsyncTask)

ENVELOPE = ("v", "rid", "ok")

VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""The two bits of the variant set in any hexadecimal digit."""


class Operations(Generic[H]):
    """`timeout_s` bounds calls that name no bound of their own; `make` makes the tasks that are handed out.

    `monotonic` and `wall` are clocks in seconds.
    """

    def __init__(
        self,
        make: Callable[[str, str | None], H],
        timeout_s: float,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._wall = wall

    def submit(
        self,
        name: str,
        args: Iterable[str] = (),
        *,
        at: Instant | None = None,
        delay: Duration | None = None,
        retry: Iterable[Duration] = (),
        queue: str | None = None,
        priority: int | None = None,
        time_limit: Duration | None = None,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        keep_result: Duration | None = None,
        expires_at: Instant | None = None,
        stderr: Literal["fail", "keep"] | None = None,
        on_lost: Literal["retry", "fail"] | None = None,
        tags: Iterable[str] = (),
        id: str | UUID | None = None,  # noqa: A002 - the word for it
        timeout: float | None = None,
    ) -> Steps[H]:
        """Have the executable `name` run with `args`, now or at an instant; return the accepted task.

        `at` is an aware datetime or epoch seconds, `delay` seconds or a timedelta from now; `retry` lists the pauses
        before further attempts. What is left out takes the broker's or the worker's default. The id is chosen here
        if not given, so that asking again, which this does by itself until `timeout`, makes no second task.
        Raises InvalidRequest (before anything is sent), IdConflict, NoAnswer and other RequestRefused; `id` of the
        error is the id to submit again with.
        """
        options: TaskOptions = {
            "at": at,
            "delay": delay,
            "retry": retry,
            "queue": queue,
            "priority": priority,
            "time_limit": time_limit,
            "stdin": stdin,
            "env": env,
            "keep_result": keep_result,
            "expires_at": expires_at,
            "stderr": stderr,
            "on_lost": on_lost,
            "tags": tags,
        }
        chosen = fresh_id() if id is None else id_of(id)
        fields = task_fields(chosen, name, args, options)
        protocol.parse_task(fields, self._wall(), "task")
        reply = yield from ask("submit", {"task": fields}, self._limit(timeout), about=chosen)
        return self._accepted(reply, chosen, name, fresh=id is None)

    def submit_many(self, tasks: Iterable[TaskSpec], *, timeout: float | None = None) -> Steps[list[Outcome[H]]]:
        """Submit any number of tasks; return the outcome of each, in their order.

        They travel in chunks of up to 1,000, each bounded by `timeout`. A task that is refused does not hinder the
        others, and is no exception: see the outcome's `error`. After a chunk without an answer no more are sent.
        """
        outcomes = yield from self._bulk(timeout).submit(map(_with_id, tasks))
        for one in outcomes:
            if one.outcome != "error":
                one.task.outcome = one.outcome
        return outcomes

    def map(
        self,
        name: str,
        argument_lists: Iterable[Iterable[str]],
        *,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Steps[list[Result]]:
        """Run `name` once for each list of arguments; return their results in the same order, however they ended.

        `timeout` bounds the waiting (None: without end). Raises the error of the first task that is refused,
        ResultTimeout, NoAnswer.
        """
        tasks = (task_fields(fresh_id(), name, args, options) for args in argument_lists)
        outcomes = yield from self._bulk(None).submit(tasks)
        ids = [outcome.accepted().id for outcome in outcomes]
        results = yield from collect(self._waiting(timeout).ends(ids))
        by_id = {result.id: result for result in results}
        return [by_id[one] for one in ids]

    def as_completed(self, tasks: Iterable[TaskRef], timeout: float | None = None) -> StepsWithResults[Result]:
        """Give the result of each task when it ends, the first to end first, each once.

        Raises ResultTimeout if some have not ended after `timeout` seconds, TaskNotFound, NoAnswer.
        """
        return self._waiting(timeout).ends([id_of(task) for task in tasks])

    def get(self, task: TaskRef, *, timeout: float | None = None) -> Steps[Result]:
        """The task as it stands now. Raises TaskNotFound if it never existed or its record has expired."""
        wanted = id_of(task)
        reply = yield from ask("get", {"id": wanted}, self._limit(timeout), about=wanted)
        return result_in(reply.get("task"), wanted)

    def wait(self, task: TaskRef, timeout: float | None = None) -> Steps[Result]:
        """Wait until the task has ended, however it did; return its result.

        Raises ResultTimeout if it has not ended after `timeout` seconds (None: without end), NoAnswer if no broker
        answers for the client's own time-out, TaskNotFound.
        """
        return self._waiting(timeout).end(id_of(task))

    def result(self, task: TaskRef, timeout: float | None = None) -> Steps[str]:
        """Wait as `wait` does; return what the task wrote to stdout, as text. Raises TaskFailed unless it succeeded."""
        result = yield from self.wait(task, timeout)
        if not result.success:
            raise TaskFailed(result)
        return result.text

    def cancel(self, task: TaskRef, *, timeout: float | None = None) -> Steps[str]:
        """Cancel: "cancelled" if it had not begun, "cancelling" if it runs and its worker was told to stop it.

        Raises WrongState if it has ended otherwise, TaskNotFound.
        """
        wanted = id_of(task)
        reply = yield from ask("cancel", {"id": wanted}, self._limit(timeout), about=wanted)
        return str(field(reply, "outcome", str))

    def requeue(self, task: TaskRef, new_id: str | UUID | None = None, *, timeout: float | None = None) -> Steps[H]:
        """Make a new task of one that has ended, to run now; return it. Its `origin` is the old one.

        Raises WrongState if it has not ended, TaskNotFound.
        """
        wanted, chosen = id_of(task), fresh_id() if new_id is None else id_of(new_id)
        reply = yield from ask("requeue", {"id": wanted, "new_id": chosen}, self._limit(timeout), about=chosen)
        name = None if isinstance(task, (str, UUID)) else task.name
        return self._accepted(reply, chosen, name, fresh=new_id is None)

    def stats(self, *, timeout: float | None = None) -> Steps[Reply]:
        """Queues, workers and brokers, as PROTOCOL.md shows them."""
        reply = yield from ask("stats", {}, self._limit(timeout))
        return _content(reply)

    def pause(self, queue: str, *, timeout: float | None = None) -> Steps[None]:
        """Start nothing more from this queue; what runs goes on, and tasks are still accepted."""
        yield from ask("pause", {"queue": queue}, self._limit(timeout))

    def resume(self, queue: str, *, timeout: float | None = None) -> Steps[None]:
        """Start tasks from this queue again."""
        yield from ask("resume", {"queue": queue}, self._limit(timeout))

    def ping(self, *, timeout: float | None = None) -> Steps[Reply]:
        """What the broker says of itself: version, protocol versions, whether Redis is reachable, limits, its time."""
        reply = yield from ask("ping", {}, self._limit(timeout))
        return _content(reply)

    def list(
        self,
        state: State | str,
        queue: str | None = None,
        *,
        since: Instant | None = None,
        until: Instant | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> StepsWithResults[Result]:
        """Give the tasks in a state, at most `limit`, without arguments, outputs and attempts.

        `ready` needs a queue. Ended tasks come newest first and `since` and `until` mean when they ended; scheduled
        ones come earliest first, and it is when they are due. `timeout` bounds each page.
        """
        fields: dict[str, Any] = {"state": str(state)}
        if queue is not None:
            fields["queue"] = queue
        for name, instant in (("since", since), ("until", until)):
            if instant is not None:
                fields[name] = epoch_s(instant, name)
        left = inf if limit is None else limit
        while left > 0:
            fields["limit"] = int(min(left, protocol.MAX_PAGE))
            reply = yield from ask("list", dict(fields), self._limit(timeout))
            page = field(reply, "tasks", list)
            for found in page:
                yield Yielded(result_in(found))
            left -= len(page)
            if reply.get("cursor") is None:
                return
            fields["cursor"] = reply["cursor"]

    def _accepted(self, reply: Reply, task_id: str, name: str | None, *, fresh: bool) -> H:
        """The task; a `fresh` id, chosen by this very call, can exist before only by an earlier try of it."""
        task = self._make(task_id, name)
        task.outcome = "exists" if reply.get("outcome") == "exists" and not fresh else "created"
        return task

    def _limit(self, timeout: float | None) -> float:
        return self._timeout_s if timeout is None else timeout

    def _bulk(self, timeout: float | None) -> Bulk[H]:
        return Bulk(self._limit(timeout), self._monotonic, self._make)

    def _waiting(self, timeout: float | None) -> Waiting:
        return Waiting(timeout, silence_s=self._timeout_s, clock=self._monotonic)


def fresh_id() -> str:
    """A random UUID (version 4, RFC 9562), four times as fast as str(uuid4())."""
    digits = urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _content(reply: Reply) -> Reply:
    return {name: value for name, value in reply.items() if name not in ENVELOPE}


def _with_id(spec: TaskSpec) -> TaskSpec:
    if not isinstance(spec, TaskSpec):
        raise InvalidRequest(f"tasks: expected TaskSpec, got {type(spec).__name__}")
    return replace(spec, id=fresh_id() if spec.id is None else spec.id.lower())
