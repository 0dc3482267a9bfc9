"""What goes wrong: how often, and how. Which kinds occur at all, and how much of them, is drawn anew for each seed."""

from __future__ import annotations

from enum import Enum
from random import Random
from typing import Any

from kingtask.errors import StoreError


class Fate(Enum):
    """Of one call to the store."""

    WELL = "well"
    REFUSED = "refused: an error reply, not executed"
    LOST = "lost: the connection breaks before it arrives"
    UNHEARD = "unheard: executed, then the connection breaks"
    SLOW = "slow: the reply takes long, perhaps too long"
    LATE = "late: executed when its sender may have given up long ago"


FATES = [Fate.REFUSED, Fate.LOST, Fate.UNHEARD, Fate.SLOW, Fate.LATE]
REFUSALS = ["busy", "loading", "full", "masterdown", "noreplicas", "misconf", "error"]


class Faults:
    """Drawn as the world needs them; `heal` ends all of them."""

    def __init__(self, random: Random, lease_s: float) -> None:
        self._random = random
        self._lease_s = lease_s
        self._fates = random.sample(FATES, random.choice([0, 1, 1, 2, 3, 5]))
        self._fate_rate = random.choice([0.02, 0.05, 0.15, 0.4]) if self._fates else 0.0
        self._hints_lost = random.choice([0.0, 0.0, 0.3, 1.0])
        self._hints_twice = random.choice([0.0, 0.0, 0.3])
        self._messages_lost = random.choice([0.0, 0.0, 0.1, 0.3])
        self._unconfirmed = random.choice([0.0, 0.0, 0.0, 0.3])
        self._shortage = random.choice([0.0, 0.0, 0.0, 0.1])
        self._latency_s = random.choice([0.0005, 0.0005, 0.01])
        self._cut: dict[Any, float] = {}

    def heal(self) -> None:
        self._fate_rate = self._hints_lost = self._hints_twice = self._messages_lost = 0.0
        self._unconfirmed = self._shortage = 0.0
        self._cut.clear()

    # ── store ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def of_call(self, loop: Any) -> Fate:
        if loop in self._cut:
            return self._random.choice([Fate.LATE, Fate.LOST])
        if self._fate_rate and self._random.random() < self._fate_rate:
            return self._random.choice(self._fates)
        return Fate.WELL

    def refusal(self) -> StoreError:
        return StoreError(self._random.choice(REFUSALS), "refused")

    def latency(self) -> float:
        return self._latency_s * self._random.uniform(0.2, 1.0)

    def slowness(self) -> float:
        return self._random.uniform(0.0, 1.2 * self._lease_s)

    def lateness(self, loop: Any) -> float:
        """A segment of a connection that its sender has closed is sent again, too, when the network is whole."""
        return self._random.uniform(0.0, 2.0 * self._lease_s)

    def unconfirmed(self) -> bool:
        """Stored, but not at the level that was asked for."""
        return self._unconfirmed > 0 and self._random.random() < self._unconfirmed

    def cut(self, loop: Any) -> None:
        self._cut[loop] = 1.0

    def mend(self, loop: Any) -> None:
        self._cut.pop(loop, None)

    def cut_off(self, loop: Any) -> bool:
        return loop in self._cut

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def hints(self) -> list[float]:
        """When a hint arrives: not at all, once, or twice."""
        if self._hints_lost and self._random.random() < self._hints_lost:
            return []
        if self._hints_twice and self._random.random() < self._hints_twice:
            return [self.latency(), self._random.uniform(0.0, self._lease_s)]
        return [self.latency()]

    def message_lost(self) -> bool:
        return self._messages_lost > 0 and self._random.random() < self._messages_lost

    # ── hosts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def shortage(self) -> bool:
        return self._shortage > 0 and self._random.random() < self._shortage
