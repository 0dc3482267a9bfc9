"""What the store promises, in plain Python: lists and dicts, no index, no fraction, nothing clever.

The state machine of test_machine.py does the same things to this and to a real server, and compares. Times are
milliseconds of the test's clock.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from kingtask.policy import Policy
from kingtask.states import TERMINAL, State
from kingtask.store import codec
from kingtask.store.functions import Fence, Quota
from kingtask.task import TaskSpec

OUTAGE_MS = 3000
MAX_GRACED = 3
WINDOW_MS = 60_000
GIVEN_BYTES = 1024


@dataclass
class ModelTask:
    id: str
    spec: TaskSpec
    created: int
    state: State
    due: int
    order: int
    """Among the scheduled: place among those of the same instant. Among the ready: place in its priority."""
    origin: str | None = None
    owner: str | None = None
    """Whose; None: an anonymous client's."""
    quota: str | None = None
    """Until it ends: the owner whose number of tasks counts it."""
    counted: str | None = None
    """The owner whose bound counts what it keeps."""
    longest: int = 0
    """The longest time for which its record is kept; 0: any."""
    attempt: int = 0
    token: bytes | None = None
    nth: int = 0
    worker: str = ""
    claimed: int = 0
    lease_end: int = 0
    failures: int = 0
    lost: int = 0
    graced: int = 0
    cancel: bool = False
    watched: bool = False
    attempts: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each that has ended."""
    finished: int = 0
    reason: str = ""
    keep: int = 0
    stdout: bytes = b""
    dropped: bool = False
    request_dropped: bool = False

    @property
    def given(self) -> int:
        """Bytes that count once it has ended."""
        size = len(codec.pack_spec(self.spec))
        return size if size >= GIVEN_BYTES else 0

    @property
    def queue(self) -> str:
        return self.spec.queue

    @property
    def expires(self) -> int:
        return ms(self.spec.expires_at or 0)

    @property
    def fence(self) -> Fence:
        return Fence(self.id, self.attempt, self.token or b"")


class Kept(NamedTuple):
    """What counts towards `max_result_bytes`: until its record vanishes by itself, also if it is deleted."""

    order: int
    """What is dropped first: outputs before what was given, both before those of failed tasks; then the oldest."""
    member: str
    """Its id, when that ended, ":" for outputs or "+" for what it was given, bytes, the owner whose bound has it."""
    until: int

    @property
    def id(self) -> str:
        return self.member[:36]

    @property
    def given(self) -> bool:
        return "+" in self.member

    @property
    def size(self) -> int:
        return int(re.split("[:+ ]", self.member)[1])

    @property
    def owner(self) -> str:
        return self.member.partition(" ")[2]


def ms(seconds: float) -> int:
    return round(seconds * 1000)


class Model:
    def __init__(self, policy: Policy, now: int) -> None:
        self.policy = policy
        self.quota: Quota | None = None
        self.owner: str | None = None
        self.of: str | None = None
        """The rules of the client whose calls come next."""
        self.now = now
        self.tasks: dict[str, ModelTask] = {}
        self.queues: dict[str, bool] = {}
        """Name to paused."""
        self.kept: list[Kept] = []
        self.makers: dict[str, str] = {}
        """By queue: the owner that made its name, if the number of these is limited."""
        self.published: list[tuple[str, str]] = []
        self._order = 0
        self._ticked = 0
        self._returned = 0

    # ── what is where ───────────────────────────────────────────────────────────────────────────────────────────────

    def scheduled(self) -> list[ModelTask]:
        return sorted(self._in(State.SCHEDULED), key=lambda task: (task.due, task.order))

    def ready(self, queue: str) -> list[ModelTask]:
        tasks = [task for task in self._in(State.READY) if task.queue == queue]
        return sorted(tasks, key=lambda task: (-task.spec.priority, task.order))

    def running(self) -> list[ModelTask]:
        return self._in(State.RUNNING)

    def _in(self, state: State) -> list[ModelTask]:
        return [task for task in self.tasks.values() if task.state is state]

    def _next(self) -> int:
        self._order += 1
        return self._order

    # ── operations ──────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, specs: list[TaskSpec]) -> tuple[list[str], dict[str, int], list[int]]:
        """Outcomes, tasks that became ready by queue, instants."""
        earliest = self._earliest()
        outcomes, gained, dues = [], Counter[str](), []
        for spec in specs:
            assert spec.id is not None
            known = self.tasks.get(spec.id)
            refused = None if known else self._refusal(spec.queue)
            if known:
                outcomes.append("exists" if (known.spec, known.owner) == (spec, self.owner) else "conflict")
            elif refused:
                outcomes.append(refused)
            else:
                due = self.now + ms(spec.delay_s) if spec.delay_s else ms(spec.start_at)
                later = due > self.now
                state = State.SCHEDULED if later else State.READY
                task = ModelTask(spec.id, spec, self.now, state, due or self.now, self._next(), owner=self.owner)
                self._limit(task)
                self.tasks[spec.id] = task
                outcomes.append(state.value)
                if later:
                    dues.append(due)
                else:
                    gained[spec.queue] += 1
        self._announce(earliest, dues)
        return outcomes, dict(gained), dues

    def requeue(self, task_id: str, new_id: str) -> str:
        if new_id in self.tasks:
            known = self.tasks[new_id]
            return "exists" if known.origin == task_id and self._may_see(known) else "conflict"
        old = self.tasks.get(task_id)
        if old is None:
            return "missing"
        if not self._may_see(old):
            return "foreign"
        if old.state not in TERMINAL:
            return old.state.value
        if old.request_dropped:
            return "dropped"
        refused = self._refusal(old.queue)
        if refused:
            return refused
        spec = msgspec.structs.replace(old.spec, id=new_id, start_at=0.0, delay_s=0.0, expires_at=None)
        self.tasks[new_id] = ModelTask(
            new_id, spec, self.now, State.READY, self.now, self._next(), origin=task_id, owner=old.owner
        )
        self._limit(self.tasks[new_id])
        self._publish("ready", f"{old.queue} 1")
        return "ready"

    def tick(self) -> tuple[dict[str, int], list[int], int]:
        """Tasks that became ready by queue, upcoming instants, attempts lost."""
        if self._ticked and self.now - self._ticked > OUTAGE_MS:
            self._returned = self.now
        self._ticked = self.now
        gained = Counter[str]()
        self._promote(gained)
        lost = self._reap(gained)
        for task in [*self._in(State.SCHEDULED), *self._in(State.READY)]:
            if self._too_late(task):
                self._close(task, State.EXPIRED, "expires_at")
        self.kept = [kept for kept in self.kept if kept.until > self.now]
        for owner in {kept.owner for kept in self.kept} - {""}:
            most = self.policy.kept_bounds.get(owner, self.policy.kept_bounds.get("", 0))
            if most:
                self._drop(most, owner)
        self._drop(self.policy.max_result_bytes)
        upcoming = sorted({task.due for task in self.scheduled() if task.due <= self.now + WINDOW_MS})
        return dict(gained), upcoming, lost

    def _promote(self, gained: Counter[str]) -> None:
        for task in self.scheduled():
            if task.due > self.now:
                continue
            if self._too_late(task):
                self._close(task, State.EXPIRED, "expires_at")
            else:
                task.state, task.order = State.READY, self._next()
                gained[task.queue] += 1

    def _reap(self, gained: Counter[str]) -> int:
        lost = 0
        forgiven = self._returned + self.policy.lease_ms
        for task in self.running():
            if task.lease_end > self.now:
                continue
            if self.now < forgiven and task.graced < MAX_GRACED:
                task.lease_end = forgiven
                task.graced += 1
                continue
            lost += 1
            task.lost += 1
            task.token = None
            task.attempts.append((task.attempt, "lost"))
            if task.cancel:
                self._close(task, State.CANCELLED, "lost")
            elif task.spec.on_lost == "fail" or task.lost >= self.policy.max_lost:
                self._close(task, State.FAILED, "lost")
            else:
                self._give_back(task)
                gained[task.queue] += 1
        return lost

    def claim(
        self, worker: str, queues: list[str], n: int, token: bytes, *, nth: int = 0, again: bool = False
    ) -> list[ModelTask]:
        if again:
            mine = [task for task in self.running() if task.worker == worker and task.token == token]
            for task in mine:
                task.lease_end = self.now + self.policy.lease_ms
            if mine:
                return mine
        claimed: list[ModelTask] = []
        for queue in queues:
            for task in [] if self.queues.get(queue) else self.ready(queue):
                if len(claimed) == n:
                    break
                if self._too_late(task):
                    self._close(task, State.EXPIRED, "expires_at")
                    continue
                task.state = State.RUNNING
                task.attempt += 1
                task.token, task.nth, task.worker, task.claimed, task.graced = token, nth, worker, self.now, 0
                task.lease_end = self.now + self.policy.lease_ms
                claimed.append(task)
        self._settle()
        return claimed

    def extend(self, worker: str, held: list[Fence], claims: list[bytes], *, upto: int = 0) -> list[str]:
        answers, known = [], set()
        for fence in held:
            task = self._holder(fence)
            if task is None or task.state is not State.RUNNING:
                answers.append("fenced")
                continue
            task.lease_end = self.now + self.policy.lease_ms
            known.add(task.id)
            answers.append("cancel" if task.cancel else "ok")
        woken = Counter[str]()
        for task in self.running():
            if task.worker == worker and task.nth <= upto and task.id not in known and task.token not in claims:
                self._hand_back(task, woken)
        self._settle()
        self._wake(woken)
        return answers

    def finish(self, ended: list[tuple[Fence, str, bytes]]) -> list[str]:
        """Fence, verdict and output of each."""
        earliest = self._earliest()
        answers, dues = [], []
        for fence, verdict, stdout in ended:
            task = self._holder(fence)
            if task is None:
                answers.append("fenced")
                continue
            if task.state is not State.RUNNING:
                answers.append("recorded")
                continue
            reason = "" if verdict == "succeeded" else "exit"
            task.attempts.append((task.attempt, reason))
            task.failures += verdict != "succeeded"
            if verdict == "succeeded":
                self._close(task, State.SUCCEEDED, reason, stdout)
            elif task.cancel:
                self._close(task, State.CANCELLED, reason, stdout)
            elif verdict == "final" or task.failures > len(task.spec.retry):
                self._close(task, State.FAILED, reason, stdout)
            else:
                task.state, task.reason = State.SCHEDULED, reason
                task.due = self.now + ms(task.spec.retry[task.failures - 1])
                task.order = self._next()
                dues.append(task.due)
            answers.append(task.state.value)
        self._settle()
        self._announce(earliest, dues)
        return answers

    def release(self, fences: list[Fence]) -> list[str]:
        answers, woken = [], Counter[str]()
        for fence in fences:
            task = self._holder(fence)
            if task is None or task.state is not State.RUNNING:
                answers.append("fenced")
            else:
                self._hand_back(task, woken)
                answers.append(task.state.value)
        self._settle()
        self._wake(woken)
        return answers

    def cancel(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if task is None:
            return "missing"
        if not self._may_see(task):
            return "foreign"
        found = task.state
        if found in (State.SCHEDULED, State.READY):
            self._close(task, State.CANCELLED, "cancelled")
            self._settle()
        elif found is State.RUNNING:
            task.cancel = True
            self._publish("cancel", f"{task.worker} {task.id}")
        return found.value

    def forget(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if task is None:
            return "missing"
        if not self._may_see(task):
            return "foreign"
        if task.state not in TERMINAL:
            return task.state.value
        del self.tasks[task_id]
        self.kept = [kept for kept in self.kept if not kept.member.startswith(f"{task_id}{task.finished}")]
        return "forgotten"

    def wait(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if task is None:
            return "missing"
        if not self._may_see(task):
            return "foreign"
        task.watched = task.state not in TERMINAL
        return task.state.value

    def pause(self, queue: str, *, paused: bool) -> str:
        if refused := self._know(queue):
            return refused
        self.queues[queue] = paused
        waiting = len(self.ready(queue))
        if not paused and waiting:
            self._publish("ready", f"{queue} {waiting}")
        return "ok"

    # ── parts of them ───────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """At the end of a call that may have ended tasks."""
        if self._ticked:  # else there is no limit yet
            self._drop(self.policy.max_result_bytes)

    def _drop(self, most: int, owner: str | None = None) -> None:
        """Of all, or of an owner."""
        self.kept.sort()
        theirs = [kept for kept in self.kept if owner in (None, kept.owner)]
        while sum(kept.size for kept in theirs) > most:
            kept = theirs.pop(0)
            self.kept.remove(kept)
            task = self.tasks.get(kept.id)
            if task is not None and kept.given:
                task.request_dropped = True
            elif task is not None:
                task.stdout, task.dropped = b"", True

    def _limit(self, task: ModelTask) -> None:
        """As the rules of the client have it."""
        if self.quota:
            task.quota = self.quota.owner if self.quota.most else None
            task.counted = self.quota.owner if self.quota.bounded else None
            task.longest = self.quota.keep_ms

    def _refusal(self, queue: str) -> str | None:
        if sum(task.state not in TERMINAL for task in self.tasks.values()) >= self.policy.max_tasks:
            return "too_many_tasks"
        if (
            self.quota
            and self.quota.most
            and sum(task.quota == self.quota.owner for task in self.tasks.values()) >= self.quota.most
        ):
            return "quota_exceeded"
        if refused := self._know(queue):
            return refused
        waiting = sum(task.queue == queue for task in [*self._in(State.SCHEDULED), *self._in(State.READY)])
        return "queue_full" if waiting >= self.policy.max_queue_length else None

    def _know(self, queue: str) -> str | None:
        """Make the name known, or return why it may not be."""
        if queue in self.queues:
            return None
        if len(self.queues) >= self.policy.max_queues:
            return "too_many_queues"
        if self.quota and self.quota.queues is not None:
            if list(self.makers.values()).count(self.quota.owner) >= self.quota.queues:
                return "too_many_names"
            self.makers[queue] = self.quota.owner
        self.queues[queue] = False
        return None

    def _may_see(self, task: ModelTask) -> bool:
        return self.of in (None, task.owner)

    def _too_late(self, task: ModelTask) -> bool:
        return 0 < task.expires <= self.now

    def _holder(self, fence: Fence) -> ModelTask | None:
        task = self.tasks.get(fence.id)
        if task is None or task.token is None or (task.attempt, task.token) != (fence.number, fence.token):
            return None
        return task

    def _hand_back(self, task: ModelTask, woken: Counter[str]) -> None:
        task.attempts.append((task.attempt, "released"))
        if task.cancel:
            self._close(task, State.CANCELLED, "cancelled")
        else:
            self._give_back(task)
            woken[task.queue] += 1

    def _give_back(self, task: ModelTask) -> None:
        """To ready, at its old place: `order` has not changed since it was claimed."""
        task.state, task.token = State.READY, None

    def _close(self, task: ModelTask, state: State, reason: str, stdout: bytes = b"") -> None:
        task.state, task.reason, task.finished, task.cancel, task.stdout = state, reason, self.now, False, stdout
        keep = ms(task.spec.keep_result_s or 0) or self.policy.keep_ms
        task.keep = max(keep, self.policy.failed_keep_ms) if state is State.FAILED else keep
        task.keep = min(task.keep, task.longest or task.keep)
        suffix = f" {task.counted}" if task.counted else ""
        for given, size in ((False, len(stdout)), (True, task.given)):
            if size:
                order = (2 * (state is State.FAILED) + given) * 2**42 + self.now
                member = f"{task.id}{self.now}{':+'[given]}{size}{suffix}"
                self.kept.append(Kept(order, member, self.now + task.keep))
        if task.watched:
            self._publish("ended", task.id)
        task.watched, task.quota = False, None

    def _earliest(self) -> int | None:
        return min((task.due for task in self._in(State.SCHEDULED)), default=None)

    def _announce(self, earliest: int | None, dues: list[int]) -> None:
        if dues and (earliest is None or min(dues) < earliest):
            self._publish("due", str(min(dues)))

    def _wake(self, woken: Counter[str]) -> None:
        for queue, n in woken.items():
            self._publish("ready", f"{queue} {n}")

    def _publish(self, what: str, text: str) -> None:
        self.published.append((what, text))
