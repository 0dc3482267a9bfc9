"""What a mutator is, and how it changes one thing of a good history."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, TypeVar

import msgspec

from tests.faults.generator import Good
from tests.faults.history import (
    Asked,
    Execution,
    Final,
    Key,
    Op,
    Reading,
    Record,
    Tried,
)
from tests.faults.rules import Rules
from tests.faults.story import History

S = TypeVar("S", bound=Record)
DOUBT = "doubt"
STRANGER = "0f0f0f0f-0000-4000-8000-00000000000f"


@dataclass(frozen=True, slots=True)
class Mutator:
    name: str
    breaks: str
    """The invariant, or DOUBT."""
    spoil: Callable[[Good, Random], History]
    rules: Rules | None = None


Spoil = Callable[[Good, Random], History]


class Catalogue(list[Mutator]):
    """The mutators of a module, by a decorator."""

    def __call__(self, breaks: str, rules: Rules | None = None) -> Callable[[Spoil], Spoil]:
        def add(spoil: Spoil) -> Spoil:
            self.append(Mutator(spoil.__name__, breaks, spoil, rules))
            return spoil

        return add


def altered(record: S, **fields: object) -> S:
    return msgspec.structs.replace(record, **fields)


def each(records: Iterable[S], wanted: Callable[[S], bool], change: Callable[[S], S | None]) -> list[S]:
    """Change those that are wanted, or leave them out where `change` gives None."""
    changed = [change(record) if wanted(record) else record for record in records]
    return [record for record in changed if record is not None]


def in_ledger(good: Good, task_id: str, change: Callable[[Execution], Execution | None], attempt: int = 0) -> History:
    def wanted(line: Execution) -> bool:
        return line.id == task_id and attempt in (0, line.attempt)

    return replace(good.history, executions=each(good.history.executions, wanted, change))


def in_record(good: Good, task_id: str, change: Callable[[Reading], Reading]) -> History:
    """Change what is recorded of an ended task, wherever it was read."""

    def op(record: Op) -> Op:
        assert record.reading is not None
        return altered(record, reading=change(record.reading))

    def final(record: Final) -> Final:
        assert record.reading is not None
        return altered(record, reading=change(record.reading))

    def read(record: Op) -> bool:
        return record.id == task_id and record.reading is not None and record.reading.finished_ms > 0

    ops = each(good.history.ops, read, op)
    return replace(good.history, ops=ops, finals=each(good.history.finals, of(task_id), final))


def in_attempts(good: Good, task_id: str, change: Callable[[list[Tried]], None]) -> History:
    """Change the attempts of a record, and its number of the last one."""

    def changed(reading: Reading) -> Reading:
        attempts = list(reading.attempts)
        change(attempts)
        return altered(reading, attempts=tuple(attempts), attempt=attempts[-1].number)

    return in_record(good, task_id, changed)


def in_calls(good: Good, task_id: str, change: Callable[[Op], Op | None]) -> History:
    return replace(good.history, ops=each(good.history.ops, of(task_id), change))


def without(history: History, ids: Collection[str]) -> History:
    """Without these tasks at all."""
    lists = each(
        history.dump,
        lambda key: key.key.startswith("finished:"),
        lambda key: altered(key, members={i: at for i, at in (key.members or {}).items() if i not in ids}),
    )
    return replace(
        history,
        ops=[op for op in history.ops if op.id not in ids],
        executions=[line for line in history.executions if line.id not in ids],
        finals=[final for final in history.finals if final.id not in ids],
        dump=[key for key in lists if key.key.removeprefix("task:") not in ids],
    )


def in_key(good: Good, key: str, change: Callable[[Key], Key | None]) -> History:
    return replace(good.history, dump=each(good.history.dump, lambda record: record.key == key, change))


def and_keys(good: Good, *keys: Key) -> History:
    return replace(good.history, dump=[*good.history.dump, *keys])


def of(task_id: str) -> Callable[[Op | Final], bool]:
    return lambda record: record.id == task_id


def record_of(good: Good, task_id: str) -> Reading:
    return next(f.reading for f in good.history.finals if f.id == task_id and f.reading is not None)


def asked_of(good: Good, task_id: str) -> Asked:
    return next(op.asked for op in good.history.ops if op.id == task_id and op.asked is not None)


def lines_of(good: Good, task_id: str) -> list[Execution]:
    return [line for line in good.history.executions if line.id == task_id]


def zset(key: str, *members: str) -> Key:
    return Key(key=key, type="zset", ttl_ms=-1, size=len(members), members=dict.fromkeys(members, "1"))


def twice(good: Good, task_id: str, attempt: int = 1) -> History:
    again = [altered(line, attempt=attempt, pid=line.pid + 50_000) for line in lines_of(good, task_id)]
    return replace(good.history, executions=[*good.history.executions, *again])


def run_with(good: Good, **fields: Any) -> Any:
    return msgspec.structs.replace(good.history.run, **fields)
