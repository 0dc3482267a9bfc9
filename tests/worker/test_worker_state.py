"""What the worker decides: each rule as a story, then a random walk against a model of Redis."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kingtask.store.functions import CUT_BYTES, Claimed, EndedTask, Fence
from kingtask.worker.outbox import MAX_ITEMS, Claim, Finish, Release
from kingtask.worker.worker_state import (
    LONGEST_SPAWN_FAILED_S,
    SPAWN_FAILED_S,
    UNCONFIRMED_S,
    Action,
    Extend,
    Readiness,
    StopProcess,
    WorkerState,
)

LEASE_S = 15.0


def tokens() -> Any:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(16, "big")


def make(slots: int = 2, *, up: bool = True) -> WorkerState:
    made = WorkerState(slots, LEASE_S, new_token=tokens(), release_record=lambda claimed, why: why.encode())
    if up:
        made.went_up()
    return made


def task(name: str, *, number: int = 1, fail_if_lost: bool = False) -> Claimed:
    return Claimed(name, number, "example", b"", "default", 0, fail_if_lost, 0)


def ended(fence: Fence, stdout: bytes = b"", stderr: bytes = b"") -> EndedTask:
    return EndedTask(fence, "succeeded", "", b"", stdout, stderr, len(stdout), len(stderr))


def apart(actions: Iterable[Any]) -> list[Any]:
    """What is joined into one call, as the two that it does."""
    parts: list[Any] = []
    for action in actions:
        joined = action.claim if isinstance(action, Finish) else None
        parts += [action] if joined is None else [action._replace(claim=None), joined]
    return parts


class WorkerStateHarness:
    """Slots and a clock; keeps what was decided last."""

    def __init__(self, slots: int = 2, *, up: bool = True) -> None:
        self.slots = make(slots, up=up)
        self.now_s = 100.0
        self.actions: list[Any] = []

    def decide(self, after_s: float = 0.0) -> list[Any]:
        self.now_s += after_s
        self.joined: list[Action] = self.slots.decide(self.now_s)
        self.actions = apart(self.joined)
        return self.actions

    def of(self, kind: type) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def settle(self) -> None:
        """The first decision after Redis came up: an extend and a claim, both answered with nothing."""
        self.decide()
        (extend,) = self.of(Extend)
        assert len(self.of(Claim)) == 1
        self.slots.extended(extend, ["ok"] * len(extend.held), self.now_s)
        self.slots.claimed([], self.now_s)
        assert self.decide() == []

    def answer_extend(self) -> None:
        """If one was sent by the last decision: what it named is still ours."""
        for extend in self.of(Extend):
            self.slots.extended(extend, ["ok"] * len(extend.held), self.now_s)

    def claim(self) -> Claim:
        """A wakeup, and the claim that it causes."""
        self.slots.wakeup()
        self.decide()
        (claim,) = self.of(Claim)
        assert isinstance(claim, Claim)
        return claim

    def run(self, *names: str, **fields: Any) -> list[Fence]:
        """A wakeup, a claim that gives these tasks, and their start."""
        self.claim()
        self.slots.stored(self.claim_gives(*names, **fields), self.now_s, sure=True)
        return self.spawn()

    def claim_gives(self, *names: str, **fields: Any) -> list[Fence]:
        """The answer to a claim; returns those that are to be confirmed."""
        return self.slots.claimed([task(name, **fields) for name in names], self.now_s)

    def spawn(self) -> list[Fence]:
        started = []
        while (found := self.slots.next_to_spawn(self.now_s)) is not None:
            started.append(found[0])
        return started


@pytest.fixture
def story() -> WorkerStateHarness:
    found = WorkerStateHarness()
    found.settle()
    return found


# ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coming_up_renews_before_it_claims() -> None:
    story = WorkerStateHarness(3)
    assert [type(action) for action in story.decide()] == [Extend, Claim]
    assert story.of(Extend) == [Extend([], [], 0)]
    assert story.of(Claim)[0].n == 3


def test_one_claim_at_a_time_and_a_wakeup_during_it_causes_one_more(story: WorkerStateHarness) -> None:
    claim = story.claim()
    story.slots.wakeup()
    story.slots.wakeup()
    assert story.decide() == []
    story.slots.claimed([], story.now_s)
    (again,) = story.decide()
    assert (again.n, again.again, again.token != claim.token) == (2, False, True)
    story.slots.claimed([], story.now_s)
    assert story.decide() == []


def test_a_claim_that_got_all_it_asked_for_is_followed_by_one_when_a_slot_is_free(story: WorkerStateHarness) -> None:
    first, second = story.run("a", "b")
    assert story.decide() == []  # no slot
    story.slots.ended(first, ended(first))
    finish, claim = story.decide()
    assert finish == Finish([ended(first)], False)
    assert claim.n == 1
    story.slots.claimed([], story.now_s)
    story.slots.ended(second, ended(second))
    assert [type(action) for action in story.decide()] == [Finish]  # it came back empty: a hint will follow


def test_one_call_finishes_what_ended_and_claims_what_is_next(story: WorkerStateHarness) -> None:
    first, second = story.run("a", "b")
    story.slots.ended(first, ended(first))
    finish, claim = story.decide()
    assert story.joined == [finish._replace(claim=claim)]
    story.slots.claim_failed(stored="unknown")
    story.slots.ended(second, ended(second))
    story.slots.poll()
    finish, again = story.decide()
    assert story.joined == [finish, again], "what is sent again is answered by itself"
    assert (again.again, again.token) == (True, claim.token)


def test_a_call_does_not_do_too_much() -> None:
    """Nor does the claim wait for one with less to do."""
    story = WorkerStateHarness(MAX_ITEMS)
    story.settle()
    fences = story.run(*(str(i) for i in range(MAX_ITEMS)))
    for fence in fences[: MAX_ITEMS // 2 + 1]:
        story.slots.ended(fence, ended(fence))
    assert [type(action) for action in story.decide()] == [Finish, Claim]
    assert [type(action) for action in story.joined] == [Finish, Claim]


def test_a_claim_that_was_cut_short_is_followed_by_another_at_once(story: WorkerStateHarness) -> None:
    story.claim()
    story.slots.claimed([task("large")], story.now_s, more=True)
    (claim,) = story.decide()
    assert (claim.n, claim.again) == (1, False)


def test_a_wakeup_without_a_free_slot_is_remembered(story: WorkerStateHarness) -> None:
    (fence, _) = story.run("a", "b")
    story.slots.wakeup()
    assert story.decide() == []
    story.slots.ended(fence, ended(fence))
    assert [type(action) for action in story.decide()] == [Finish, Claim]


def test_hints_are_wanted_when_there_is_room_and_nothing_was_there_to_claim(story: WorkerStateHarness) -> None:
    def appetite() -> Readiness:
        story.decide()
        return story.slots.readiness(story.now_s)

    assert appetite() is Readiness.IDLE
    story.claim()
    assert appetite() is Readiness.CLAIMING
    story.claim_gives("a")
    assert appetite() is Readiness.IDLE, "one slot of two is free"
    story.claim()
    story.claim_gives("b")
    assert appetite() is Readiness.FULL
    (a, _) = story.spawn()
    story.slots.ended(a, ended(a))
    assert appetite() is Readiness.CLAIMING, "a slot is free again, and the last claim got all it asked for"
    story.claim_gives()
    assert appetite() is Readiness.IDLE
    story.slots.went_down()
    assert appetite() is Readiness.FULL
    story.slots.went_up()
    assert appetite() is Readiness.CLAIMING
    story.claim_gives()
    story.slots.drain()
    assert appetite() is Readiness.FULL


def test_more_slots_are_claimed_for_at_once_and_fewer_when_what_holds_them_has_ended() -> None:
    story = WorkerStateHarness(1)
    story.settle()
    first = story.run("a")
    story.slots.wakeup()
    assert story.decide() == []
    story.slots.resize(3)
    story.decide()
    (claim,) = story.of(Claim)
    assert claim.n == 2
    story.claim_gives("b", "c")
    running = [*first, *story.spawn()]
    story.slots.resize(2)
    for fence in running[:2]:
        story.slots.wakeup()
        assert not [action for action in story.decide() if isinstance(action, Claim | StopProcess)]
        story.slots.ended(fence, ended(fence))
        (finish,) = [action for action in story.decide() if isinstance(action, Finish)]
        story.slots.outbox.answered([one.fence for one in finish.ended])
    (claim,) = story.of(Claim)
    assert claim.n == 1


def test_a_claim_that_was_sent_again_says_nothing_of_what_came_meanwhile(story: WorkerStateHarness) -> None:
    story.claim()
    story.slots.claim_failed(stored="unknown")
    assert story.claim().again
    story.claim_gives()
    story.decide()
    (claim,) = story.of(Claim)
    assert not claim.again


def test_a_claim_whose_reply_was_lost_is_sent_again_under_its_token(story: WorkerStateHarness) -> None:
    claim = story.claim()
    story.slots.went_down()
    story.slots.claim_failed(stored="unknown")
    story.slots.wakeup()
    assert story.decide() == []
    story.slots.went_up()
    extend, again = story.decide()
    assert extend.claims == [claim.token]
    assert again == claim._replace(again=True)
    story.slots.claimed([task("a")], story.now_s)
    assert [fence.token for fence in story.spawn()] == [claim.token]


def test_a_claim_whose_reply_cannot_be_read_waits_for_the_next_look(story: WorkerStateHarness) -> None:
    """With Redis up: asking again at once would be asking without end."""
    claim = story.claim()
    story.slots.claim_failed(stored="unknown")
    assert story.decide() == []
    story.slots.poll()
    assert story.decide() == [claim._replace(again=True)]


def test_a_refused_claim_waits_for_the_next_look(story: WorkerStateHarness) -> None:
    claim = story.claim()
    story.slots.claim_failed(stored="no")
    assert story.decide() == []
    story.slots.poll()
    (again,) = story.decide()
    assert (again.again, again.token != claim.token) == (False, True)


def test_ends_that_redis_does_not_take_bound_what_is_claimed() -> None:
    story = WorkerStateHarness(2)
    story.settle()
    for names in (("a", "b"), ("c", "d")):
        for fence in story.run(*names):
            story.slots.ended(fence, ended(fence))
        story.decide()
        for finish in story.of(Finish):
            story.slots.outbox.not_confirmed([row.fence for row in finish.ended], full=False)
        if story.of(Claim):
            story.slots.claimed([], story.now_s)
    story.slots.wakeup()
    assert story.decide() == []  # four ends in memory, two slots: enough
    story.slots.poll()
    (finish,) = story.decide()
    story.slots.outbox.confirmed([row.fence for row in finish.ended])
    assert [type(action) for action in story.decide()] == [Claim]


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slow_reply_is_renewed_before_anything_is_spawned(story: WorkerStateHarness) -> None:
    claim = story.claim()
    sent_s = story.now_s
    story.now_s += LEASE_S / 2 + 0.1
    story.slots.claimed([task("a"), task("b"), task("c")], sent_s)
    assert story.spawn() == []
    (extend,) = [action for action in story.decide() if isinstance(action, Extend)]
    assert [fence.id for fence in extend.held] == ["a", "b", "c"]
    assert story.slots.extended(extend, ["ok", "fenced", "cancel"], story.now_s) == [Fence("b", 1, claim.token)]
    assert [fence.id for fence in story.spawn()] == ["a"]
    assert story.slots.busy == 1
    assert [action for action in story.decide() if isinstance(action, Release)] == [
        Release([(Fence("c", 1, claim.token), b"cancelled before it was started")])
    ]


def test_waiting_too_long_for_its_turn_is_the_same_as_a_slow_reply(story: WorkerStateHarness) -> None:
    story.claim()
    story.slots.claimed([task("a")], story.now_s)
    story.now_s += LEASE_S / 2 + 0.1
    assert story.spawn() == []
    (extend,) = story.decide()
    assert [fence.id for fence in extend.held] == ["a"]


def test_extend_names_what_runs_what_ended_and_the_claim_under_way(story: WorkerStateHarness) -> None:
    first, second = story.run("a", "b")
    story.slots.ended(first, ended(first))
    story.slots.renew()
    finish, claim, extend = story.decide()
    assert isinstance(finish, Finish)
    assert set(extend.held) == {first, second}
    assert extend.claims == []
    assert extend.upto < claim.nth, "should it be executed late, it says nothing of what that got"
    story.slots.renew()
    assert story.decide() == []  # one at a time
    story.slots.extended(extend, ["ok", "fenced"], story.now_s)  # fenced: what has ended
    (extend,) = story.decide()
    assert extend.claims == [claim.token]


def test_fenced_stops_what_runs_and_drops_its_outcome(story: WorkerStateHarness) -> None:
    first, second = story.run("a", "b")
    story.slots.renew()
    (extend,) = story.decide()
    assert story.slots.extended(extend, ["fenced", "ok"], story.now_s) == [first]
    assert story.decide() == [StopProcess(first, "fenced")]
    story.slots.renew()
    (extend,) = story.decide()
    assert extend.held == [second]
    assert story.slots.busy == 2  # until it is gone
    story.slots.ended(first, ended(first))
    assert story.slots.busy == 1
    assert story.of(Finish) == []


def test_what_may_be_started_only_once_is_not_let_go_by_fenced(story: WorkerStateHarness) -> None:
    """A failover may forget that it was lost: it is named, and its end told, until that is settled."""
    (fence,) = story.run("a", fail_if_lost=True)
    story.slots.renew()
    (extend,) = story.decide()
    assert story.slots.extended(extend, ["fenced"], story.now_s) == [fence]
    assert story.decide() == [StopProcess(fence, "fenced")]
    story.slots.renew()
    (extend,) = story.decide()
    assert extend.held == [fence]
    assert story.slots.extended(extend, ["fenced"], story.now_s) == [], "told already"
    assert story.decide() == []
    story.slots.ended(fence, ended(fence))
    story.decide()
    (finish,) = story.of(Finish)
    assert story.slots.outbox.answered([one.fence for one in finish.ended]) == [fence], "to be confirmed"
    story.slots.outbox.confirmed([fence])
    assert story.slots.idle


def test_a_task_may_be_claimed_again_while_its_fenced_attempt_is_being_stopped(story: WorkerStateHarness) -> None:
    (first,) = story.run("a")
    story.slots.renew()
    (extend,) = story.decide()
    story.slots.extended(extend, ["fenced"], story.now_s)
    (second,) = story.run("a", number=2)
    assert (second.number, second.id) == (2, first.id)
    story.slots.ended(first, ended(first))
    assert story.slots.busy == 1
    story.slots.ended(second, ended(second))
    story.decide()
    assert story.of(Finish)[0].ended[0].fence == second


def test_a_lease_that_a_damaged_index_does_not_renew_stops_nothing_and_starts_nothing(
    story: WorkerStateHarness,
) -> None:
    (running,) = story.run("a")
    story.claim()
    story.claim_gives("b")
    story.now_s += LEASE_S
    assert story.spawn() == []  # stale
    (extend,) = story.decide()
    assert story.slots.extended(extend, ["damaged", "damaged"], story.now_s) == []
    assert story.decide() == []
    assert story.spawn() == []
    story.slots.renew()
    (extend,) = story.decide()
    assert running in extend.held
    story.slots.extended(extend, ["ok", "ok"], story.now_s)
    assert [fence.id for fence in story.spawn()] == ["b"]


def test_fenced_means_nothing_to_what_has_ended(story: WorkerStateHarness) -> None:
    (fence,) = story.run("a")
    story.slots.renew()
    (extend,) = story.decide()
    story.slots.ended(fence, ended(fence))
    (finish,) = [action for action in story.decide() if isinstance(action, Finish)]
    assert story.slots.extended(extend, ["fenced"], story.now_s) == []
    story.slots.outbox.not_confirmed([fence], full=False)
    story.slots.poll()
    story.decide()
    assert story.of(Finish) == [finish]


def test_a_cancel_hint_only_asks_and_redis_answers(story: WorkerStateHarness) -> None:
    (fence,) = story.run("a")
    story.slots.cancel_hint("somebody else's")
    assert story.decide() == []
    story.slots.cancel_hint("a")
    (extend,) = story.decide()
    story.slots.extended(extend, ["cancel"], story.now_s)
    assert story.decide() == [StopProcess(fence, "cancelled")]
    story.slots.renew()
    (extend,) = story.decide()
    story.slots.extended(extend, ["cancel"], story.now_s)
    assert story.decide() == []  # once


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_outage_stops_nothing_and_forgets_nothing(story: WorkerStateHarness) -> None:
    first, second = story.run("a", "b")
    story.slots.went_down()
    story.slots.ended(first, ended(first))
    story.slots.renew()
    story.slots.poll()
    assert story.decide(after_s=10_000) == []
    story.slots.went_up()
    finish, _, extend = story.decide()
    assert finish == Finish([ended(first)], False)
    assert set(extend.held) == {first, second}


def test_a_finish_without_an_answer_is_sent_again(story: WorkerStateHarness) -> None:
    (fence,) = story.run("a")
    story.slots.ended(fence, ended(fence))
    story.decide()
    story.slots.went_down()
    story.slots.outbox.not_confirmed([fence], full=False)
    assert story.decide() == []
    story.slots.went_up()
    story.decide()
    assert story.of(Finish) == [Finish([ended(fence)], False)]
    story.slots.outbox.confirmed([fence])
    story.slots.poll()
    story.decide()
    assert story.of(Finish) == []


def test_a_full_redis_gets_the_outcome_with_short_outputs(story: WorkerStateHarness) -> None:
    (fence,) = story.run("a")
    story.slots.ended(fence, ended(fence, b"o" * 100_000))
    story.decide()
    story.slots.outbox.not_confirmed([fence], full=True)
    (finish,) = story.decide()
    assert (finish.cut, len(finish.ended[0].stdout)) == (True, CUT_BYTES)


def test_a_shortage_hands_back_and_pauses_longer_each_time(story: WorkerStateHarness) -> None:
    pause_s = SPAWN_FAILED_S
    for _ in range(8):
        (fence,) = story.run("a")
        story.slots.spawn_failed(fence, story.now_s, "no processes left")
        assert story.slots.busy == 0
        story.slots.wakeup()
        story.decide()
        assert story.of(Release) == [Release([(fence, b"no processes left")])]
        assert story.slots.degraded == "no processes left"
        story.answer_extend()
        story.slots.outbox.confirmed([fence])
        assert story.decide(after_s=pause_s - 0.01) == []
        assert [type(action) for action in story.decide(after_s=0.02)] == [Claim]
        story.slots.claimed([], story.now_s)
        pause_s = min(2 * pause_s, LONGEST_SPAWN_FAILED_S)
    story.slots.started()
    assert story.slots.degraded == ""
    (fence,) = story.run("a")
    story.slots.spawn_failed(fence, story.now_s, "again")
    story.slots.wakeup()
    story.decide()
    story.slots.outbox.confirmed([fence])
    assert story.decide(after_s=SPAWN_FAILED_S + 0.01) != []


def test_a_shortage_is_told_at_once_and_several_of_one_claim_are_one(story: WorkerStateHarness) -> None:
    fences = story.run("a", "b")
    for fence in fences:
        story.slots.spawn_failed(fence, story.now_s, "no processes left")
    story.slots.wakeup()
    assert [type(action) for action in story.decide()] == [Release, Extend]
    story.answer_extend()
    story.slots.outbox.confirmed(fences)
    assert [type(action) for action in story.decide(after_s=SPAWN_FAILED_S + 0.01)] == [Claim]


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_drain_hands_back_what_was_not_started_and_claims_no_more(story: WorkerStateHarness) -> None:
    story.claim()
    story.slots.claimed([task("a"), task("b")], story.now_s)
    started = story.slots.next_to_spawn(story.now_s)
    assert started is not None
    story.slots.drain()
    story.slots.wakeup()
    story.slots.poll()
    story.decide()
    (release,) = story.of(Release)
    assert [fence.id for fence, _ in release.attempts] == ["b"]
    assert story.of(Claim) == []
    assert story.spawn() == []
    assert not story.slots.idle
    story.slots.outbox.confirmed([release.attempts[0][0]])
    story.slots.ended(started[0], ended(started[0]))
    story.decide()
    assert not story.slots.idle
    story.slots.outbox.confirmed([started[0]])
    assert story.slots.idle


def test_what_a_claim_brings_during_the_drain_is_handed_back(story: WorkerStateHarness) -> None:
    story.claim()
    story.slots.drain()
    story.decide()
    assert not story.slots.idle
    story.slots.claimed([task("a")], story.now_s)
    assert story.spawn() == []
    (release,) = story.decide()
    assert [fence.id for fence, _ in release.attempts] == ["a"]


def test_the_end_of_what_may_be_started_only_once_is_renewed_until_it_is_confirmed(story: WorkerStateHarness) -> None:
    """A failover may forget it: what Redis then takes for running and nobody names would be handed back."""
    story.claim()
    unsure = story.slots.claimed([task("a", fail_if_lost=True)], story.now_s)
    story.slots.stored(unsure, story.now_s, sure=True)
    (fence,) = story.spawn()
    story.slots.ended(fence, ended(fence))
    story.decide()
    assert story.slots.outbox.answered([fence]) == [fence]
    story.slots.renew()
    story.decide()
    assert story.of(Extend)[0].held == [fence]
    story.slots.outbox.not_confirmed([fence])
    story.slots.poll()
    story.decide()
    assert story.of(Finish) == [Finish([ended(fence)], False)]
    story.slots.outbox.answered([fence])
    story.slots.outbox.confirmed([fence])
    assert story.slots.unconfirmed == 0


def test_an_extend_says_which_claims_were_made_before_it_was_sent(story: WorkerStateHarness) -> None:
    first = story.claim()
    story.slots.claimed([], story.now_s)
    story.slots.renew()
    (extend,) = story.decide()
    second = story.claim()
    assert (extend.upto, second.nth) == (first.nth, first.nth + 1)


def test_a_lost_claim_is_handed_back_by_an_extend_that_does_not_name_it(story: WorkerStateHarness) -> None:
    claim = story.claim()
    story.slots.went_down()
    story.slots.claim_failed(stored="unknown")
    story.slots.drain()
    story.decide()
    assert not story.slots.idle
    story.slots.went_up()
    (extend,) = story.decide()
    assert (extend.held, extend.claims, extend.upto) == ([], [], claim.nth)
    story.slots.extended(extend, [], story.now_s)
    assert story.slots.idle


def test_a_claim_that_is_lost_during_the_drain_is_handed_back_likewise(story: WorkerStateHarness) -> None:
    story.slots.wakeup()
    story.slots.renew()
    extend, _ = story.decide()
    story.slots.drain()
    story.slots.claim_failed(stored="unknown")
    # This one was sent after the claim and named it, so it has handed back nothing.
    extend = extend._replace(claims=[b"token"])
    story.slots.extended(extend, [], story.now_s)
    assert not story.slots.idle
    (extend,) = story.decide()
    story.slots.extended(extend, [], story.now_s)
    assert story.slots.idle


def test_what_is_being_stopped_is_not_stopped_for_another_reason(story: WorkerStateHarness) -> None:
    (fence,) = story.run("a")
    story.slots.renew()
    (extend,) = story.decide()
    story.slots.extended(extend, ["cancel"], story.now_s)
    story.slots.drain()
    story.slots.stop_all()
    story.slots.stop_all()
    story.decide()
    assert story.of(StopProcess) == [StopProcess(fence, "cancelled")]


def test_stop_releases_what_may_run_again_and_interrupts_what_may_not(story: WorkerStateHarness) -> None:
    (first,) = story.run("a")
    (second,) = story.run("b", fail_if_lost=True)
    story.slots.drain()
    story.slots.stop_all()
    story.decide()
    assert story.of(StopProcess) == [StopProcess(first, "released"), StopProcess(second, "interrupted")]
    story.slots.ended(first, b"record")
    story.slots.ended(second, ended(second))
    story.decide()
    assert story.of(Release) == [Release([(first, b"record")])]
    assert story.of(Finish) == [Finish([ended(second)], False)]


# ── what may be started only once ────────────────────────────────────────────────────────────────────────────────────


def test_what_may_be_started_only_once_waits_until_its_claim_is_stored(story: WorkerStateHarness) -> None:
    story.claim()
    (fence,) = story.claim_gives("once", fail_if_lost=True)
    assert story.spawn() == []
    story.slots.stored([fence], story.now_s, sure=True)
    assert story.spawn() == [fence]


def test_the_others_of_the_same_claim_do_not_wait(story: WorkerStateHarness) -> None:
    story.claim()
    unsure = story.slots.claimed([task("once", fail_if_lost=True), task("again")], story.now_s)
    assert [fence.id for fence in unsure] == ["once"]
    assert [fence.id for fence in story.spawn()] == ["again"]


def test_a_claim_that_is_not_confirmed_is_handed_back_unstarted_and_claiming_pauses(story: WorkerStateHarness) -> None:
    story.claim()
    unsure = story.claim_gives("once", fail_if_lost=True)
    story.slots.stored(unsure, story.now_s, sure=False)
    (release,) = story.decide()
    assert [fence for fence, _ in release.attempts] == unsure
    story.slots.outbox.confirmed(unsure)
    assert story.spawn() == []
    story.slots.wakeup()
    assert story.decide(UNCONFIRMED_S / 2) == []
    assert [type(action) for action in story.decide(UNCONFIRMED_S)] == [Claim]


def test_what_is_gone_when_its_claim_is_confirmed_stays_gone(story: WorkerStateHarness) -> None:
    story.claim()
    unsure = story.slots.claimed([task(name, fail_if_lost=True) for name in ("fenced", "cancelled")], story.now_s)
    story.slots.renew()
    (extend,) = story.decide()
    story.slots.extended(extend, ["fenced", "cancel"], story.now_s)
    (release,) = (action for action in story.decide() if isinstance(action, Release))
    assert [fence.id for fence, _ in release.attempts] == ["cancelled"]
    story.slots.outbox.confirmed(unsure)
    for sure in (True, False):
        story.slots.stored(unsure, story.now_s, sure=sure)
        assert (story.spawn(), story.slots.busy, story.slots.unconfirmed) == ([], 0, 0)


def test_a_worker_that_drains_hands_back_what_waits_for_its_confirmation(story: WorkerStateHarness) -> None:
    story.claim()
    unsure = story.claim_gives("once", fail_if_lost=True)
    story.slots.drain()
    story.decide()
    assert [fence for fence, _ in story.of(Release)[0].attempts] == unsure
    story.slots.stored(unsure, story.now_s, sure=True)
    assert story.spawn() == []


def test_a_confirmation_that_took_long_is_followed_by_a_renewal_before_the_start(story: WorkerStateHarness) -> None:
    story.claim()
    unsure = story.claim_gives("once", fail_if_lost=True)
    story.now_s += LEASE_S
    story.slots.stored(unsure, story.now_s, sure=True)
    assert story.spawn() == []
    (extend,) = story.decide()
    story.slots.extended(extend, ["fenced"], story.now_s)
    assert (story.spawn(), story.slots.busy) == ([], 0)


# ── a random walk ────────────────────────────────────────────────────────────────────────────────────────────────────


class Walk(RuleBasedStateMachine):
    """Slots against a model of Redis that executes calls in order, loses replies and connections, takes leases away."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ids = itertools.count(1)
        self.ready: list[str] = []
        self.numbers: Counter[str] = Counter()
        self.fences: dict[str, Fence] = {}  # in Redis: what runs, under which fence
        self.at_once: set[str] = set()  # on_lost: fail
        self.flagged: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.nth: dict[bytes, int] = {}
        self.executed: Counter[Fence] = Counter()
        self.running: dict[Fence, str | None] = {}  # processes, and why they are being stopped
        self.calls: list[Any] = []  # sent and not executed yet
        self.replies: list[tuple[Any, Any]] = []  # executed and not received yet
        self.lost: list[Any] = []  # written to a connection that is gone: may execute late, or never
        self.forgiven: set[Fence] = set()  # whose lease was taken away
        self.unsure: list[list[Fence]] = []  # barriers under way
        self.sure: set[Fence] = set()  # claims that no failover can undo

    @initialize(slots=st.integers(1, 4))
    def begin(self, slots: int) -> None:
        self.limit = slots  # the most there were: what a slot holds goes on when it is taken away
        self.slots = make(slots, up=False)

    # Redis ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, call: Any) -> Any:  # noqa: PLR0912 - four functions of Redis, each a few lines
        match call:
            case Finish(claim=Claim() as claim):
                return self.execute(call._replace(claim=None)), self.execute(claim)
            case Claim(token, nth, n, again):
                held = [fence for fence in self.fences.values() if fence.token == token]
                if not (again and held):
                    held = []
                    while self.ready and len(held) < n:
                        name = self.ready.pop(0)
                        self.numbers[name] += 1
                        self.fences[name] = Fence(name, self.numbers[name], token)
                        self.nth[token] = nth
                        held.append(self.fences[name])
                return [task(fence.id, number=fence.number, fail_if_lost=fence.id in self.at_once) for fence in held]
            case Extend(fences, claims, upto):
                answers = []
                for fence in fences:
                    if self.fences.get(fence.id) != fence:
                        answers.append("fenced")
                    else:
                        answers.append("cancel" if fence.id in self.flagged else "ok")
                for fence in list(self.fences.values()):
                    if self.nth[fence.token] <= upto and fence not in fences and fence.token not in claims:
                        self.give_back(fence)
                return answers
            case Finish(rows):
                for row in rows:
                    if self.fences.get(row.fence.id) == row.fence:
                        del self.fences[row.fence.id]
                        self.outcomes[row.fence.id] += 1
                return [row.fence for row in rows]
            case Release(attempts):
                for fence, _ in attempts:
                    if self.fences.get(fence.id) == fence:
                        self.give_back(fence)
                return [fence for fence, _ in attempts]
        raise AssertionError(call)

    def give_back(self, fence: Fence) -> None:
        assert not (fence.id in self.at_once and self.executed[fence]), "spawned once, it may never run again"
        del self.fences[fence.id]
        self.ready.append(fence.id)

    # what happens ───────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(n=st.integers(1, 5), fail_if_lost=st.booleans())
    def submit(self, n: int, fail_if_lost: bool) -> None:
        for _ in range(n):
            name = f"t{next(self.ids)}"
            self.ready.append(name)
            if fail_if_lost:
                self.at_once.add(name)
        self.slots.wakeup()

    @rule()
    def decide(self) -> None:
        for action in self.slots.decide(self.now_s):
            if isinstance(action, StopProcess):
                if action.fence in self.running:
                    assert action.why == "fenced" or self.running[action.fence] is None
                    self.running[action.fence] = action.why
                continue
            assert self.slots.up, "nothing is sent without Redis"
            for claim in apart([action]):
                if isinstance(claim, Claim):
                    sent = [call for call, _ in [*self.calls, *(row for row, _ in self.replies)]]
                    under_way = [call for call in apart(sent) if isinstance(call, Claim)]
                    assert not under_way, "one claim at a time"
                    assert claim.n <= self.limit - self.slots.busy
            self.calls.append((action, self.now_s))

    @precondition(lambda self: self.calls)
    @rule()
    def redis_executes(self) -> None:
        call = self.calls.pop(0)
        self.replies.append((call, self.execute(call[0])))

    @precondition(lambda self: self.replies)
    @rule()
    def reply_arrives(self) -> None:
        (call, sent_s), reply = self.replies.pop(0)
        self.take(call, sent_s, reply)

    def take(self, call: Any, sent_s: float, reply: Any) -> None:
        match call:
            case Finish(claim=Claim() as claim):
                self.take(call._replace(claim=None), sent_s, reply[0])
                self.take(claim, sent_s, reply[1])
            case Claim():
                if unsure := self.slots.claimed(reply, sent_s):
                    self.unsure.append(unsure)
            case Extend():
                self.slots.extended(call, reply, sent_s)
            case Finish() | Release():
                self.slots.outbox.confirmed(reply)

    @precondition(lambda self: self.unsure)
    @rule(sure=st.booleans())
    def barrier_answers(self, sure: bool) -> None:
        asked = self.unsure.pop(0)
        sure = sure and all(fence in self.fences.values() for fence in asked)
        if sure:
            self.sure.update(asked)
        self.slots.stored(asked, self.now_s, sure=sure)

    @precondition(lambda self: any(fence not in self.sure for fence in self.fences.values()))
    @rule(data=st.data())
    def failover_forgets_a_claim(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(sorted(fence for fence in self.fences.values() if fence not in self.sure)))
        del self.fences[fence.id]
        self.numbers[fence.id] -= 1
        self.ready.append(fence.id)
        self.forgiven.add(fence)

    @precondition(lambda self: self.calls and not self.replies)
    @rule(full=st.booleans())
    def redis_refuses(self, full: bool) -> None:
        call, _ = self.calls.pop(0)
        self.fail(call, stored="no", full=full)

    def fail(self, call: Any, *, stored: Any, full: bool = False) -> None:
        match call:
            case Finish(claim=Claim() as claim):
                self.fail(call._replace(claim=None), stored=stored, full=full)
                self.fail(claim, stored=stored)
            case Claim():
                self.slots.claim_failed(stored=stored)
            case Extend():
                self.slots.extend_failed()
            case Finish(rows, cut):
                self.slots.outbox.not_confirmed([row.fence for row in rows], full=full and not cut)
            case Release(attempts):
                self.slots.outbox.not_confirmed([fence for fence, _ in attempts], full=False)

    @precondition(lambda self: self.slots.up)
    @rule(executed=st.integers(0, 5), late=st.booleans())
    def connection_lost(self, executed: int, late: bool) -> None:
        """Some of what was sent is executed all the same, some perhaps later."""
        self.slots.went_down()
        pending = [call for (call, _), _ in self.replies] + [call for call, _ in self.calls]
        for call, _ in self.calls[:executed]:
            self.execute(call)
        if late:
            self.lost += [call for call, _ in self.calls[executed:]]
        self.calls, self.replies = [], []
        for call in pending:
            self.fail(call, stored="unknown")

    @precondition(lambda self: self.lost)
    @rule()
    def a_lost_call_is_executed_late(self) -> None:
        self.execute(self.lost.pop(0))

    @precondition(lambda self: not self.slots.up)
    @rule()
    def connected(self) -> None:
        self.slots.went_up()

    @rule(seconds=st.sampled_from([0.1, 1.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.slots.poll()

    @rule()
    def renewal(self) -> None:
        self.slots.renew()

    @rule(slots=st.integers(1, 4))
    def resized(self, slots: int) -> None:
        self.limit = max(self.limit, slots)
        self.slots.resize(slots)

    @rule()
    def spawn(self) -> None:
        found = self.slots.next_to_spawn(self.now_s)
        if found is not None:
            fence, _ = found
            assert not self.slots.draining
            self.executed[fence] += 1
            assert self.executed[fence] == 1, "one process for one fence"
            if fence.id in self.at_once:
                assert sum(n for other, n in self.executed.items() if other.id == fence.id) == 1, "started only once"
            self.running[fence] = None

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def process_ends(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(sorted(self.running)))
        why = self.running.pop(fence)
        if why == "released":
            assert fence.id not in self.at_once
        self.slots.ended(fence, b"released" if why == "released" else ended(fence))

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def lease_taken_away(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.fences)))
        fence = self.fences.pop(name)
        if name in self.at_once:
            self.outcomes[name] += 1
        else:
            self.ready.append(name)
        self.forgiven.add(fence)

    @precondition(lambda self: self.fences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.fences)))
        self.flagged.add(name)
        self.slots.cancel_hint(name)

    @precondition(lambda self: not self.slots.draining and self.numbers.total() > 3)
    @rule()
    def drain(self) -> None:
        self.slots.drain()

    @precondition(lambda self: self.slots.draining)
    @rule()
    def stop_all(self) -> None:
        self.slots.stop_all()

    @invariant()
    def never_more_than_the_slots(self) -> None:
        if hasattr(self, "slots"):
            assert len(self.running) <= self.slots.busy <= self.limit
            assert all(count == 1 for count in self.outcomes.values())

    def teardown(self) -> None:
        """Left alone, with Redis up and processes that end, everything is settled."""
        if not hasattr(self, "slots"):
            return
        self.lost.clear()
        for _ in range(1000):
            if not self.slots.up:
                self.slots.went_up()
            self.time_passes(1.0)
            self.slots.renew()
            self.decide()
            while self.calls or self.replies:
                if self.calls:
                    self.redis_executes()
                self.reply_arrives()
            while self.unsure:
                self.barrier_answers(True)
            self.spawn()
            for fence, why in list(self.running.items()):
                del self.running[fence]
                self.slots.ended(fence, b"released" if why == "released" else ended(fence))
            if self.slots.draining and self.slots.idle:
                break
            if not self.slots.draining and not self.ready and not self.fences and self.slots.idle:
                break
        else:
            raise AssertionError("never settled")
        assert self.fences == {}, "Redis knows of nothing that the worker does not"
        for fence, count in self.executed.items():
            assert count == 1
            assert fence in self.forgiven or self.outcomes[fence.id] == 1 or fence.id in self.ready


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
