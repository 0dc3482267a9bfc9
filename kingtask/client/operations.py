"""The methods of both clients, written once, as steps (see `call`). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Generic, TypeVar, Unpack
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from kingtask import protocol
from kingtask.client.bulk import Bulk
from kingtask.client.call import Reply, Steps, StepsWithResults, Yielded, ask, collect, field, result_in
from kingtask.client.handles import AsyncTask, Outcome, Task
from kingtask.client.options import Instant, TaskOptions, TaskRef, epoch_s, id_of, task_fields
from kingtask.client.waiting import Waiting
from kingtask.errors import InvalidRequest, TaskFailed
from kingtask.result import Result
from kingtask.states import State
from kingtask.task import TaskSpec

H = TypeVar("H", bound=Task | AsyncTask)

ENVELOPE = ("v", "rid", "ok")


class Operations(Struct, Generic[H], frozen=True):
    """`timeout_s` bounds calls without a bound of their own; `make` makes the returned task handles, `new_id` their
    ids.

    `monotonic` and `wall` are clocks in seconds.
    """

    make: Callable[[str, str | None], H]
    timeout_s: float
    new_id: Callable[[], str]
    monotonic: Callable[[], float]
    wall: Callable[[], float]

    def submit(
        self,
        name: str,
        args: Iterable[str] = (),
        *,
        id: str | UUID | None = None,  # noqa: A002 - the word for it
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Steps[H]:
        """Submit a task that runs the executable `name` with `args`; return the accepted task.

        `at` is an aware datetime or epoch seconds, `delay` is seconds or a timedelta from now; `retry` lists the pauses
        before further attempts. An option that is left out has the broker's or the worker's default. The client chooses
        the id, unless it is given, so that its own retries, until `timeout`, create no second task.
        Raises InvalidRequest (before anything is sent), IdConflict, NoAnswer and other RequestRefused; to try again,
        submit with the `id` of the error.
        """
        chosen = self.new_id() if id is None else id_of(id)
        fields = task_fields(chosen, name, args, options)
        protocol.parse_task(fields, self.wall(), "task")
        reply = yield from ask("submit", {"task": fields}, self._limit(timeout), about=chosen)
        return self._accepted(reply, chosen, name, fresh=id is None)

    def submit_many(self, tasks: Iterable[TaskSpec], *, timeout: float | None = None) -> Steps[list[Outcome[H]]]:
        """Submit any number of tasks; return the outcome of each, in the same order.

        The client sends them in chunks of up to 1,000, each bounded by `timeout`. A refused task affects no other, and
        raises nothing: see the `error` of its outcome. After a chunk without an answer no further chunk is sent.
        """
        outcomes = yield from self._bulk(timeout).submit(map(self._with_id, tasks))
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
        tasks = (TaskSpec(**task_fields(self.new_id(), name, args, options)) for args in argument_lists)
        outcomes = yield from self._bulk(None).submit(tasks)
        ids = [outcome.accepted().id for outcome in outcomes]
        results = yield from collect(self._waiting(timeout).ends(ids))
        by_id = {result.id: result for result in results}
        return [by_id[one] for one in ids]

    def as_completed(self, tasks: Iterable[TaskRef], timeout: float | None = None) -> StepsWithResults[Result]:
        """Yield the result of each task once, in the order in which the tasks end.

        Raises ResultTimeout if some have not ended after `timeout` seconds, TaskNotFound, NoAnswer.
        """
        return self._waiting(timeout).ends([id_of(task) for task in tasks])

    def get(self, task: TaskRef, *, timeout: float | None = None) -> Steps[Result]:
        """Return the current state of a task. Raises TaskNotFound if it never existed or its record has expired."""
        wanted = id_of(task)
        reply = yield from ask("get", {"id": wanted}, self._limit(timeout), about=wanted)
        return result_in(reply.get("task"), wanted)

    def wait(self, task: TaskRef, timeout: float | None = None) -> Steps[Result]:
        """Wait until the task has ended, with whatever outcome; return its result.

        Raises ResultTimeout if it has not ended after `timeout` seconds (None: no bound), NoAnswer if no broker
        answers within the client's own timeout, TaskNotFound.
        """
        return self._waiting(timeout).end(id_of(task))

    def result(self, task: TaskRef, timeout: float | None = None) -> Steps[str]:
        """Wait as `wait` does; return the task's stdout as text. Raises TaskFailed unless it succeeded."""
        result = yield from self.wait(task, timeout)
        if not result.success:
            raise TaskFailed(result)
        return result.text

    def cancel(self, task: TaskRef, *, timeout: float | None = None) -> Steps[str]:
        """Cancel a task: "cancelled" if it had not begun, "cancelling" if its worker was asked to stop it.

        Raises WrongState if it has ended otherwise, TaskNotFound.
        """
        return self._outcome("cancel", task, timeout)

    def requeue(self, task: TaskRef, new_id: str | UUID | None = None, *, timeout: float | None = None) -> Steps[H]:
        """Create a new task from one that has ended, to run now; return it. Its `origin` is the old task.

        Raises WrongState if it has not ended, TaskNotFound.
        """
        wanted, chosen = id_of(task), self.new_id() if new_id is None else id_of(new_id)
        reply = yield from ask("requeue", {"id": wanted, "new_id": chosen}, self._limit(timeout), about=chosen)
        name = None if isinstance(task, (str, UUID)) else task.name
        return self._accepted(reply, chosen, name, fresh=new_id is None)

    def forget(self, task: TaskRef, *, timeout: float | None = None) -> Steps[str]:
        """Remove the record of a task that has ended, with its output: "forgotten". The id is free again.

        Raises WrongState if it has not ended, TaskNotFound, also if an earlier try has removed it.
        """
        return self._outcome("forget", task, timeout)

    def stats(self, *, timeout: float | None = None) -> Steps[Reply]:
        """Return queues, workers and brokers, as PROTOCOL.md describes them."""
        reply = yield from ask("stats", {}, self._limit(timeout))
        return _content(reply)

    def pause(self, queue: str, *, timeout: float | None = None) -> Steps[None]:
        """Pause a queue: workers start none of its tasks. Running tasks go on, and brokers accept new ones."""
        yield from ask("pause", {"queue": queue}, self._limit(timeout))

    def resume(self, queue: str, *, timeout: float | None = None) -> Steps[None]:
        """Resume a paused queue."""
        yield from ask("resume", {"queue": queue}, self._limit(timeout))

    def ping(self, *, timeout: float | None = None) -> Steps[Reply]:
        """Return the broker's version, protocol versions, limits and time, and whether Redis is reachable."""
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
        """Yield the tasks in a state, at most `limit`, without arguments, outputs and attempts.

        `ready` needs a queue. Ended tasks come newest first, and `since` and `until` bound the time of their end.
        Scheduled tasks come earliest first, and these bound the due time. `timeout` bounds each page.
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

    def _outcome(self, op: str, task: TaskRef, timeout: float | None) -> Steps[str]:
        wanted = id_of(task)
        reply = yield from ask(op, {"id": wanted}, self._limit(timeout), about=wanted)
        return str(field(reply, "outcome", str))

    def _accepted(self, reply: Reply, task_id: str, name: str | None, *, fresh: bool) -> H:
        """Return the task. A `fresh` id, chosen by this call, can exist only from an earlier try of the same call."""
        task = self.make(task_id, name)
        task.outcome = "exists" if reply.get("outcome") == "exists" and not fresh else "created"
        return task

    def _with_id(self, spec: TaskSpec) -> TaskSpec:
        if not isinstance(spec, TaskSpec):
            raise InvalidRequest(f"tasks: expected TaskSpec, got {type(spec).__name__}")
        return replace(spec, id=self.new_id() if spec.id is None else spec.id.lower())

    def _limit(self, timeout: float | None) -> float:
        return self.timeout_s if timeout is None else timeout

    def _bulk(self, timeout: float | None) -> Bulk[H]:
        return Bulk(self._limit(timeout), self.monotonic, self.make)

    def _waiting(self, timeout: float | None) -> Waiting:
        return Waiting(timeout, silence_s=self.timeout_s, clock=self.monotonic)


def _content(reply: Reply) -> Reply:
    return {name: value for name, value in reply.items() if name not in ENVELOPE}
