"""What the worker holds and what it should do next. Pure: events in, actions out, no socket, process or clock.

    claimed ──▶ queued ──spawn──▶ running ──process gone──▶ ended ──Redis confirmed──▶ forgotten
       └─ lease too old ─▶ stale ─ renewed ─┘                  └─ handed back: released in place of finished

A slot is taken from the claim until the process is gone; what has ended is held, and renewed, until Redis confirms it.
Events change the state, `decide` says what to send because of it. Instants are seconds of one monotonic clock.

Rules.
  * One claim at a time. A claim whose reply was lost is sent again under its token before any other.
  * Nothing is spawned under a lease of which more than half may have passed: it is renewed first.
  * `fenced` stops a process. For an attempt that has ended it means nothing: the answer to its finish decides.
  * Without Redis nothing is stopped and nothing is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal, NamedTuple

from kingtask.store.calls import CUT_BYTES, Claimed, Ended, Fence
from kingtask.worker.output import shorten
from kingtask.worker.verdict import Stop

MAX_CLAIM = 200
MAX_ITEMS = 200
MAX_BYTES = 1_048_576
"""Of one call (invariant: no call works on more than about 200 items or 1 MiB); one attempt alone may exceed it."""
SHORTAGE_S = 1.0
"""Pause of claiming after the host could not start a process; doubled each time up to LONGEST_SHORTAGE_S."""
LONGEST_SHORTAGE_S = 30.0


class Claim(NamedTuple):
    token: bytes
    n: int
    again: bool


class Extend(NamedTuple):
    held: list[Fence]
    claims: list[bytes]


class Finish(NamedTuple):
    ended: list[Ended]
    cut: bool


class Release(NamedTuple):
    attempts: list[tuple[Fence, bytes]]


class StopProcess(NamedTuple):
    fence: Fence
    why: Stop


Action = Claim | Extend | Finish | Release | StopProcess


class Stage(Enum):
    STALE = auto()
    QUEUED = auto()
    RUNNING = auto()
    ENDED = auto()


class Delivery(Enum):
    """Of an ended attempt's report."""

    DUE = auto()
    SENT = auto()
    FAILED = auto()
    """To be sent again at the next look, or when Redis is back."""


@dataclass(slots=True, eq=False)
class _Held:
    claimed: Claimed
    fence: Fence
    renewed_s: float
    """When the last call that renewed the lease was sent: the lease lasts at least from then."""
    stage: Stage = Stage.QUEUED
    stopping: Stop | None = None
    report: Ended | bytes | None = None
    """What to finish with, or the record to release with."""
    delivery: Delivery = Delivery.DUE
    cut: bool = False


