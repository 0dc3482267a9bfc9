"""A bulk submit: tasks travel in chunks, several at a time, and each task gets one outcome, in order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from math import inf
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec.structs import asdict

from kingtask import protocol, wire
from kingtask.client.call import Call, SendOnly, Steps, asked_rest_s, field
from kingtask.client.handles import AsyncTask, Outcome, Task
from kingtask.errors import InvalidRequest, KingtaskError, NoAnswer, RequestRefused
from kingtask.task import TaskSpec

CHUNK_TASKS = 200
"""Tasks of the first chunk: as many as one call of the store takes. Each further chunk may hold twice as many, up to
the bound of a message. So 1,000 tasks travel in three chunks, and the broker works on one while the client packs the
next (measured: a sixth more per second); many tasks travel in few chunks."""

IN_FLIGHT = 4
"""Chunks in progress at a time: enough for broker and client to work at once; one `busy` costs little."""

CHUNK_BYTES = wire.MAX_MESSAGE_BYTES * 3 // 4
"""Estimated size at which a chunk ends. The exact size is known after packing; a chunk that is too big is halved."""

TASK_BYTES = 128
"""Bytes of a task beside its texts: names of fields, id, name, numbers."""

AGAIN_S = 0.1
"""The shortest pause before refused tasks are sent again."""

H = TypeVar("H", bound=Task | AsyncTask)


class Entry(NamedTuple):
    """One task, which has an id and may be invalid, and its place among all."""

    place: int
    task: TaskSpec
    maybe_stored: bool = False
    """True if an earlier call may have stored it; later refusals do not know that."""


class Chunk(NamedTuple):
    """Tasks that travel together."""

    entries: list[Entry]
    deadline: float
    """After this time, refused tasks are not sent again."""
    rest_s: float = 0.0
    """The pause before it is sent."""


class Bulk(Generic[H]):
    """One bulk submit. `timeout_s` bounds each chunk; `make(id, name)` makes the handles."""

    def __init__(self, timeout_s: float, clock: Callable[[], float], make: Callable[[str, str], H]) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._make = make
        self._outcomes: list[Outcome[H]] = []
        self._stopped: NoAnswer | None = None
        """The reason to send nothing more: a chunk without an answer, or with a retryable refusal as its answer."""

    def submit(self, tasks: Iterable[TaskSpec]) -> Steps[list[Outcome[H]]]:
        """Submit the tasks; read `tasks` only as far ahead as chunks are in progress."""
        source = self._chunks(tasks)
        in_progress: dict[Call, Chunk] = {}
        again: list[Chunk] = []
        while True:
            chunk = None
            if again or len(in_progress) < IN_FLIGHT:
                chunk = again.pop(0) if again else next(source, None)
            if chunk is not None:
                fields = {"tasks": [entry.task for entry in chunk.entries]}
                call = Call("submit", fields, chunk.deadline - self._clock(), delay_s=chunk.rest_s)
                in_progress[call] = chunk
                finished = yield SendOnly((call,))
            elif in_progress:
                finished = yield ()
            else:
                return self._outcomes
            for call in finished:
                again += self._settle(in_progress.pop(call), call)

    def _chunks(self, tasks: Iterable[TaskSpec]) -> Iterator[Chunk]:
        entries: list[Entry] = []
        size, most = 0, CHUNK_TASKS
        for task in tasks:
            weight = _weight(task)
            if entries and (len(entries) == most or size + weight > CHUNK_BYTES):
                yield from self._chunk(entries)
                entries, size, most = [], 0, min(2 * most, wire.MAX_BATCH)
            entries.append(Entry(len(self._outcomes), task))
            self._outcomes.append(Outcome(self._make(task.id or "", task.name), "created"))
            size += weight
        if entries:
            yield from self._chunk(entries)

    def _chunk(self, entries: list[Entry]) -> Iterator[Chunk]:
        if self._stopped is None:
            yield Chunk(entries, self._clock() + self._timeout_s)
        else:
            self._refuse(entries, self._stopped)

    def _settle(self, chunk: Chunk, call: Call) -> Iterable[Chunk]:
        """Note the outcomes of a chunk; return the chunks to send again."""
        entries = chunk.entries
        try:
            answers = field(call.result(), "outcomes", list)
            if len(answers) != len(entries):
                raise InvalidRequest(f"{len(answers)} outcomes for {len(entries)} tasks", code="malformed")
        except KingtaskError as error:
            if not call.tries and isinstance(error, InvalidRequest):
                # Never sent: one of them is too big or has no form on the wire, and halving finds it.
                if len(entries) > 1:
                    half = len(entries) // 2
                    return (chunk._replace(entries=entries[:half]), chunk._replace(entries=entries[half:]))
                error = _exact(entries[0], error)
            if isinstance(error, NoAnswer) or (isinstance(error, RequestRefused) and error.retryable):
                self._stopped = NoAnswer(f"not sent, because an earlier chunk of tasks failed: {error}", stored="no")
            self._refuse(entries, error)
            return ()
        refused: list[tuple[Entry, RequestRefused]] = []
        for nth, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
            match answer:
                case {"outcome": "created"}:
                    pass
                case {"outcome": "exists"}:
                    self._outcomes[entry.place] = Outcome(self._outcomes[entry.place].task, "exists")
                case _:
                    refusal = _refusal(answer, nth, entry)
                    if call.maybe_stored or entry.maybe_stored:
                        refusal.stored = "unknown"
                    refused.append((entry._replace(maybe_stored=refusal.stored == "unknown"), refusal))
        return self._again(chunk, refused)

    def _again(self, chunk: Chunk, refused: list[tuple[Entry, RequestRefused]]) -> Iterable[Chunk]:
        """Return the refused tasks that can be tried again; record the outcome of the others."""
        rest_s = max([AGAIN_S, *(asked_rest_s(error) for _, error in refused if error.retryable)])
        in_time = self._clock() + rest_s < chunk.deadline
        again = []
        for entry, error in refused:
            if error.retryable and in_time:
                again.append(entry)
            else:
                self._refuse((entry,), error)
        return (chunk._replace(entries=again, rest_s=rest_s),) if again else ()

    def _refuse(self, entries: Iterable[Entry], error: KingtaskError) -> None:
        for entry in entries:
            own = error
            if entry.maybe_stored and isinstance(error, RequestRefused | NoAnswer):
                own = copy(error)
                own.stored = "unknown"
            self._outcomes[entry.place] = Outcome(self._outcomes[entry.place].task, "error", own)


def _refusal(answer: Any, nth: int, entry: Entry) -> RequestRefused:
    """Return the error of one task. It names the task by its place among all, not as the `nth` of its chunk."""
    fields = answer.get("error") if isinstance(answer, dict) else None
    error = dict(fields) if isinstance(fields, dict) else {}
    for name in ("message", "field"):
        text = error.get(name)
        if isinstance(text, str) and text.startswith(f"tasks[{nth}]"):
            error[name] = f"tasks[{entry.place}]" + text.removeprefix(f"tasks[{nth}]")
    refusal = protocol.error_from(error)
    refusal.id = entry.task.id
    return refusal


def _exact(entry: Entry, error: InvalidRequest) -> InvalidRequest:
    """Return the error of a task that cannot be sent; it names the field, if one is wrong."""
    try:
        protocol.parse_task(asdict(entry.task), inf, f"tasks[{entry.place}]")
    except InvalidRequest as exact:
        exact.id = entry.task.id
        return exact
    return error


def _weight(task: TaskSpec) -> int:
    """Estimate the bytes of this task in a message."""
    try:
        return TASK_BYTES + sum(map(len, task.args)) + sum(map(len, task.env.values())) + len(task.stdin)
    except (TypeError, AttributeError):
        return TASK_BYTES  # a wrong type: the broker refuses it, or it cannot be packed
