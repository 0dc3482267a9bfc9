"""Plans: what a method does, as a generator that leaves sending and waiting to the shell that runs it. Pure.

A plan yields calls to start (none: just go on waiting) and is sent those that are done, at least one while any is under
way; or, if they are `SendOnly`, once they are sent, and perhaps none. A flow is a plan that also yields what it finds
meanwhile, as `Yielded`, and is sent nothing for that.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from kingtask.client.call import Call, Reply

R = TypeVar("R")

Calls = Sequence[Call]
Steps = Generator[Calls, Calls, R]


class SendOnly(tuple[Call, ...]):
    """Calls to send without waiting for their replies: there are others to be made meanwhile."""

    __slots__ = ()


class Yielded(NamedTuple, Generic[R]):
    value: R


StepsWithResults = Generator[Calls | Yielded[R], Calls, None]


def ask(op: str, fields: Mapping[str, Any], timeout_s: float, *, about: str | None = None) -> Steps[Reply]:
    """One request, one reply. Raises its error."""
    (call,) = yield (Call(op, fields, timeout_s, about=about),)
    return call.result()


def collect(flow: StepsWithResults[R]) -> Steps[list[R]]:
    """A flow as a plan that returns all that it finds."""
    found: list[R] = []
    try:
        step = next(flow)
        while True:
            if isinstance(step, Yielded):
                found.append(step.value)
                step = next(flow)
            else:
                step = flow.send((yield step))
    except StopIteration:
        return found
