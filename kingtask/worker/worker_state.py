"""The attempts that a worker holds, and its next actions. Pure: events in, actions out, no socket, process or clock.

    claimed ──▶ queued ──spawn──▶ running ──process gone──▶ in the outbox ──Redis confirmed──▶ dropped
       │         │  ▲  ▲
       ▼         ▼  │  └─ stored          (released at any time before the spawn: into the outbox, too)
    unconfirmed stale┘ renewed

An attempt takes a slot from its claim until its process is gone, and is renewed until Redis confirms its end. Events
change the state, `decide` returns the actions that follow. Instants are seconds of one monotonic clock.

Rules.
  * One claim at a time. A claim whose reply was lost is sent again under its token before any other.
  * An at-most-once attempt (`on_lost: fail`) is queued once its claim is stored at the level of `ack`: if a failover
    forgot the claim, another worker could claim the task, too.
  * No attempt is spawned under a lease of which more than half may have passed: the lease is renewed first.
  * `fenced` stops a process. For an attempt that has ended it means nothing: the reply to its finish decides.
  * An at-most-once attempt is kept and its end reported even after a fence: a failover may forget that the attempt was
    lost, and Redis releases what a worker does not name.
  * While Redis is unreachable no attempt is stopped and no report is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple

from kingtask.clock import Backoff
from kingtask.store.functions import DAMAGED, Claimed, Fence
from kingtask.worker.exec.outcome import Stop
from kingtask.worker.outbox import MAX_ITEMS, Claim, Finish, Outbox, Release, Report

SPAWN_FAILED_S, LONGEST_SPAWN_FAILED_S = 1.0, 30.0
"""Pause of claiming after the host could not start a process; doubled each time."""
UNCONFIRMED_S = 1.0
"""Pause of claiming after a claim could not be confirmed: else the released tasks would be claimed again at once."""


class Extend(NamedTuple):
    held: list[Fence]
    claims: list[bytes]
    upto: int
    """The number of the latest claim: the call may arrive late, and says nothing about later claims."""


class StopProcess(NamedTuple):
    fence: Fence
    why: Stop


class Readiness(Enum):
    """Whether the brokers should send hints."""

    IDLE = auto()
    """Slots are free, and the last claim got everything that was ready."""
    CLAIMING = auto()
    FULL = auto()


Action = Claim | Extend | Finish | Release | StopProcess


class SlotStage(Enum):
    UNCONFIRMED = auto()
    STALE = auto()
    QUEUED = auto()
    RUNNING = auto()


@dataclass(slots=True, eq=False)
class _Held:
    claimed: Claimed
    fence: Fence
    renewed_s: float
    """When the last call that renewed the lease was sent; the lease began no earlier."""
    stage: SlotStage = SlotStage.QUEUED
    stopping: Stop | None = None


class WorkerState:
    """The attempts of a worker. `up`, `draining` and `degraded` (why the host cannot start programs) are read-only."""

    def __init__(
        self,
        slots: int,
        lease_s: float,
        *,
        new_token: Callable[[], bytes],
        release_record: Callable[[Claimed, str], bytes],
    ) -> None:
        """`new_token` returns 16 random bytes, `release_record` the record of an attempt that was not started."""
        self._slots = slots
        self._lease_s = lease_s
        self._new_token = new_token
        self._release_record = release_record
        self.up = False
        self.draining = False
        self.degraded = ""
        # By fence, not by id: a task can be claimed again while its former attempt is being stopped.
        self._held: dict[Fence, _Held] = {}
        self._queue: deque[_Held] = deque()
        self.outbox = Outbox()
        self._stops: list[StopProcess] = []
        # Whether to claim when slots are free; the claim that is under way (`claiming`), or whose reply was lost.
        self._should_claim = True
        self._claim: Claim | None = None
        self._claiming = False
        self._claims = 0
        # A claim without a reply was abandoned; an extend that does not name it must make Redis release its tasks.
        self._claim_abandoned = False
        self._renew = False
        self._extending = False
        self._pause_until_s = 0.0
        self._pause = Backoff(SPAWN_FAILED_S, LONGEST_SPAWN_FAILED_S)

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self._held)

    @property
    def unconfirmed(self) -> int:
        """Attempts that have ended and whose end Redis has not confirmed."""
        return len(self.outbox)

    @property
    def idle(self) -> bool:
        """True if nothing is held, reported or claimed."""
        return not self._held and not self.outbox and self._claim is None and not self._claim_abandoned

    def readiness(self, now_s: float) -> Readiness:
        """For the brokers, after `decide`."""
        if not self.up or self.draining or self._room(now_s) <= 0:
            return Readiness.FULL
        if self._claiming or self._should_claim:
            return Readiness.CLAIMING
        return Readiness.IDLE if self._claim is None else Readiness.FULL

    def resize(self, slots: int) -> None:
        """Change the number of slots. Running attempts continue; surplus slots go as they become free."""
        self._slots = slots
        self._should_claim = True

    # ── events: hints, time, the connection to Redis ──────────────────────────────────────────────────────────────────

    def wakeup(self) -> None:
        """A hint arrived: a task may be ready."""
        self._should_claim = True

    def poll(self) -> None:
        """Every `period`: claim without a hint, and retry what failed."""
        self._should_claim = True
        self.outbox.retry()

    def renew(self) -> None:
        """Send an extend: every `renew` seconds, and whenever the state in Redis may have changed."""
        self._renew = True

    def cancel_hint(self, task_id: str) -> None:
        """A broker hints at a cancel; the reply to an extend decides."""
        if any(fence.id == task_id for fence in self._held):
            self._renew = True

    def went_up(self) -> None:
        self.up = True
        self.poll()
        self.renew()

    def went_down(self) -> None:
        self.up = False

    # ── events: claims, leases, ends ──────────────────────────────────────────────────────────────────────────────────

    def claimed(self, tasks: Sequence[Claimed], sent_s: float, *, more: bool = False) -> list[Fence]:
        """Handle the reply to a claim that was sent at `sent_s`; `more`: the reply was cut, other tasks may be ready.

        Returns the attempts that wait for `stored` before they start.
        """
        claim, self._claim, self._claiming = self._claim, None, False
        assert claim is not None, "one claim at a time"
        if more or len(tasks) >= claim.n or claim.again:  # a repeated claim gets the same tasks
            self._should_claim = True
        unconfirmed = []
        for task in tasks:
            fence = Fence(task.id, task.number, claim.token)
            held = self._held[fence] = _Held(task, fence, sent_s)
            if self.draining:
                self._release(held, "the worker was stopping")
            elif task.fail_if_lost:
                held.stage = SlotStage.UNCONFIRMED
                unconfirmed.append(fence)
            else:
                self._queue.append(held)
        return unconfirmed

    def stored(self, fences: Sequence[Fence], now_s: float, *, sure: bool) -> None:
        """Start these attempts if their claims are stored at the level of `ack` (`sure`), else release them."""
        for fence in fences:
            held = self._held.get(fence)
            if held is None or held.stage is not SlotStage.UNCONFIRMED:
                continue  # released or fenced meanwhile
            if sure:
                held.stage = SlotStage.QUEUED
                self._queue.append(held)
            else:
                self._release(held, "its claim was not confirmed in time, and it may be started only once")
                self._pause_until_s = max(self._pause_until_s, now_s + UNCONFIRMED_S)

    def claim_failed(self, *, stored: Literal["no", "unknown"]) -> None:
        """A claim that may be stored is sent again at the next poll, or when Redis is up again."""
        self._claiming = False
        if stored == "no":
            self._claim = None
        elif self.draining:
            self._abandon_claim()

    def next_to_spawn(self, now_s: float) -> tuple[Fence, Claimed] | None:
        """Take the next attempt to start; it counts as running from now on."""
        while self._queue:
            held = self._queue.popleft()
            if self._held.get(held.fence) is not held:  # released or fenced meanwhile
                continue
            if now_s - held.renewed_s > self._lease_s / 2:
                held.stage = SlotStage.STALE
                self._renew = True
                continue
            held.stage = SlotStage.RUNNING
            return held.fence, held.claimed
        return None

    def spawn_failed(self, fence: Fence, now_s: float, why: str) -> None:
        """The host could not start a process: release the task, and leave new tasks to other workers for a while."""
        if now_s >= self._pause_until_s:  # else it is one of several that were claimed together
            self._pause_until_s = now_s + self._pause.next()
        self._set_degraded(why)
        self._release(self._held[fence], why)

    def started(self) -> None:
        self._pause.reset()
        self._set_degraded("")

    def _set_degraded(self, why: str) -> None:
        if self.degraded != why:
            self.degraded = why
            self._renew = True  # an extend carries the heartbeat

    def ended(self, fence: Fence, report: Report) -> None:
        """The process is gone, or was never started."""
        held = self._held.pop(fence)
        if held.stopping != "fenced" or held.claimed.fail_if_lost:
            self.outbox.add(fence, report, queue=held.claimed.queue, once=held.claimed.fail_if_lost)

    def extended(self, sent: Extend, answers: Sequence[str], sent_s: float) -> list[Fence]:
        """Handle the answers; return the attempts whose lease was given away."""
        self._extending = False
        if not sent.claims:
            self._claim_abandoned = False
        lost = []
        for fence, answer in zip(sent.held, answers, strict=True):
            held = self._held.get(fence)
            if held is None or answer == DAMAGED:  # damaged: not renewed, and not given away
                continue
            running = held.stage is SlotStage.RUNNING
            if answer == "fenced":
                if held.stopping != "fenced":
                    lost.append(fence)
                    if running:
                        self._stop(held, "fenced")
                    else:
                        del self._held[fence]
                continue
            held.renewed_s = sent_s
            if answer == "cancel" and running:
                self._stop(held, "cancelled")
            elif answer == "cancel":
                self._release(held, "cancelled before it was started")
            elif held.stage is SlotStage.STALE:
                held.stage = SlotStage.QUEUED
                self._queue.append(held)
        return lost

    def extend_failed(self) -> None:
        self._extending = False

    def drain(self) -> None:
        """Claim nothing more, and release what was not started."""
        self.draining = True
        self._renew = True
        if self._claim is not None and not self._claiming:
            self._abandon_claim()
        for held in list(self._held.values()):
            if held.stage is not SlotStage.RUNNING:
                self._release(held, "the worker was stopping")

    def _abandon_claim(self) -> None:
        """Have Redis release the tasks of a claim without a reply: send an extend that does not name the claim."""
        self._claim, self._claim_abandoned, self._renew = None, True, True

    def stop_all(self) -> None:
        """Stop the running attempts and release them; at-most-once attempts end as interrupted."""
        for held in self._held.values():
            if held.stage is SlotStage.RUNNING:
                self._stop(held, "interrupted" if held.claimed.fail_if_lost else "released")

    # ── decisions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, now_s: float) -> list[Action]:
        """Return the next actions, in order; their calls are sent together."""
        actions: list[Action] = [*self._stops]
        self._stops.clear()
        if not self.up:
            return actions
        actions += self.outbox.take()
        if self._renew and not self._extending:
            self._renew, self._extending = False, True
            fences = [
                fence for fence, held in self._held.items() if held.stopping != "fenced" or held.claimed.fail_if_lost
            ]
            fences += self.outbox.fences
            actions.append(Extend(fences, [] if self._claim is None else [self._claim.token], self._claims))
        if self._should_claim and not self._claiming and not self.draining:
            if self._claim is not None:
                self._claim = self._claim._replace(again=True)
            elif (n := self._room(now_s)) > 0:
                self._claims += 1
                self._claim = Claim(self._new_token(), self._claims, n, again=False)
            if self._claim is not None:
                self._claiming, self._should_claim = True, False
                _join(actions, self._claim)
        return actions

    def _room(self, now_s: float) -> int:
        if now_s < self._pause_until_s:
            return 0
        # Reports that Redis cannot take yet are held in memory: no more of them than there are slots.
        return min(self._slots - self.busy, 2 * self._slots - self.busy - len(self.outbox))

    def _release(self, held: _Held, why: str) -> None:
        self.ended(held.fence, self._release_record(held.claimed, why))

    def _stop(self, held: _Held, why: Stop) -> None:
        """The first reason counts; only `fenced` replaces it."""
        if held.stopping is None or why == "fenced":
            held.stopping = why
            self._stops.append(StopProcess(held.fence, why))


def _join(actions: list[Action], claim: Claim) -> None:
    """Add the claim to the last finish if one call may do so much. A repeated claim is a call of its own."""
    if not claim.again:
        for i in reversed(range(len(actions))):
            action = actions[i]
            if isinstance(action, Finish) and len(action.ended) + claim.n <= MAX_ITEMS:
                actions[i] = action._replace(claim=claim)
                return
    actions.append(claim)
