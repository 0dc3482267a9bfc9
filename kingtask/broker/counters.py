"""Counts by kind what a broker refuses or drops, and logs each kind once a minute."""

from __future__ import annotations

import logging

from kingtask.clock import monotonic_s
from kingtask.errors import RequestRefused
from kingtask.event import Event

log = logging.getLogger("kingtask.broker")

EVERY_S = 60.0
"""Between two lines of one kind: a peer that floods the broker must not flood its log."""
ORDINARY = frozenset({"not_found", "id_conflict", "wrong_state"})
"""Normal refusals: counted, not logged."""

DROPPED_REPLY = "dropped_reply"
EMPTY_MESSAGE = "empty_message"
UNKNOWN_TOPIC = "unknown_topic"
CUT_OFF = "cut_off"
CONNECTION = "connection_refused"
HANDSHAKE = "handshake_failed"
AUTHENTICATOR = "authenticator_failed"


class Counters:
    """`counts` since the start: error codes of replies, and the kinds above, which have no reply."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._logged: dict[str, tuple[float, int]] = {}
        """For each kind, or kind and reason, the time of the last line (monotonic) and the count then."""

    def count(self, kind: str, why: str, *, reason: str = "") -> None:
        """Each `reason` has a line a minute of its own; the caller knows only a few."""
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in ORDINARY:
            return
        now_s = monotonic_s()
        line = f"{kind} {reason}"
        logged_s, logged = self._logged.get(line, (now_s - EVERY_S, 0))
        if now_s - logged_s >= EVERY_S:
            self._logged[line] = (now_s, number)
            log.warning(Event(f"refused={kind}", count=number - logged, total=number, last=why))

    def refused(self, error: RequestRefused) -> None:
        """Count a refusal by its code. The log omits the value that was sent, which may be secret."""
        self.count(error.code, error.message.partition(", got ")[0])
