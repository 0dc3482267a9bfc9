"""What the worker holds and what it should do next. Pure: events in, actions out, no socket, process or clock.

    claimed ──▶ queued ──spawn──▶ running ──process gone──▶ in the outbox ──Redis confirmed──▶ forgotten
       │         │  ▲  ▲
       ▼         ▼  │  └─ stored          (handed back at any time before: into the outbox, too)
     unsure    stale┘ renewed

A slot is taken from the claim until the process is gone; what is in the outbox is renewed until Redis confirms it.
Events change the state, `decide` says what to send because of it. Instants are seconds of one monotonic clock.

Rules.
  * One claim at a time. A claim whose reply was lost is sent again under its token before any other.
  * What may be started only once (`on_lost: fail`) is queued when its claim is stored at the level of `ack`: a claim
    that a failover forgets would be another worker's, too.
  * Nothing is spawned under a lease of which more than half may have passed: it is renewed first.
  * `fenced` stops a process. For an attempt that has ended it means nothing: the answer to its finish decides.
  * What may be started only once is held on to although it is fenced, and its end reported: a failover may forget that
    it was lost, and Redis hands back what a worker does not name.
  * Without Redis nothing is stopped and nothing is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, NamedTuple

from kingtask.store.functions import DAMAGED, Claimed, Fence
from kingtask.worker.exec.outcome import Stop
from kingtask.worker.outbox import MAX_ITEMS, Finish, Outbox, Release, Report

SHORTAGE_S = 1.0
"""Pause of claiming after the host could not start a process; doubled each time up to LONGEST_SHORTAGE_S."""
LONGEST_SHORTAGE_S = 30.0
UNSURE_S = 1.0
"""Pause of claiming after a claim could not be confirmed: what is handed back would be claimed again at once."""


class Claim(NamedTuple):
    token: bytes
    nth: int
    n: int
    again: bool


class FinishAndClaim(NamedTuple):
    """One round trip finishes what ended and claims what is next."""

    finish: Finish
    claim: Claim


class Extend(NamedTuple):
    held: list[Fence]
    claims: list[bytes]
    upto: int
    """How many claims there were: it may be executed late, and says nothing of what was claimed after them."""


class StopProcess(NamedTuple):
    fence: Fence
    why: Stop


class Readiness(Enum):
    """Whether hints are of use."""

    IDLE = auto()
    """There is room, and nothing was there to claim."""
    ASKING = auto()
    """A claim is under way."""
    FULL = auto()


Action = Claim | Extend | Finish | FinishAndClaim | Release | StopProcess


class SlotStage(Enum):
    UNSURE = auto()
    STALE = auto()
    QUEUED = auto()
    RUNNING = auto()


@dataclass(slots=True, eq=False)
class _Held:
    claimed: Claimed
    fence: Fence
    renewed_s: float
    """When the last call that renewed the lease was sent: the lease lasts at least from then."""
    stage: SlotStage = SlotStage.QUEUED
    stopping: Stop | None = None


class WorkerState:
    """All that a worker holds. `up`, `draining` and `unfit` (why nothing can be started here) are for reading."""

    def __init__(
        self,
        slots: int,
        lease_s: float,
        *,
        new_token: Callable[[], bytes],
        release_record: Callable[[Claimed, str], bytes],
    ) -> None:
        """`new_token` makes 16 random bytes, `release_record` what is recorded of an attempt that was not started."""
        self._slots = slots
        self._lease_s = lease_s
        self._new_token = new_token
        self._release_record = release_record
        self.up = False
        self.draining = False
        self.unfit = ""
        # By fence, not by id: a task may be claimed again while its former attempt is being stopped.
        self._held: dict[Fence, _Held] = {}
        self._queue: deque[_Held] = deque()
        self._outbox = Outbox()
        self._stops: list[StopProcess] = []
        # Whether to claim when there is room, and the claim that is under way, or whose reply was lost.
        self._hungry = True
        self._token: bytes | None = None
        self._claims = 0
        self._claiming = False
        self._asked = 0
        self._again = False
        # A lost claim was given up, and no extend has had Redis hand back yet what it got.
        self._unasked = False
        self._renew = False
        self._extending = False
        self._pause_until_s = 0.0
        self._pause_s = SHORTAGE_S

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self._held)

    @property
    def unconfirmed(self) -> int:
        """Attempts that have ended and of whose end Redis has not been seen to know."""
        return len(self._outbox)

    @property
    def idle(self) -> bool:
        """True if nothing is held and nothing is on its way."""
        return not self._held and not self._outbox and self._token is None and not self._unasked

    def appetite(self, now_s: float) -> Readiness:
        """What to tell those who give hints, after `decide`."""
        if not self.up or self.draining or self._room(now_s) <= 0:
            return Readiness.FULL
        if self._claiming or self._hungry:
            return Readiness.ASKING
        return Readiness.IDLE if self._token is None else Readiness.FULL

    def resize(self, slots: int) -> None:
        """Have so many slots. What runs goes on: fewer are there as its slots become free."""
        self._slots = slots
        self._hungry = True

    # ── hints and time ──────────────────────────────────────────────────────────────────────────────────────────────

    def wakeup(self) -> None:
        """Something may be ready."""
        self._hungry = True

    def look(self) -> None:
        """Every `period`: claim whatever the hints say, and try again what failed."""
        self._hungry = True
        self._outbox.look()

    def renew(self) -> None:
        """Every `renew` seconds, and whenever Redis is to be asked how things stand."""
        self._renew = True

    def cancel_hint(self, task_id: str) -> None:
        """Somebody says that it is to be cancelled; Redis knows."""
        if any(fence.id == task_id for fence in self._held):
            self._renew = True

    # ── Redis comes and goes ────────────────────────────────────────────────────────────────────────────────────────

    def went_up(self) -> None:
        self.up = True
        self.look()
        self.renew()

    def went_down(self) -> None:
        self.up = False

    # ── claims ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def claimed(self, tasks: Sequence[Claimed], sent_s: float, *, more: bool = False) -> list[Fence]:
        """The reply to the claim, which was sent at `sent_s`; `more`: it was cut short and there may be others.

        Returns the attempts of which `stored` has to say, before they start, whether their claims are.
        """
        token, self._token, self._claiming = self._token, None, False
        assert token is not None, "one claim at a time"
        if more or len(tasks) >= self._asked or self._again:  # sent again, it gets what it got the first time
            self._hungry = True
        unsure = []
        for task in tasks:
            fence = Fence(task.id, task.number, token)
            held = self._held[fence] = _Held(task, fence, sent_s)
            if self.draining:
                self._hand_back(held, "the worker was stopping")
            elif task.fail_if_lost:
                held.stage = SlotStage.UNSURE
                unsure.append(fence)
            else:
                self._queue.append(held)
        return unsure

    def stored(self, fences: Sequence[Fence], now_s: float, *, sure: bool) -> None:
        """Whether these claims are stored at the level of `ack`; those of which that is not sure are handed back."""
        for fence in fences:
            held = self._held.get(fence)
            if held is None or held.stage is not SlotStage.UNSURE:
                continue  # handed back or fenced meanwhile
            if sure:
                held.stage = SlotStage.QUEUED
                self._queue.append(held)
            else:
                self._hand_back(held, "its claim was not confirmed in time, and it may be started only once")
                self._pause_until_s = max(self._pause_until_s, now_s + UNSURE_S)

    def claim_failed(self, *, stored: Literal["no", "unknown"]) -> None:
        """What may have been claimed is asked for again at the next look, or as soon as Redis is back."""
        self._claiming = False
        if stored == "no":
            self._token = None
        elif self.draining:
            self._give_up_claim()

    # ── spawning ────────────────────────────────────────────────────────────────────────────────────────────────────

    def next_to_spawn(self, now_s: float) -> tuple[Fence, Claimed] | None:
        """The next claimed task to be started now; it counts as running from here on."""
        while self._queue:
            held = self._queue.popleft()
            if now_s - held.renewed_s > self._lease_s / 2:
                held.stage = SlotStage.STALE
                self._renew = True
                continue
            held.stage = SlotStage.RUNNING
            return held.fence, held.claimed
        return None

    def shortage(self, fence: Fence, now_s: float, why: str) -> None:
        """The host could not start it: hand it back, and leave new work to other workers for a while."""
        if now_s >= self._pause_until_s:  # else it is one of several that were claimed together
            self._pause_until_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_SHORTAGE_S)
        self._unfit(why)
        self._hand_back(self._held[fence], why)

    def started(self) -> None:
        """A process could be started."""
        self._pause_s = SHORTAGE_S
        self._unfit("")

    def _unfit(self, why: str) -> None:
        if self.unfit != why:
            self.unfit = why
            self._renew = True  # a heartbeat goes with it

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, fence: Fence, report: Report) -> None:
        """The process is gone, or was never started."""
        held = self._held.pop(fence)
        if held.stopping != "fenced" or held.claimed.fail_if_lost:
            self._outbox.add(fence, report, queue=held.claimed.queue, once=held.claimed.fail_if_lost)

    def queue_of(self, fence: Fence) -> str:
        """Of an attempt that has ended, until its end is settled."""
        return self._outbox.queue_of(fence)

    def answered(self, fences: Sequence[Fence]) -> list[Fence]:
        """Redis answered to finish or release, whatever it answered: these are settled, but for those returned."""
        return self._outbox.answered(fences)

    def confirmed(self, fences: Sequence[Fence]) -> None:
        """What `answered` returned is stored at the level of `ack`."""
        self._outbox.confirmed(fences)

    def not_confirmed(self, fences: Sequence[Fence], *, full: bool = False) -> None:
        """A finish or release failed, or its answer could not be confirmed. `full`: Redis has no memory left."""
        self._outbox.not_confirmed(fences, full=full)

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def extended(self, sent: Extend, answers: Sequence[str], sent_s: float) -> list[Fence]:
        """Take in the answers; return the attempts that belong to somebody else by now."""
        self._extending = False
        if not sent.claims:
            self._unasked = False
        lost = []
        for fence, answer in zip(sent.held, answers, strict=True):
            held = self._held.get(fence)
            if held is None:
                continue
            if answer == "fenced":
                if held.stopping != "fenced":
                    lost.append(fence)
                    self._drop(held)
                continue
            if answer == DAMAGED:  # not renewed, and not given away
                continue
            held.renewed_s = sent_s
            if answer == "cancel":
                self._cancel(held)
            elif held.stage is SlotStage.STALE:
                held.stage = SlotStage.QUEUED
                self._queue.append(held)
        return lost

    def extend_failed(self) -> None:
        self._extending = False

    # ── stopping the worker ─────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Claim nothing more and hand back what was not started."""
        self.draining = True
        self._renew = True
        if self._token is not None and not self._claiming:
            self._give_up_claim()
        for held in list(self._held.values()):
            if held.stage is not SlotStage.RUNNING:
                self._hand_back(held, "the worker was stopping")

    def _give_up_claim(self) -> None:
        """A claim whose reply was lost: an extend that does not name it has Redis hand back what it got."""
        self._token, self._unasked, self._renew = None, True, True

    def stop_all(self) -> None:
        """Stop what runs, to hand it back; what may not be started again ends as interrupted."""
        for held in self._held.values():
            if held.stage is SlotStage.RUNNING and held.stopping is None:
                self._stop(held, "interrupted" if held.claimed.fail_if_lost else "released")

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, now_s: float) -> list[Action]:
        """What to do now, in this order; all calls of one decision travel together."""
        actions: list[Action] = [*self._stops]
        self._stops.clear()
        if not self.up:
            return actions
        actions += self._outbox.take()
        if self._renew and not self._extending:
            self._renew, self._extending = False, True
            fences = [
                fence for fence, held in self._held.items() if held.stopping != "fenced" or held.claimed.fail_if_lost
            ]
            fences += self._outbox.fences
            actions.append(Extend(fences, [] if self._token is None else [self._token], self._claims))
        if not self._claiming and not self.draining:
            claim = self._claim(now_s)
            if claim is not None:
                _join(actions, claim)
        return actions

    def _claim(self, now_s: float) -> Claim | None:
        if self._token is not None:
            if not self._hungry:
                return None
            self._claiming, self._hungry, self._again = True, False, True
            return Claim(self._token, self._claims, self._asked, True)
        n = self._room(now_s)
        if not self._hungry or n <= 0:
            return None
        self._token, self._asked, self._claiming, self._hungry = self._new_token(), n, True, False
        self._again = False
        self._claims += 1
        return Claim(self._token, self._claims, n, False)

    def _room(self, now_s: float) -> int:
        if now_s < self._pause_until_s:
            return 0
        # Ends that Redis does not take yet are held in memory: no more of them than there are slots.
        return min(self._slots - self.busy, 2 * self._slots - self.busy - len(self._outbox))

    # ── one attempt ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _hand_back(self, held: _Held, why: str) -> None:
        if held in self._queue:
            self._queue.remove(held)
        self.ended(held.fence, self._release_record(held.claimed, why))

    def _stop(self, held: _Held, why: Stop) -> None:
        held.stopping = why
        self._stops.append(StopProcess(held.fence, why))

    def _drop(self, held: _Held) -> None:
        """It is somebody else's now: stop it at once, report nothing."""
        if held.stage is SlotStage.RUNNING:
            self._stop(held, "fenced")
            return
        if held in self._queue:
            self._queue.remove(held)
        del self._held[held.fence]

    def _cancel(self, held: _Held) -> None:
        if held.stage is not SlotStage.RUNNING:
            self._hand_back(held, "cancelled before it was started")
        elif held.stopping is None:
            self._stop(held, "cancelled")


def _join(actions: list[Action], claim: Claim) -> None:
    """Add the claim, to the last finish if one call may do so much. One that is sent again is a call of its own."""
    if not claim.again:
        for i in reversed(range(len(actions))):
            action = actions[i]
            if isinstance(action, Finish) and len(action.ended) + claim.n <= MAX_ITEMS:
                actions[i] = FinishAndClaim(action, claim)
                return
    actions.append(claim)
