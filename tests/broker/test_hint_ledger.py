"""Which subscribers get hints: values in, values out."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kingtask.broker.hint_ledger import ASK_AGAIN_S, FOLLOW_S, MAX_ASKED, MAX_IGNORED, RECENT_S, HintLedger, WakeupPeer

HINT = b"r\0\1"


class Scene:
    """A ledger with some subscribers, and a clock."""

    def __init__(self, *tokens: str) -> None:
        self.ledger = HintLedger()
        self.now_s = 100.0
        self.peers = [self.add(token) for token in tokens]

    def add(self, token: str) -> WakeupPeer:
        peer = WakeupPeer()
        self.ledger.add(peer, token, self.now_s)
        return peer

    def confirm(self, token: str) -> None:
        self.ledger.confirmed(token, self.now_s)

    def ignore(self, peer: WakeupPeer, hint: bytes = HINT) -> list[bytes]:
        """Let a hint become overdue."""
        self.now_s += 2 * RECENT_S
        assert self.ledger.sent(peer, hint, self.now_s) == peer.token
        self.now_s += FOLLOW_S
        return self.ledger.overdue(self.now_s)


def test_until_the_first_confirmation_all_get_hints_and_then_only_those_confirmed() -> None:
    scene = Scene("a", "b")
    a, b = scene.peers
    assert (scene.ledger.admits(a), scene.ledger.admits(b)) == (True, True)
    assert scene.ledger.confirmed("x", scene.now_s) is None
    assert scene.ledger.admits(a), "the token of another broker confirms nobody here"
    assert scene.ledger.confirmed("b", scene.now_s) is b
    assert scene.ledger.confirmed("b", scene.now_s) is None, "it got hints before"
    assert (scene.ledger.admits(a), scene.ledger.admits(b)) == (False, True)


def test_a_hint_asks_unless_a_claim_was_confirmed_just_now() -> None:
    scene = Scene("a")
    (a,) = scene.peers
    assert scene.ledger.sent(a, HINT, scene.now_s) == "a"
    scene.confirm("a")
    assert scene.ledger.sent(a, HINT, scene.now_s) == ""
    assert scene.ledger.sent(a, HINT, scene.now_s + 2 * RECENT_S) == "a"


def test_an_unfollowed_hint_is_for_others_and_three_of_them_exclude_until_a_confirmation() -> None:
    scene = Scene("a")
    (a,) = scene.peers
    scene.confirm("a")
    for number in range(1, MAX_IGNORED + 1):
        assert scene.ledger.admits(a), number
        assert scene.ignore(a, b"r\0%c" % number) == [b"r\0%c" % number]
    assert not scene.ledger.admits(a)
    scene.confirm("a")
    assert scene.ledger.admits(a)
    scene.ignore(a)
    assert scene.ledger.admits(a), "the count begins again"


def test_a_hint_that_a_claim_followed_is_not_overdue() -> None:
    scene = Scene("a", "b")
    for peer in scene.peers:
        scene.ledger.sent(peer, b"r\0" + peer.token.encode(), scene.now_s)
    scene.confirm("b")
    assert scene.ledger.overdue(scene.now_s + FOLLOW_S) == [b"r\0a"]


def test_some_of_those_without_hints_are_asked_at_a_time_and_each_at_intervals() -> None:
    scene = Scene(*map(str, range(MAX_ASKED + 1)))
    assert scene.ledger.to_ask(scene.now_s) == [], "they were asked when they came"
    scene.now_s += ASK_AGAIN_S
    assert scene.ledger.to_ask(scene.now_s) == scene.peers[:-1]
    assert scene.ledger.to_ask(scene.now_s) == scene.peers[-1:]
    assert scene.ledger.to_ask(scene.now_s) == []


class Anything(RuleBasedStateMachine):
    """Any order of events, against a list of all that happened to each subscriber."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene()
        self.alive: dict[str, WakeupPeer] = {}
        self.working = False
        self.confirmed: dict[str, bool] = {}
        self.unfollowed: dict[str, float] = {}
        self.ignored: dict[str, int] = {}

    @rule()
    def come(self) -> None:
        token = str(len(self.confirmed))
        self.alive[token] = self.scene.add(token)
        self.confirmed[token], self.ignored[token] = False, 0

    @precondition(lambda self: self.alive)
    @rule(choose=st.runner().flatmap(lambda self: st.sampled_from(sorted(self.alive))))
    def leave(self, choose: str) -> None:
        self.scene.ledger.forget(self.alive.pop(choose))
        self.unfollowed.pop(choose, None)

    @precondition(lambda self: self.alive)
    @rule(choose=st.runner().flatmap(lambda self: st.sampled_from(sorted(self.alive))))
    def hint(self, choose: str) -> None:
        if self.scene.ledger.sent(self.alive[choose], HINT, self.scene.now_s):
            self.unfollowed.setdefault(choose, self.scene.now_s)

    @precondition(lambda self: self.confirmed)
    @rule(choose=st.runner().flatmap(lambda self: st.sampled_from(sorted(self.confirmed))))
    def confirm(self, choose: str) -> None:
        self.scene.confirm(choose)
        if choose in self.alive:
            self.working, self.confirmed[choose], self.ignored[choose] = True, True, 0
            self.unfollowed.pop(choose, None)

    @rule(passed_s=st.floats(0, 2 * FOLLOW_S))
    def wait(self, passed_s: float) -> None:
        self.scene.now_s += passed_s
        late = [token for token, s in self.unfollowed.items() if self.scene.now_s - s >= FOLLOW_S]
        assert self.scene.ledger.overdue(self.scene.now_s) == [HINT] * len(late)
        for token in late:
            del self.unfollowed[token]
            self.ignored[token] += 1
            self.confirmed[token] = self.confirmed[token] and self.ignored[token] < MAX_IGNORED

    @invariant()
    def only_who_claims_gets_hints(self) -> None:
        for token, peer in self.alive.items():
            assert self.scene.ledger.admits(peer) == (self.confirmed[token] or not self.working)

    @invariant()
    def nothing_is_kept_of_those_that_left(self) -> None:
        ledger, peers = self.scene.ledger, set(self.alive.values())
        assert set(ledger._by_token) == set(self.alive)
        assert set(ledger._open) | set(ledger._excluded) <= peers


Anything.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestAnything = Anything.TestCase
