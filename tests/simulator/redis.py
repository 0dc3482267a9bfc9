"""Redis: the plain model behind the calls of the store, with a clock of its own; it can hang, go away, come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kingtask.errors import StoreError
from kingtask.store import calls
from kingtask.store.calls import Call, Policy
from kingtask.task import TERMINAL, Result, TaskSpec
from tests.simulator.ledger import Ledger
from tests.simulator.world import START_MS, World
from tests.store.model import Model, Task


class Redis:
    """Each call is executed at one instant, and the ledger looks at what it did."""

    def __init__(self, world: World, policy: Policy, ledger: Ledger, model: type[Model]) -> None:
        self._world = world
        self._ledger = ledger
        self.offset_ms = 0
        self.model = model(policy, self.now_us // 1000)
        self.up = True
        self.hung = False
        self.life = 0
        """Counts its starts: what was sent to a former life never arrives."""
        self.deferred: list[Callable[[], None]] = []
        """What arrived while it hung."""
        self.subscribers: list[Callable[[str, str], None]] = []
        self.on_down: list[Callable[[], None]] = []
        self.specs: dict[tuple[Any, ...], TaskSpec] = {}
        """The tasks of all clients by what `calls.prepare` makes of them."""

    @property
    def now_us(self) -> int:
        return START_MS * 1000 + int(self._world.now * 1e6) + self.offset_ms * 1000

    @property
    def serves(self) -> bool:
        return self.up and not self.hung

    # ── what happens to it ──────────────────────────────────────────────────────────────────────────────────────────

    def go_down(self) -> None:
        self._world.note("redis", "down")
        self.up = False
        self.life += 1
        self.deferred.clear()
        for listener in list(self.on_down):
            listener()

    def come_back(self) -> None:
        self._world.note("redis", "up")
        self.up = True

    def hang(self) -> None:
        self._world.note("redis", "hangs")
        self.hung = True

    def go_on(self) -> None:
        self._world.note("redis", "goes on")
        self.hung = False
        deferred, self.deferred = self.deferred, []
        for act in deferred:
            act()

    def jump(self, ms: int) -> None:
        self._world.note("redis", "clock", ms)
        self.offset_ms += ms
        self._ledger.jumped = True

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, who: str, call: Call) -> Any:
        now_us = self.now_us
        self.model.now = now_us // 1000
        value = getattr(self, f"_{call.function}")(call.arguments, now_us)
        self._world.note(who, call.function, _shown(call), _answer(value))
        self._ledger.look(self.model, call.function, call.arguments)
        published, self.model.published = self.model.published, []
        for what, text in published:
            for hear in list(self.subscribers):
                hear(what, text)
        return value

    def _submit(self, a: dict[str, Any], now_us: int) -> calls.Submitted:
        outcomes, ready, dues = self.model.submit([self.specs[tuple(task)] for task in a["tasks"]])
        return calls.Submitted(now_us, outcomes, list(ready.items()), dues)

    def _tick(self, a: dict[str, Any], now_us: int) -> calls.Ticked:
        ready, upcoming, lost = self.model.tick()
        some = upcoming[: a["upcoming"]]
        return calls.Ticked(now_us, list(ready.items()), some, len(some) == len(upcoming), False, lost)

    def _claim(self, a: dict[str, Any], now_us: int) -> calls.Claims:
        queues, again = list(a["queues"]), bool(a["again"])
        tasks = self.model.claim(a["worker"], queues, a["n"], a["token"], nth=a["nth"], again=again)
        return calls.Claims(now_us, [_claimed(task) for task in tasks], again and bool(tasks))

    def _extend(self, a: dict[str, Any], now_us: int) -> calls.Answers:
        return calls.Answers(now_us, self.model.extend(a["worker"], list(a["held"]), list(a["claims"]), upto=a["upto"]))

    def _finish(self, a: dict[str, Any], now_us: int) -> calls.Answers:
        rows = [(calls.Fence(*row[:3]), row[3], row[6]) for row in a["ended"]]
        return calls.Answers(now_us, self.model.finish(rows))

    _finish_cut = _finish

    def _release(self, a: dict[str, Any], now_us: int) -> calls.Answers:
        return calls.Answers(now_us, self.model.release([calls.Fence(*row[:3]) for row in a["attempts"]]))

    def _cancel(self, a: dict[str, Any], now_us: int) -> str:
        return self.model.cancel(a["id"])

    def _wait(self, a: dict[str, Any], now_us: int) -> str:
        return self.model.wait(a["id"])

    def _get(self, a: dict[str, Any], now_us: int) -> calls.Found:
        task = self.model.tasks.get(a["id"])
        return calls.Found(now_us, _result(task) if task else None)

    def _states(self, a: dict[str, Any], now_us: int) -> list[str]:
        tasks = self.model.tasks
        return [tasks[task_id].state if task_id in tasks else "" for task_id in a["ids"]]


def _claimed(task: Task) -> calls.Claimed:
    return calls.Claimed(
        id=task.id,
        number=task.attempt,
        name=task.spec.name,
        spec=b"",
        queue=task.queue,
        due_ms=task.due,
        fail_if_lost=task.spec.on_lost == "fail",
        claimed_ms=task.claimed,
    )


def _result(task: Task) -> Result:
    return Result(
        id=task.id,
        name=task.spec.name,
        queue=task.queue,
        priority=task.spec.priority,
        state=task.state,
        created_at=task.created / 1000,
        due_at=task.due / 1000,
        reason=task.reason if task.state in TERMINAL else "",
        attempt=task.attempt,
        stdout=task.stdout,
    )


def _shown(call: Call) -> Any:
    """The part of a call that a trace needs."""
    a = call.arguments
    match call.function:
        case "submit":
            return [task[0][:8] for task in a["tasks"]]
        case "claim":
            return a["worker"], a["n"], a["token"][-2:].hex(), "again" if a["again"] else ""
        case "extend":
            return a["worker"], [_fence(row) for row in a["held"]], [token[-2:].hex() for token in a["claims"]]
        case "finish" | "finish_cut":
            return [(_fence(row), row[3]) for row in a["ended"]]
        case "release":
            return [_fence(row) for row in a["attempts"]]
        case "tick":
            return ()
        case _:
            return [str(value)[:8] for name, value in a.items() if name in ("id", "ids")]


def _fence(row: Any) -> str:
    return f"{row[0][:8]}/{row[1]}/{row[2][-2:].hex()}"


def _answer(value: Any) -> Any:
    match value:
        case calls.Submitted():
            return value.outcomes
        case calls.Ticked():
            return value.ready, f"lost {value.lost}" if value.lost else ""
        case calls.Claims():
            return [f"{task.id[:8]}/{task.number}" for task in value.tasks]
        case calls.Answers():
            return value.answers
        case calls.Found():
            return value.result and value.result.state
        case StoreError():
            return value.kind
        case _:
            return value
