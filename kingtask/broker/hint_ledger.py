"""Decides which subscribers get hints: those whose claims Redis confirms. Pure: times are parameters.

Any peer can say that it is idle, and that it used a hint. So a hint asks for a confirmation: it has the secret token of
its subscriber, which the worker's next claim carries to Redis, and the library publishes it. A hint for no task asks
each new subscriber. A subscriber that was confirmed just now is not asked, so that a busy worker costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from math import inf

FOLLOW_S = 1.0
"""A hint that no claim followed for so long goes to another subscriber."""
MAX_IGNORED = 3
"""Such hints in a row. Then the subscriber gets none until a claim of it is confirmed."""
RECENT_S = 0.1
"""After a confirmation a subscriber is not asked for another."""
ASK_AGAIN_S, MAX_ASKED = 10.0, 50
"""Subscribers without hints are asked again, some at a time: a question or its confirmation may get lost."""


@dataclass(slots=True, eq=False)
class WakeupPeer:
    """One connection to the wakeup socket."""

    queues: set[bytes] = field(default_factory=set)
    names: set[bytes] = field(default_factory=set)
    """Topics for cancels."""
    topic: bytes = b""
    """The topic of this connection alone, for hints."""
    idle: bool = False
    hint: bytes = b""
    """The hint that it got since it was idle."""
    second: int = 0
    messages: int = 0
    """Within this second."""
    unknown: int = 0
    token: str = ""
    confirmed_s: float = -inf
    ignored: int = 0


class HintLedger:
    """Subscribers, and the hints that no claim has followed yet."""

    def __init__(self) -> None:
        self._by_token: dict[str, WakeupPeer] = {}
        self._open: dict[WakeupPeer, tuple[float, bytes]] = {}
        self._excluded: dict[WakeupPeer, float] = {}
        """By the time at which the subscriber was asked last, the oldest first."""
        self._works = False
        """A claim was confirmed. Until then all get hints: workers of an older release confirm nothing."""

    def add(self, peer: WakeupPeer, token: str, now_s: float) -> None:
        """Add a subscriber, which is to be asked at once."""
        peer.token, self._by_token[token], self._excluded[peer] = token, peer, now_s

    def forget(self, peer: WakeupPeer) -> None:
        self._by_token.pop(peer.token, None)
        self._open.pop(peer, None)
        self._excluded.pop(peer, None)

    def admits(self, peer: WakeupPeer) -> bool:
        return peer not in self._excluded or not self._works

    def sent(self, peer: WakeupPeer, hint: bytes, now_s: float) -> str:
        """Note a hint, empty if it only asks. Return the token that it must carry, if any."""
        if now_s - peer.confirmed_s < RECENT_S:
            return ""
        if hint:
            self._open.setdefault(peer, (now_s, hint))
        return peer.token

    def confirmed(self, token: str, now_s: float) -> WakeupPeer | None:
        """Note a claim. Return its subscriber if that gets hints again."""
        peer = self._by_token.get(token)
        if peer is None:  # another broker's
            return None
        peer.confirmed_s, peer.ignored, self._works = now_s, 0, True
        self._open.pop(peer, None)
        return None if self._excluded.pop(peer, None) is None else peer

    def overdue(self, now_s: float) -> list[bytes]:
        """Return the hints that other subscribers must get."""
        late = [(peer, hint) for peer, (sent_s, hint) in self._open.items() if now_s - sent_s >= FOLLOW_S]
        for peer, _ in late:
            del self._open[peer]
            peer.ignored += 1
            if peer.ignored >= MAX_IGNORED:
                self._excluded.setdefault(peer, now_s)
        return [hint for _, hint in late]

    def to_ask(self, now_s: float) -> list[WakeupPeer]:
        """Return the subscribers without hints that are to be asked now."""
        due = [peer for peer, asked_s in islice(self._excluded.items(), MAX_ASKED) if now_s - asked_s >= ASK_AGAIN_S]
        for peer in due:
            del self._excluded[peer]
            self._excluded[peer] = now_s
        return due
