"""What must hold, whatever goes wrong: checked from outside after each call that the store executed.

It keeps its own account of due instants, leases, failures and fences, made of the requests and of the changes it saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from kingtask.policy import Policy
from kingtask.states import TERMINAL, TRANSITIONS, State
from kingtask.store.functions import Fence
from kingtask.task import TaskSpec
from tests.store.model import Model, ModelTask, ms


class Violation(AssertionError):
    """An invariant does not hold."""


T = TypeVar("T")


def twin(one: T, **fields: Any) -> T:
    """A copy with other values in some fields; what `dataclasses.replace` does, ten times as fast."""
    other: T = object.__new__(type(one))
    other.__dict__.update(one.__dict__, **fields)
    return other


class RecordView(NamedTuple):
    """What the record of a task says."""

    state: State
    attempt: int
    token: bytes | None
    failures: int
    lost: int
    due: int
    reason: str
    stdout: bytes


@dataclass
class Account:
    """What is known of one task."""

    spec: TaskSpec
    due: int
    failures: int = 0
    lost: int = 0
    lease_end: int = 0
    worker: str = ""
    reported: set[int] = field(default_factory=set)
    """Numbers of the attempts whose end was recorded."""
    lost_or_released: set[int] = field(default_factory=set)

    def copy(self) -> Account:
        return twin(self, reported=set(self.reported), lost_or_released=set(self.lost_or_released))


Snapshot = tuple[dict[str, RecordView], dict[str, Account]]


class InvariantLedger:
    """`jumped`: Redis's clock was set, so leases may have ended early. `forgot`: a failover has lost some writes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.views: dict[str, RecordView] = {}
        self.accounts: dict[str, Account] = {}
        self.given: dict[Fence, str] = {}
        """Every fence that a claim made, and the worker it is for."""
        self.acknowledged: dict[str, TaskSpec] = {}
        self.invoked: dict[str, list[TaskSpec]] = {}
        """Every version of a task that a client asked for."""
        self.maybe_stored: set[str] = set()
        """Ids of which some submit was not refused with `stored: no`."""
        self.started: dict[str, list[Fence]] = {}
        """By task, each attempt that a worker has started."""
        self.jumped = False
        self.forgot = False

    # ── what clients see ────────────────────────────────────────────────────────────────────────────────────────────

    def acknowledge(self, spec: TaskSpec, outcome: str) -> None:
        task_id = _id(spec)
        if task_id not in self.views:
            raise Violation(f"{task_id[:8]} was acknowledged and is not stored")
        if self.accounts[task_id].spec != spec:
            raise Violation(f"{task_id[:8]} was acknowledged as another task than the one that is stored")
        if outcome == "created" and task_id in self.acknowledged and self.acknowledged[task_id] is not spec:
            raise Violation(f"{task_id[:8]} was created for two requests")
        self.acknowledged[task_id] = spec

    def result_seen(self, task_id: str, state: str) -> None:
        view = self.views.get(task_id)
        if not self.forgot and (view is None or (state in TERMINAL and view.state != state)):
            raise Violation(f"{task_id[:8]}: a client was told {state}, the record says {view and view.state}")

    # ── what workers do ─────────────────────────────────────────────────────────────────────────────────────────────

    def spawned(self, fence: Fence, worker: str) -> None:
        name = f"{fence.id[:8]}/{fence.number}"
        if self.given.get(fence) != worker:
            raise Violation(f"{name} was started by {worker}, who was not given it")
        before = self.started.setdefault(fence.id, [])
        if fence in before:
            raise Violation(f"{name} was started twice")
        once = self.invoked[fence.id][0].on_lost == "fail"
        if once:
            unknown = [other.number for other in before if other.number not in self.accounts[fence.id].reported]
            if unknown:
                raise Violation(f"{name} was started, on_lost: fail, after {unknown} of which the end is not known")
        if not self.jumped and (once or not self.forgot) and not self._holds(fence):
            raise Violation(f"{name} was started although it was given away: {self.views.get(fence.id)}")
        before.append(fence)

    # ── what the store does ─────────────────────────────────────────────────────────────────────────────────────────

    def look(self, model: Model, function: str, arguments: dict[str, Any]) -> bool:
        """The store has executed a call; return whether that changed any task."""
        views, tasks, changed = self.views, model.tasks, False
        for task_id, task in tasks.items():
            view = (task.state, task.attempt, task.token, task.failures, task.lost, task.due, task.reason, task.stdout)
            before = views.get(task_id)
            if view != before:
                self._changed(task, before, RecordView(*view), model.now, function, arguments)
                views[task_id] = RecordView(*view)
                changed = True
        if len(tasks) != len(views):
            raise Violation(f"{set(views) - set(tasks)} are gone")
        if function == "extend":
            self._renewed(model, arguments)
        elif function == "claim" and arguments["again"]:
            for fence, worker in self.given.items():
                if (fence.token, worker) == (arguments["token"], arguments["worker"]):
                    self._renew(fence, model.now)
        return changed

    def _renewed(self, model: Model, arguments: dict[str, Any]) -> None:
        for row in arguments["held"]:
            self._renew(Fence(*row[:3]), model.now)

    def _renew(self, fence: Fence, now: int) -> None:
        if self._holds(fence):
            self.accounts[fence.id].lease_end = now + self._policy.lease_ms

    def _holds(self, fence: Fence) -> bool:
        view = self.views.get(fence.id)
        return view is not None and (view.state, view.attempt, view.token) == (State.RUNNING, *fence[1:])

    def _changed(
        self,
        task: ModelTask,
        before: RecordView | None,
        view: RecordView,
        now: int,
        function: str,
        arguments: dict[str, Any],
    ) -> None:
        name = f"{task.id[:8]}/{view.attempt}"
        if before is None:
            self._made(task, view, now, function)
            return
        account = self.accounts[task.id]
        old, new = before.state, view.state
        if old in TERMINAL:
            raise Violation(f"{name}: {function} changed {old} ({before}) into {view}")
        if old is new or not _legal(old, new, function):
            raise Violation(f"{name}: {function} made {old} of it ({before}) {new} ({view})")
        if new is not State.RUNNING and view.attempt != before.attempt:
            raise Violation(f"{name}: {function} changed its number")
        if new in TERMINAL and new is State.EXPIRED and not 0 < ms(account.spec.expires_at or 0) <= now:
            raise Violation(f"{name} expired at {now}, before its time")
        if old is State.SCHEDULED and new is State.READY and now < account.due:
            raise Violation(f"{name} became ready {account.due - now} ms early")
        if new is State.RUNNING:
            self._claimed(task, account, now, function, arguments)
        elif old is State.RUNNING:
            self._left(task, account, before, view, now, function, arguments)

    def _made(self, task: ModelTask, view: RecordView, now: int, function: str) -> None:
        if function != "submit" or task.spec not in self.invoked.get(task.id, ()):
            raise Violation(f"{task.id[:8]} was made by {function} as nobody asked for it")
        spec = task.spec
        due = now + ms(spec.delay_s) if spec.delay_s else ms(spec.start_at)
        if view.state is not (State.SCHEDULED if due > now else State.READY) or view.attempt:
            raise Violation(f"{task.id[:8]}: due at {due}, at {now} it was made {view}")
        self.accounts[task.id] = Account(spec, due or now)

    def _claimed(self, task: ModelTask, account: Account, now: int, function: str, arguments: dict[str, Any]) -> None:
        name = f"{task.id[:8]}/{task.attempt}"
        wish = arguments.get("claim", arguments)
        fence = Fence(task.id, task.attempt, wish.get("token", b""))
        number = len(account.reported) + len(account.lost_or_released) + 1
        given = fence in self.given and not self.forgot
        asked = function == "claim" or (function in ("finish", "finish_cut") and "claim" in arguments)
        if not asked or given or task.attempt != number:
            raise Violation(f"{name}: claimed out of turn by {function}")
        if 0 < ms(account.spec.expires_at or 0) <= now:
            raise Violation(f"{name} was claimed after it had expired")
        self.given[fence] = account.worker = arguments["worker"]
        account.lease_end = now + self._policy.lease_ms

    def _left(
        self,
        task: ModelTask,
        account: Account,
        before: RecordView,
        view: RecordView,
        now: int,
        function: str,
        arguments: dict[str, Any],
    ) -> None:
        name = f"{task.id[:8]}/{before.attempt}"
        fence = Fence(task.id, before.attempt, before.token or b"")
        if function in ("finish", "finish_cut"):
            verdicts = [row[3] for row in arguments["ended"] if tuple(row[:3]) == fence]
            if not verdicts:
                raise Violation(f"{name}: a stale finish made {view.state} of it")
            if fence not in self.started.get(task.id, ()):
                raise Violation(f"{name} has an outcome and was never started")
            self._reported(task, account, view, now, verdicts[0])
        elif function == "tick":
            if now < account.lease_end:
                raise Violation(f"{name} was taken away {account.lease_end - now} ms before its lease ended")
            account.lost += 1
            account.lost_or_released.add(before.attempt)
            gone = account.spec.on_lost == "fail" or account.lost >= self._policy.max_lost
            if gone and view.state not in (State.FAILED, State.CANCELLED):
                raise Violation(f"{name} is {view.state} although it may not be started again")
            if not gone and view.state is State.FAILED:
                raise Violation(f"{name} failed after {account.lost} lost attempts")
        else:
            if function == "release" and fence not in [tuple(row[:3]) for row in arguments["attempts"]]:
                raise Violation(f"{name}: a stale release made {view.state} of it")
            if arguments.get("worker") != account.worker:
                raise Violation(f"{name} of {account.worker} was handed back by {arguments.get('worker')}")
            started = fence in self.started.get(task.id, ())
            if started and account.spec.on_lost == "fail" and view.state is State.READY:
                raise Violation(f"{name} was started, on_lost: fail, and handed back by {function}")
            account.lost_or_released.add(before.attempt)

    def _reported(self, task: ModelTask, account: Account, view: RecordView, now: int, verdict: str) -> None:
        name = f"{task.id[:8]}/{view.attempt}"
        account.reported.add(view.attempt)
        if verdict == "succeeded":
            if view.state is not State.SUCCEEDED or view.stdout != b"%d" % view.attempt:
                raise Violation(f"{name} succeeded and is {view}")
            return
        account.failures += 1
        retry = account.spec.retry
        last = verdict == "final" or account.failures > len(retry)
        if view.failures != account.failures or (last and view.state is State.SCHEDULED):
            raise Violation(f"{name} failed for the {account.failures}th time and is {view}")
        if view.state is State.SCHEDULED:
            account.due = now + ms(retry[account.failures - 1])
            if view.due != account.due:
                raise Violation(f"{name}: the pause after failure {account.failures} is {view.due - now} ms")
        elif not last and view.state is State.FAILED:
            raise Violation(f"{name} failed before its retries were used up")

    # ── failover ────────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> Snapshot:
        """What the store's history says so far."""
        return dict(self.views), {task_id: account.copy() for task_id, account in self.accounts.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Another server has become the primary, which knows this much."""
        self.forgot = True
        self.views, self.accounts = snapshot

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def drained(self) -> bool:
        return all(view.state in TERMINAL for view in self.views.values())

    def close(self) -> None:
        """Everything is healed and drained."""
        for task_id in self.acknowledged:
            if task_id not in self.views:
                raise Violation(f"{task_id[:8]} was acknowledged and is lost")
        for task_id, view in self.views.items():
            account = self.accounts[task_id]
            if view.state not in TERMINAL:
                raise Violation(f"{task_id[:8]} never ended: {view}")
            if task_id not in self.maybe_stored:
                raise Violation(f"{task_id[:8]} was refused as not stored, and it is")
            started = len(self.started.get(task_id, ()))
            if not self.forgot and started > 1 + account.failures + len(account.lost_or_released):
                raise Violation(f"{task_id[:8]} was started {started} times")


def _legal(old: State, new: State, function: str) -> bool:
    # One tick may give a lost attempt back and then find it too late to be started.
    return new in TRANSITIONS[old] or (function == "tick" and (old, new) == (State.RUNNING, State.EXPIRED))


def _id(spec: TaskSpec) -> str:
    assert spec.id is not None
    return spec.id
