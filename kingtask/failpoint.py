"""Places where a test can have a broker or a worker die: they exist only under KINGTASK_FAILPOINTS.

The variable is read once, at the start, and is for tests alone; without it `ACTIVE` is False and a place costs a look
at that name (20 ns). It holds settings with commas between them:

    after_spawn=kill        SIGKILL to this process when it is at that place for the first time
    after_spawn=kill:3      … for the third time
    after_spawn=stop:3      SIGSTOP instead; whoever runs the test continues it
    after_spawn=p0.01       SIGKILL each time with this probability
    no_barrier              an OK does not wait for replicas (to see that the tests notice)
    no_authenticator        a broker with `curve` runs without one
    authenticator_fails     … with one that fails at each request
    empty_domain            … with sockets that ask for no domain
    library=/path.lua       load this function library instead of the shipped one (likewise)

Places of the broker: `after_submit_script` (Redis has answered, nothing is confirmed), `before_ack` (confirmed, the
replies are not sent). Of the worker: `after_claim`, `after_spawn`, `after_exit` (a process is gone), `before_complete`
and `after_complete` (its end is about to be sent to Redis; Redis has answered).
"""

from __future__ import annotations

import logging
import os
import random
import re
import signal
from collections.abc import Mapping

from kingtask.errors import ConfigurationError

VARIABLE = "KINGTASK_FAILPOINTS"
PLACES = frozenset(
    "after_submit_script before_ack after_claim after_spawn after_exit before_complete after_complete".split()
)
VARIANTS = frozenset({"no_barrier", "library", "no_authenticator", "authenticator_fails", "empty_domain"})

_ACTION = re.compile(r"(?P<kind>kill|stop)(:(?P<nth>[1-9][0-9]*))?|p(?P<chance>0?\.[0-9]+|1)")


def parse(text: str) -> dict[str, str]:
    """Read the variable's value. Raises ConfigurationError for what nothing would act upon."""
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
    """What one process was told; `pid` gets the signals."""

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
        """The value of a variant ("" if it takes none), None if it was not asked for."""
        return self._settings.get(name)


def warn(log: logging.Logger) -> None:
    """Say at the start that this process is not to be relied upon."""
    if ACTIVE:
        log.warning("failpoints=%s: this process is under test and will fail on purpose", ",".join(SETTINGS))


SETTINGS = parse(os.environ.get(VARIABLE, ""))
ACTIVE = bool(SETTINGS)
_failpoints = Failpoints(SETTINGS, os.getpid())
reach = _failpoints.reach
variant = _failpoints.variant
