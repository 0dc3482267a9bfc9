"""Clients in forked children: ZeroMQ's threads exist only in the parent, so a child begins anew and closes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    def disown(self) -> Sequence[object]:
        """In the child: forget the parent's sockets and context without touching them, and return them."""


_watched: WeakSet[Forkable] = WeakSet()

_parents: list[object] = []
"""Kept for good: closing the parent's contexts and sockets here, be it by the garbage collector, could hang."""


def watch(owner: Forkable) -> None:
    """Have `owner.disown` called in every child."""
    _watched.add(owner)


def _after_fork() -> None:
    for owner in _watched:
        _parents.extend(owner.disown())


os.register_at_fork(after_in_child=_after_fork)
