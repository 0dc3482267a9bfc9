"""What a broker refuses or drops: counted by kind, and told in the log once a minute for each."""

from __future__ import annotations

import logging

from kingtask.clock import monotonic_s
from kingtask.errors import RequestRefused

log = logging.getLogger("kingtask.broker")

EVERY_S = 60.0
"""One line of each kind: a peer that floods the broker must not flood its log."""
ORDINARY = frozenset({"not_found", "id_conflict", "wrong_state"})
"""What a client in good order gets too; counted, not told."""

DROPPED_REPLY = "dropped_reply"
EMPTY_MESSAGE = "empty_message"
UNKNOWN_TOPIC = "unknown_topic"
CUT_OFF = "cut_off"
HANDSHAKE = "handshake_failed"
AUTHENTICATOR = "authenticator_failed"


class Counters:
    """`counts` since the start: error codes of replies, and the kinds above, for which nobody gets a reply."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._told: dict[str, tuple[float, int]] = {}

    def count(self, kind: str, why: str) -> None:
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in ORDINARY:
            return
        now_s = monotonic_s()
        told_s, told = self._told.get(kind, (now_s - EVERY_S, 0))
        if now_s - told_s >= EVERY_S:
            self._told[kind] = (now_s, number)
            log.warning("refused=%s count=%d total=%d last=%r", kind, number - told, number, why)

    def refused(self, error: RequestRefused) -> None:
        """What was sent stays out of the log: it may be secret, and whoever sent it has the whole message."""
        self.count(error.code, error.message.partition(", got ")[0])
