"""What a scenario is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from tests.bench.contestants import ALL, Contestant
from tests.bench.measure import Figures
from tests.bench.sizes import Sizes
from tests.bench.stage import FSYNC, ContestantStack, Durability

PEERS = ("celery", "huey", "dramatiq", "saq", "bullmq")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    about: str
    """What the figures of its table mean, for the report."""
    contestants: tuple[str, ...]
    measure: Callable[[ContestantStack, Sizes], Figures]
    rounds: float = inf
    """At most so many, whatever was asked for: what takes long and varies little is not repeated for its own sake."""
    fsync_rounds: float = inf
    """Likewise on the server that syncs every write."""
    peer_rounds: float = inf
    peer_fsync_rounds: float = 1

    def takes_part(self, contestant: Contestant, durability: Durability, nth: int) -> bool:
        """Whether this contestant runs in the nth round, from 0."""
        most = self.fsync_rounds if durability == FSYNC else self.rounds
        if contestant.kind == "peer":
            most = min(most, self.peer_fsync_rounds if durability == FSYNC else self.peer_rounds)
        return contestant.name in self.contestants and nth < most


def known(*names: str) -> tuple[str, ...]:
    """The names, all of which must be contestants'."""
    assert all(name in ALL for name in names), names
    return names
