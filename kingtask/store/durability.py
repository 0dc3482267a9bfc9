"""What an OK means (`ack`), and the barrier that proves it for `replicas`.

WAIT holds up every command behind it on its connection, so the barrier has a connection of its own: a small write, and
WAIT behind it. A server's writes are one sequence, whatever connections they came by: replicas that have this write
have everything that was answered before it.

That is so within one history only. Between a write and its barrier, one of the two connections may have been made anew
to another server; or the server was demoted, dropped what its primary had not, and was promoted again. With each such
change a server gets a new replication id. So the id that it had when the connection of the write was made has to be the
one that it has, as primary, after WAIT.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError, StoreError
from kingtask.policy import Ack, AckLevel
from kingtask.store.redis.handshake import ServerFacts, history_of
from kingtask.store.redis.supervisor import SupervisedConnection

log = logging.getLogger("kingtask.store")

SHORTEST_WAIT_MS = 10
"""Of one WAIT: requests whose time is up at different moments share the look that ends them."""


def level_on(ack: Ack, server: ServerFacts) -> AckLevel:
    """Return the level that an OK has on this server. Raises ConfigurationError if the server cannot give it."""
    if ack.level == "fsync" and not server.fsync_always:
        raise ConfigurationError(
            "ack: fsync needs a server with appendonly yes, appendfsync always and no-appendfsync-on-rewrite no"
            f" (this one says: {server.persistence}); change redis.conf (deploy/redis/ has one), or set ack: stored"
        )
    return ack.level or ("fsync" if server.fsync_always else "stored")


class _Asked(NamedTuple):
    link: SupervisedConnection
    history: str
    deadline_us: int
    callback: Callable[[bool], None]


class ReplicaBarrier:
    """One at a time; whoever asks meanwhile shares the next. `mark` makes the command that writes."""

    def __init__(self, link: SupervisedConnection, mark: Callable[[], tuple[Any, ...]], ack: Ack) -> None:
        self._link = link
        self._mark = mark
        self._ack = ack
        self._asked: list[_Asked] = []
        self._busy = False

    @property
    def up(self) -> bool:
        return self._link.up

    def confirm(self, link: SupervisedConnection, callback: Callable[[bool], None]) -> None:
        """Tell whether enough replicas have, in time, what this link was answered so far. Raises nothing."""
        if not self._link.up:
            callback(False)
            return
        self._asked.append(_Asked(link, link.history, monotonic_us() + round(self._ack.timeout_s * 1e6), callback))
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        self._busy = True
        asked = self._take()
        left_ms = max(SHORTEST_WAIT_MS, (asked[0].deadline_us - monotonic_us()) // 1000)
        replies: list[Any] = []
        failed = False

        def answered(reply: Any) -> None:
            nonlocal failed
            if failed:  # those behind the first that fails fail with it
                return
            if isinstance(reply, StoreError):
                failed = True
                self._failed(asked, reply)
                return
            replies.append(reply)
            if len(replies) == 3:
                self._reached(asked, *replies[1:])

        for command in (self._mark(), ("WAIT", self._ack.replicas, left_ms), ("INFO", "replication")):
            self._link.send(command, answered)

    def _failed(self, asked: list[_Asked], error: StoreError) -> None:
        log.warning("barrier=failed kind=%s error=%r", error.kind, str(error))
        self._link.renew(str(error))  # the WAIT behind what was refused may still hold this one up
        self._answer([*asked, *self._take()], "")
        self._busy = False

    def _reached(self, asked: list[_Asked], replicas: int, replication: bytes) -> None:
        history = history_of(replication)
        if replicas < self._ack.replicas:
            now_us = monotonic_us()
            late = [one for one in asked if one.deadline_us <= now_us]
            self._asked, asked, history = asked[len(late) :] + self._asked, late, ""
        self._busy = False
        if self._asked:
            self._begin()
        self._answer(asked, history)

    def _take(self) -> list[_Asked]:
        asked, self._asked = self._asked, []
        return asked

    def _answer(self, asked: list[_Asked], history: str) -> None:
        """`history`: of the server of which enough replicas have everything; empty if there are not enough."""
        for one in asked:
            if history and one.history != history:
                for link in (one.link, self._link):
                    link.renew("the server's history is another one than when this connection was made")
            one.callback(bool(history) and one.history == history)
