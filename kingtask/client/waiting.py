"""Waits for the end of tasks: the op `wait`, repeated in slices, so that a dead broker is noticed. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf

from kingtask.client.call import Call, Steps, StepsWithResults, Yielded, result_in
from kingtask.errors import ResultTimeout
from kingtask.result import Result

SLICE_S = 30.0
"""Duration of one `wait`."""

TURN_S = 2.0
"""The same while other tasks queue for their turn."""

WINDOW = 1_000
"""Waits in progress at a time; a broker has 10,000 for all its clients (`max_waits`)."""

GRACE_S = 1.0
"""Extra time, after the caller's timeout, for the reply with the state of the task."""

AGAIN_S = 0.2
"""The pause after a broker cut a wait short, as it does when it stops."""


class Waiting:
    """Waits of one caller, for `timeout` seconds in all (None: without a bound).

    `silence_s` bounds the time without any message of a broker; `clock` gives monotonic seconds.
    """

    def __init__(self, timeout: float | None, *, silence_s: float, clock: Callable[[], float]) -> None:
        self._timeout_s = inf if timeout is None else max(0.0, timeout)
        self._silence_s = silence_s
        self._clock = clock
        self._deadline = clock() + self._timeout_s

    def end(self, task_id: str) -> Steps[Result]:
        """Return the task once it has ended. Raises ResultTimeout."""
        rest_s = 0.0
        while True:
            (call,) = yield (self._call(task_id, rest_s, SLICE_S),)
            result = _result(call)
            if result.ended:
                return result
            if self._over():
                late = ResultTimeout(f"{result.describe()}, after {self._timeout_s:g} s of waiting")
                late.id = task_id
                raise late
            rest_s = self._rest_s(call)

    def ends(self, task_ids: Iterable[str]) -> StepsWithResults[Result]:
        """Yield each task when it ends. Raises ResultTimeout if one has not."""
        backlog = deque((task_id, 0.0) for task_id in dict.fromkeys(task_ids))
        in_progress = 0
        while backlog or in_progress:
            slice_s = TURN_S if len(backlog) + in_progress > WINDOW else SLICE_S
            starting = []
            while backlog and in_progress < WINDOW:
                task_id, rest_s = backlog.popleft()
                starting.append(self._call(task_id, rest_s, slice_s))
                in_progress += 1
            for call in (yield starting):
                in_progress -= 1
                result = _result(call)
                if result.ended:
                    yield Yielded(result)
                elif self._over():
                    left = 1 + in_progress + len(backlog)
                    raise ResultTimeout(f"{left} tasks have not ended, after {self._timeout_s:g} s of waiting")
                else:
                    backlog.append((result.id, self._rest_s(call)))

    def _call(self, task_id: str, rest_s: float, slice_s: float) -> Call:
        left_s = max(0.0, self._deadline - self._clock())
        return Call(
            "wait",
            {"id": task_id, "timeout_s": min(slice_s, left_s)},
            left_s + GRACE_S,
            about=task_id,
            silence_s=self._silence_s,
            delay_s=rest_s,
        )

    def _over(self) -> bool:
        return self._clock() >= self._deadline

    def _rest_s(self, call: Call) -> float:
        """Return the pause before the next slice. It avoids a tight loop with a broker that answers early."""
        early = self._clock() < call.sent_at + call.answer_s - AGAIN_S
        return AGAIN_S if early else 0.0


def _result(call: Call) -> Result:
    return result_in(call.result().get("task"), call.about)