@dataclass(slots=True)
class Slots:
    """`slots` attempts at once; `lease_s` as sent with the claims; `new_token` makes 16 random bytes."""

    slots: int
    lease_s: float
    new_token: Callable[[], bytes]
    release_record: Callable[[Claimed, str], bytes]
    """Makes the record of an attempt that is handed back unstarted; the text says why."""
    up: bool = False
    draining: bool = False
    _held: dict[Fence, _Held] = field(default_factory=dict)
    """By fence, not by id: a task may be claimed again while its former attempt is being stopped."""
    _queue: deque[_Held] = field(default_factory=deque)
    _due: list[_Held] = field(default_factory=list)
    _taken: int = 0
    _hungry: bool = True
    _token: bytes | None = None
    """Of a claim that is under way or whose reply was lost."""
    _claiming: bool = False
    _asked: int = 0
    _unasked: bool = False
    """True after a lost claim was given up, until an extend has had Redis hand back what it got."""
    _renew: bool = False
    _extending: bool = False
    _stops: list[StopProcess] = field(default_factory=list)
    _pause_until_s: float = 0.0
    _pause_s: float = SHORTAGE_S

    @property
    def busy(self) -> int:
        """Slots taken."""
        return self._taken

    @property
    def unconfirmed(self) -> int:
        """Attempts that have ended and of whose end Redis has not been seen to know."""
        return sum(held.stage is Stage.ENDED for held in self._held.values())

    @property
    def idle(self) -> bool:
        """True if nothing is held and nothing is on its way."""
        return not self._held and self._token is None and not self._unasked

    # ── hints and time ──────────────────────────────────────────────────────────────────────────────────────────────

    def wakeup(self) -> None:
        """Something may be ready."""
        self._hungry = True

    def look(self) -> None:
        """Every `period`: claim whatever the hints say, and try again what failed."""
        self._hungry = True
        for held in self._held.values():
            if held.delivery is Delivery.FAILED:
                self._deliver(held)

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

    def claimed(self, tasks: Sequence[Claimed], sent_s: float, *, more: bool = False) -> None:
        """The reply to the claim, which was sent at `sent_s`; `more`: it was cut short and there may be others."""
        token, self._token, self._claiming = self._token, None, False
        assert token is not None, "one claim at a time"
        if more or len(tasks) >= self._asked:
            self._hungry = True
        for task in tasks:
            fence = Fence(task.id, task.number, token)
            held = self._held[fence] = _Held(task, fence, sent_s)
            self._taken += 1
            if self.draining:
                self._hand_back(held, "the worker was stopping")
            else:
                self._queue.append(held)

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
            if now_s - held.renewed_s > self.lease_s / 2:
                held.stage = Stage.STALE
                self._renew = True
                continue
            held.stage = Stage.RUNNING
            return held.fence, held.claimed
        return None

    def shortage(self, fence: Fence, now_s: float, why: str) -> None:
        """The host could not start it: hand it back, and leave new work to other workers for a while."""
        self._pause_until_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_SHORTAGE_S)
        held = self._held.get(fence)
        if held is not None:
            self._hand_back(held, why)

    def started(self) -> None:
        """A process could be started."""
        self._pause_s = SHORTAGE_S

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, fence: Fence, report: Ended | bytes) -> None:
        """The process is gone, or could not be started: an outcome, or the record to release it with."""
        held = self._held.get(fence)
        if held is None or held.stage is Stage.ENDED:
            return
        self._taken -= 1
        held.stage = Stage.ENDED
        if held.stopping == "fenced":
            del self._held[fence]
            return
        held.report = report
        self._deliver(held)

    def confirmed(self, fences: Sequence[Fence]) -> None:
        """Redis answered to finish or release, whatever it answered: these are settled."""
        for fence in fences:
            held = self._held.get(fence)
            if held is not None and held.stage is Stage.ENDED:
                del self._held[fence]

    def not_confirmed(self, fences: Sequence[Fence], *, full: bool) -> None:
        """A finish or release failed. `full`: Redis has no memory left; it takes the outcome with short outputs."""
        for fence in fences:
            held = self._held.get(fence)
            if held is None or held.delivery is not Delivery.SENT:
                continue
            held.delivery = Delivery.FAILED
            if full and isinstance(held.report, Ended) and not held.cut:
                held.cut = True
                held.report = _cut(held.report)
                self._deliver(held)

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def extended(self, sent: Extend, answers: Sequence[str], sent_s: float) -> list[Fence]:
        """Take in the answers; return the attempts that belong to somebody else by now."""
        self._extending = False
        if not sent.claims:
            self._unasked = False
        lost = []
        for fence, answer in zip(sent.held, answers, strict=True):
            held = self._held.get(fence)
            if held is None or held.stage is Stage.ENDED:
                continue
            if answer == "fenced":
                lost.append(fence)
                self._drop(held)
                continue
            held.renewed_s = sent_s
            if answer == "cancel":
                self._cancel(held)
            elif held.stage is Stage.STALE:
                held.stage = Stage.QUEUED
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
            if held.stage in (Stage.QUEUED, Stage.STALE):
                self._hand_back(held, "the worker was stopping")

    def _give_up_claim(self) -> None:
        """A claim whose reply was lost: an extend that does not name it has Redis hand back what it got."""
        self._token, self._unasked, self._renew = None, True, True

    def stop_all(self) -> None:
        """Stop what runs, to hand it back; what may not be started again ends as interrupted."""
        for held in self._held.values():
            if held.stage is Stage.RUNNING and held.stopping is None:
                self._stop(held, "interrupted" if held.claimed.fail_if_lost else "released")

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def decide(self, now_s: float) -> list[Action]:
        """What to do now, in this order; all calls of one decision travel together."""
        actions: list[Action] = []
        if self._stops:
            actions += self._stops
            self._stops.clear()
        if not self.up:
            return actions
        if self._due:
            actions += self._deliveries()
        if self._renew and not self._extending:
            self._renew, self._extending = False, True
            fences = [held.fence for held in self._held.values() if held.stopping != "fenced"]
            actions.append(Extend(fences, [] if self._token is None else [self._token]))
        if not self._claiming and not self.draining:
            claim = self._claim(now_s)
            if claim is not None:
                actions.append(claim)
        return actions

    def _claim(self, now_s: float) -> Claim | None:
        if self._token is not None:
            if not self._hungry:
                return None
            self._claiming, self._hungry = True, False
            return Claim(self._token, self._asked, True)
        # Ends that Redis does not take yet are held in memory: no more of them than there are slots.
        n = min(self.slots - self._taken, 2 * self.slots - len(self._held), MAX_CLAIM)
        if not self._hungry or n <= 0 or now_s < self._pause_until_s:
            return None
        self._token, self._asked, self._claiming, self._hungry = self.new_token(), n, True, False
        return Claim(self._token, n, False)

    def _deliveries(self) -> list[Action]:
        due, self._due = self._due, []
        actions: list[Action] = []
        for cut in (False, True):
            batch: list[Ended] = []
            size = 0
            for held in due:
                report = held.report
                if not isinstance(report, Ended) or held.cut is not cut:
                    continue
                more = len(report.stdout) + len(report.stderr) + len(report.record)
                if batch and (len(batch) == MAX_ITEMS or size + more > MAX_BYTES):
                    actions.append(Finish(batch, cut))
                    batch, size = [], 0
                batch.append(report)
                size += more
            if batch:
                actions.append(Finish(batch, cut))
        given_back = [(held.fence, held.report) for held in due if isinstance(held.report, bytes)]
        actions += [Release(given_back[i : i + MAX_ITEMS]) for i in range(0, len(given_back), MAX_ITEMS)]
        for held in due:
            held.delivery = Delivery.SENT
        return actions

    # ── one attempt ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, held: _Held) -> None:
        held.delivery = Delivery.DUE
        self._due.append(held)

    def _hand_back(self, held: _Held, why: str) -> None:
        if held in self._queue:
            self._queue.remove(held)
        self.ended(held.fence, self.release_record(held.claimed, why))

    def _stop(self, held: _Held, why: Stop) -> None:
        held.stopping = why
        self._stops.append(StopProcess(held.fence, why))

    def _drop(self, held: _Held) -> None:
        """It is somebody else's now: stop it at once, report nothing."""
        if held.stage is Stage.RUNNING:
            self._stop(held, "fenced")
            return
        if held in self._queue:
            self._queue.remove(held)
        del self._held[held.fence]
        self._taken -= 1

    def _cancel(self, held: _Held) -> None:
        if held.stage is not Stage.RUNNING:
            self._hand_back(held, "cancelled before it was started")
        elif held.stopping is None:
            self._stop(held, "cancelled")


def _cut(ended: Ended) -> Ended:
    """With outputs of CUT_BYTES together, as much of stderr as stdout leaves room for, and the reverse."""
    half = CUT_BYTES // 2
    stdout_bytes = max(half, CUT_BYTES - len(ended.stderr))
    stdout = shorten(ended.stdout, stdout_bytes)
    return ended._replace(stdout=stdout, stderr=shorten(ended.stderr, CUT_BYTES - len(stdout)))
