"""Redis: the plain model behind the calls of the store, with a clock of its own; it can hang, go away, come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from kingtask import protocol, wire
from kingtask.errors import StoreError
from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.states import TERMINAL
from kingtask.store import functions
from kingtask.store.functions import FunctionCall
from kingtask.task import TaskSpec
from tests.simulator.ledger import InvariantLedger, Snapshot, twin
from tests.simulator.world import START_MS, SimulatedWorld
from tests.store.model import Model, ModelTask

NOBODYS = functions.Lost("", 0, "", "")
"""The plain model only counts them."""


class State(NamedTuple):
    tasks: dict[str, ModelTask]
    queues: dict[str, bool]
    seen: Snapshot


class Replica:
    """Has each write some time later; now and then its connection stands still for a while."""

    def __init__(self, latency: Callable[[], float]) -> None:
        self._latency = latency
        self._coming: deque[tuple[float, State]] = deque([(0.0, State({}, {}, ({}, {})))])
        """When it has each state: the first is what it has now, the others are under way."""
        self._stalled_until = 0.0

    def stall(self, until: float) -> None:
        self._stalled_until = until

    def feed(self, now: float, tasks: dict[str, ModelTask], queues: dict[str, bool], seen: Snapshot) -> None:
        self._arrive(now)
        when = max(self._coming[-1][0], self._stalled_until, now + self._latency())
        self._coming.append((when, State(tasks, dict(queues), seen)))

    @property
    def has_all_at(self) -> float:
        """When it has what was written so far."""
        return self._coming[-1][0]

    def promote(self, now: float) -> State:
        self._arrive(now)
        state = self._coming[0][1]
        self._coming = deque([(now, State(_copied(state.tasks), dict(state.queues), _seen(state.seen)))])
        return state

    def _arrive(self, now: float) -> None:
        while len(self._coming) > 1 and self._coming[1][0] <= now:
            self._coming.popleft()


def _copy(model: Model) -> dict[str, ModelTask]:
    return _copied(model.tasks)


def _copied(tasks: dict[str, ModelTask]) -> dict[str, ModelTask]:
    return {task_id: twin(task, attempts=list(task.attempts)) for task_id, task in tasks.items()}


def _seen(seen: Snapshot) -> Snapshot:
    views, accounts = seen
    return dict(views), {task_id: account.copy() for task_id, account in accounts.items()}


class SimulatedRedis:
    """Each call is executed at one instant, and the ledger looks at what it did."""

    def __init__(
        self,
        world: SimulatedWorld,
        policy: Policy,
        ledger: InvariantLedger,
        model: type[Model],
        replica: Replica | None = None,
    ) -> None:
        self._world = world
        self._ledger = ledger
        self.replica = replica
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

    def fail_over(self) -> None:
        """The replica takes over with what it has; the rest was never confirmed to anybody."""
        assert self.replica is not None
        self.go_down()
        self.model.tasks, self.model.queues, seen = self.replica.promote(self._world.now)
        self._ledger.restore(seen)
        self._world.note("redis", "failover")

    def jump(self, ms: int) -> None:
        self._world.note("redis", "clock", ms)
        self.offset_ms += ms
        self._ledger.jumped = True

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, who: str, call: FunctionCall) -> Any:
        now_us = self.now_us
        self.model.now = now_us // 1000
        value = getattr(self, f"_{call.function}")(call.arguments, now_us)
        self._world.note(who, call.function, _shown(call), _answer(value))
        changed = self._ledger.look(self.model, call.function, call.arguments)
        if self.replica is not None and (changed or call.function == "cancel"):
            self.replica.feed(self._world.now, _copy(self.model), self.model.queues, self._ledger.snapshot())
        published, self.model.published = self.model.published, []
        for what, text in published:
            for hear in list(self.subscribers):
                hear(what, text)
        return value

    def _submit(self, a: dict[str, Any], now_us: int) -> functions.Submitted:
        outcomes, ready, dues = self.model.submit([self.specs[tuple(task)] for task in a["tasks"]])
        return functions.Submitted(now_us, outcomes, list(ready.items()), dues)

    def _tick(self, a: dict[str, Any], now_us: int) -> functions.Ticked:
        ready, upcoming, lost = self.model.tick()
        some = upcoming[: a["upcoming"]]
        return functions.Ticked(now_us, list(ready.items()), some, len(some) == len(upcoming), False, [NOBODYS] * lost)

    def _claim(self, a: dict[str, Any], now_us: int) -> functions.Claims:
        queues, again = list(a["queues"]), bool(a["again"])
        tasks = self.model.claim(a["worker"], queues, a["n"], a["token"], nth=a["nth"], again=again)
        return functions.Claims(now_us, [_claimed(task) for task in tasks], again and bool(tasks))

    def _extend(self, a: dict[str, Any], now_us: int) -> functions.Statuses:
        return functions.Statuses(
            now_us, self.model.extend(a["worker"], list(a["held"]), list(a["claims"]), upto=a["upto"])
        )

    def _finish(self, a: dict[str, Any], now_us: int) -> functions.Finished:
        rows = [(functions.Fence(*row[:3]), row[3], row[6]) for row in a["ended"]]
        answers = self.model.finish(rows)
        wish = a.get("claim")
        if wish is None:
            return functions.Finished(now_us, answers, None)
        return functions.Finished(now_us, answers, self._claim({"worker": a["worker"], "again": 0, **wish}, now_us))

    _finish_cut = _finish

    def _release(self, a: dict[str, Any], now_us: int) -> functions.Statuses:
        return functions.Statuses(now_us, self.model.release([functions.Fence(*row[:3]) for row in a["attempts"]]))

    def _cancel(self, a: dict[str, Any], now_us: int) -> str:
        return self.model.cancel(a["id"])

    def _wait(self, a: dict[str, Any], now_us: int) -> str:
        return self.model.wait(a["id"])

    def _get(self, a: dict[str, Any], now_us: int) -> functions.StoredTask:
        task = self.model.tasks.get(a["id"])
        if task is None:
            return functions.StoredTask(now_us, None)
        result = _result(task)
        return functions.StoredTask(now_us, result, msgspec.Raw(wire.pack(protocol.result_fields(result))))

    def _clock(self, a: dict[str, Any], now_us: int) -> functions.ServerTime:
        return functions.ServerTime(now_us)

    def _states(self, a: dict[str, Any], now_us: int) -> list[str]:
        tasks = self.model.tasks
        return [tasks[task_id].state if task_id in tasks else "" for task_id in a["ids"]]


def _claimed(task: ModelTask) -> functions.Claimed:
    return functions.Claimed(
        id=task.id,
        number=task.attempt,
        name=task.spec.name,
        spec=b"",
        queue=task.queue,
        due_ms=task.due,
        fail_if_lost=task.spec.on_lost == "fail",
        claimed_ms=task.claimed,
    )


def _result(task: ModelTask) -> Result:
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
        dropped=task.dropped,
    )


def _shown(call: FunctionCall) -> Any:
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
            wish = a.get("claim")
            asked = [] if wish is None else [("claims", wish["n"], wish["token"][-2:].hex())]
            return [*((_fence(row), row[3]) for row in a["ended"]), *asked]
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
        case functions.Submitted():
            return value.outcomes
        case functions.Ticked():
            return value.ready, f"lost {len(value.lost)}" if value.lost else ""
        case functions.Claims():
            return [f"{task.id[:8]}/{task.number}" for task in value.tasks]
        case functions.Finished():
            return [*value.answers, *([] if value.claims is None else _answer(value.claims))]
        case functions.Statuses():
            return value.answers
        case functions.StoredTask():
            return value.result and value.result.state
        case StoreError():
            return value.kind
        case _:
            return value
