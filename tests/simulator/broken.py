"""Products that are wrong in one place, to see that the simulator notices: the store's model, or a decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from kingtask.broker.submit import SubmitBatcher
from kingtask.client.core import Core
from kingtask.states import State
from kingtask.store.functions import Fence
from kingtask.worker.outbox import Outbox
from kingtask.worker.worker_state import SlotStage, WorkerState
from tests.simulator.links import BrokerStore
from tests.simulator.world import here
from tests.store.model import Model, ModelTask, ms


class TakeByPop(Model):
    """A claim takes the task and records no lease: who dies with it loses it."""

    def claim(self, *args: Any, **more: Any) -> list[ModelTask]:
        claimed = super().claim(*args, **more)
        for task in claimed:
            task.lease_end, task.worker = 1 << 60, ""
        return claimed


class NoFenceCheck(Model):
    """Whoever names a task may end it."""

    def _holder(self, fence: Fence) -> ModelTask | None:
        return self.tasks.get(fence.id)


class TickTooEarly(Model):
    """By 20 ms."""

    def _promote(self, gained: Counter[str]) -> None:
        self.now += 20
        super()._promote(gained)
        self.now -= 20


class LostIsTriedAgain(Model):
    """Whatever `on_lost` says."""

    def _reap(self, gained: Counter[str]) -> int:
        late = [task for task in self.running() if task.lease_end <= self.now and task.spec.on_lost == "fail"]
        for task in late:
            task.lost += 1
            self._give_back(task)
        return super()._reap(gained)


class ReapsInAnOutage(Model):
    """It renews for half as long as it says."""

    def extend(self, worker: str, held: list[Fence], *args: Any, **more: Any) -> list[str]:
        answers = super().extend(worker, held, *args, **more)
        for task in self.running():
            if task.fence in held:
                task.lease_end -= self.policy.lease_ms // 2
        return answers


class LateExtendTakesAll(Model):
    """What was claimed after an extend was sent is taken for unknown to its worker."""

    def extend(self, worker: str, held: list[Fence], claims: list[bytes], *, upto: int = 0) -> list[str]:
        return super().extend(worker, held, claims, upto=1 << 60)


class AgainRenewsNothing(Model):
    """A claim that is sent again gets what it got, and what is left of its lease."""

    def claim(self, *args: Any, **more: Any) -> list[ModelTask]:
        ends = {task.id: task.lease_end for task in self.running()}
        claimed = super().claim(*args, **more)
        for task in claimed:
            task.lease_end = ends.get(task.id, task.lease_end)
        return claimed


class FirstIntervalAlways(Model):
    """The first pause of a retry list after each failure."""

    def finish(self, ended: list[tuple[Fence, str, bytes]]) -> list[str]:
        answers = super().finish(ended)
        for fence, _, _ in ended:
            task = self.tasks[fence.id]
            if task.state is State.SCHEDULED and task.failures:
                task.due = min(task.due, self.now + ms(task.spec.retry[0]))
        return answers


class SecondOutcome(Model):
    """A cancel that comes too late changes what was recorded."""

    def cancel(self, task_id: str) -> str:
        found = super().cancel(task_id)
        if found == State.SUCCEEDED:
            self.tasks[task_id].state = State.CANCELLED
        return found


class ForgetsTheSchedule(Model):
    """A task that is scheduled while others are is not looked at again."""

    def _promote(self, gained: Counter[str]) -> None:
        super()._promote(gained)
        for task in self.scheduled()[1:]:
            task.due = 1 << 60


def acknowledge_before_it_is_stored() -> Any:
    add = SubmitBatcher.add

    def add_and_reply(self: SubmitBatcher, task: Any, settle: Any, i: int = 0) -> None:
        add(self, task, mock.Mock())
        settle(i, task, "ready")

    return mock.patch.object(SubmitBatcher, "add", add_and_reply)


def forget_ends_that_failed_to_arrive() -> Any:
    return mock.patch.object(Outbox, "not_confirmed", lambda self, fences, *, full: self.confirmed(fences))


def spawn_whatever_the_lease() -> Any:
    next_to_spawn = WorkerState.next_to_spawn
    return mock.patch.object(WorkerState, "next_to_spawn", lambda self, now_s: next_to_spawn(self, float("-inf")))


def hand_back_what_was_started() -> Any:
    def stop_all(self: WorkerState) -> None:
        for held in self._held.values():
            if held.stage is SlotStage.RUNNING and held.stopping is None:
                self._stop(held, "released")

    return mock.patch.object(WorkerState, "stop_all", stop_all)


def start_what_is_not_confirmed() -> Any:
    claimed = WorkerState.claimed

    def sure(self: WorkerState, tasks: Any, sent_s: float, *, more: bool = False) -> list[Fence]:
        self.stored(claimed(self, tasks, sent_s, more=more), sent_s, sure=True)
        return []

    return mock.patch.object(WorkerState, "claimed", sure)


def forget_ends_that_are_not_confirmed() -> Any:
    def answered(self: Outbox, fences: Any) -> list[Fence]:
        self.confirmed(fences)
        return []

    return mock.patch.object(Outbox, "answered", answered)


def acknowledge_what_is_not_confirmed() -> Any:
    return mock.patch.object(
        BrokerStore, "_confirm", lambda self, link, callback: here().call_later(0.001, callback, True)
    )


def call_unknown_not_stored() -> Any:
    refused = Core._refused

    def forgetful(self: Core, call: Any, error: Any, now: float) -> None:
        call.maybe_stored = False
        refused(self, call, error, now)

    return mock.patch.object(Core, "_refused", forgetful)


MODELS: list[type[Model]] = [
    TakeByPop,
    NoFenceCheck,
    TickTooEarly,
    LostIsTriedAgain,
    ReapsInAnOutage,
    LateExtendTakesAll,
    AgainRenewsNothing,
    FirstIntervalAlways,
    SecondOutcome,
    ForgetsTheSchedule,
]
DECISIONS: list[Callable[[], Any]] = [
    acknowledge_before_it_is_stored,
    forget_ends_that_failed_to_arrive,
    spawn_whatever_the_lease,
    hand_back_what_was_started,
    start_what_is_not_confirmed,
    forget_ends_that_are_not_confirmed,
    acknowledge_what_is_not_confirmed,
    call_unknown_not_stored,
]
