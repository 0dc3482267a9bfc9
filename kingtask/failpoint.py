"""Places at which a test can kill a broker or a worker; they exist only with KINGTASK_FAILPOINTS.

The variable is for tests, and is read once at the start. Without it `ACTIVE` is False, and a place costs one test of
that name (20 ns). It holds settings with commas between them:

    after_spawn=kill        SIGKILL this process when it first reaches that place
    after_spawn=kill:3      … for the third time
    after_spawn=stop:3      SIGSTOP instead; the test continues it
    after_spawn=p0.01       SIGKILL each time with this probability
    no_barrier              an OK does not wait for replicas (to prove that the tests notice)
    no_authenticator        a broker with `curve` runs without one
    authenticator_fails     … with one that fails at each request
    empty_domain            … with sockets without a ZAP domain
    library=/path.lua       load this function library instead of the shipped one

Places of the broker: `after_submit_script` (Redis has answered, nothing is confirmed), `before_ack` (confirmed, the
replies are not sent). Of the worker: `after_claim`, `after_spawn`, `after_exit` (a process has ended),
`before_complete` and `after_complete` (before its outcome is sent to Redis; after Redis has answered).
"""

from __future__ import annotations

import logging
import os
import random
import re
import signal
from collections.abc import Mapping

from kingtask.errors import ConfigurationError
from kingtask.event import Event

VARIABLE = "KINGTASK_FAILPOINTS"
PLACES = frozenset(
    "after_submit_script before_ack after_claim after_spawn after_exit before_complete after_complete".split()
)
VARIANTS = frozenset({"no_barrier", "library", "no_authenticator", "authenticator_fails", "empty_domain"})

_ACTION = re.compile(r"(?P<kind>kill|stop)(:(?P<nth>[1-9][0-9]*))?|p(?P<chance>0?\.[0-9]+|1)")


def parse(text: str) -> dict[str, str]:
    """Read the variable's value. Raises ConfigurationError for an unknown setting."""
    settings = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        if name in PLACES and not _ACTION.fullmatch(value):
            raise ConfigurationError(f"{VARIABLE}: {name}: expected kill, kill:N, stop, stop:N or p0.N, got {value!r}")
        if name not in PLACES | VARIANTS:
            raise ConfigurationError(f"{VARIABLE}: there is no {name!r}")
        settings[name] = value
    return settings


class Failpoints:
    """The failpoints of one process; `pid` gets the signals."""

    def __init__(self, settings: Mapping[str, str], pid: int) -> None:
        self._settings = settings
        self._pid = pid
        self._reached: dict[str, int] = {}

    def reach(self, place: str) -> None:
        action = _ACTION.fullmatch(self._settings.get(place, ""))
        if action is None:
            return
        reached = self._reached[place] = self._reached.get(place, 0) + 1
        if action["chance"]:
            if random.random() < float(action["chance"]):
                os.kill(self._pid, signal.SIGKILL)
        elif reached == int(action["nth"] or 1):
            os.kill(self._pid, signal.SIGKILL if action["kind"] == "kill" else signal.SIGSTOP)

    def variant(self, name: str) -> str | None:
        """Return the value of a variant ("" without one), or None if it is not set."""
        return self._settings.get(name)


def warn(log: logging.Logger) -> None:
    """Log at the start that this process may fail on purpose."""
    if ACTIVE:
        log.warning(Event(f"failpoints={','.join(SETTINGS)}", "this process is under test and will fail on purpose"))


SETTINGS = parse(os.environ.get(VARIABLE, ""))
ACTIVE = bool(SETTINGS)
_failpoints = Failpoints(SETTINGS, os.getpid())
reach = _failpoints.reach
variant = _failpoints.variant
