"""The level of an acknowledgement (`ack`), and the barrier that proves `replicas`.

WAIT blocks every command behind it on its connection, so the barrier has a connection of its own: a small write, then
WAIT. The writes of a server form one sequence over all connections: replicas that have this write have every write that
was answered before it.

This holds within one history only. Between a write and its barrier, one of the two connections may have moved to
another server, or the server was demoted, lost writes that its primary did not have, and was promoted again. Each such
change gives a server a new replication id. So the id at the connect of the writing connection must equal the id of the
primary after WAIT.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError, StoreError
from kingtask.event import Event
from kingtask.policy import Ack, AckLevel
from kingtask.store.redis.handshake import ServerFacts, history_of
from kingtask.store.redis.supervisor import SupervisedConnection

log = logging.getLogger("kingtask.store")

SHORTEST_WAIT_MS = 10
"""Shortest WAIT, so that requests with different deadlines share one."""


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
    """Runs one barrier at a time; requests meanwhile share the next one. `mark` returns the command that writes."""

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
        """Report whether enough replicas get the answered writes of this connection in time. Raises nothing."""
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
            if failed:  # the commands behind a failed one fail with it
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
        log.warning(Event("barrier=failed", kind=error.kind, error=str(error)))
        self._link.reconnect(str(error))  # a WAIT behind the refused command may still block this connection
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
        """`history` belongs to the server whose writes enough replicas have; empty without enough replicas."""
        for one in asked:
            if history and one.history != history:
                for link in (one.link, self._link):
                    link.reconnect("the history of the server has changed since this connection was opened")
            one.callback(bool(history) and one.history == history)
