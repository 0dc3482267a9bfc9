"""The environment of an executable: clean, documented, not to be forged."""

from __future__ import annotations

from kingtask.store.functions import Claimed
from kingtask.worker import environment

COMMON = environment.base(
    {"PATH": "/opt/bin", "LANG": "de_DE.UTF-8", "SECRET": "s", "PYTHONPATH": "/x", "TZ": "", "LD_PRELOAD": "/x.so"},
    worker="w.1",
    brokers="10.0.0.1:9595,10.0.0.2:9595",
)


def of_attempt(request: dict[str, str]) -> dict[str, str]:
    claimed = Claimed("t", 2, "name", b"", "q", 1_800_000_000_001, False, 0)
    return environment.of_attempt(COMMON, request, claimed, deadline_ms=1_800_000_030_000)


def test_only_what_is_documented() -> None:
    assert of_attempt({"A": "1"}) == {
        "PATH": "/opt/bin",
        "HOME": "/",
        "LANG": "de_DE.UTF-8",
        "A": "1",
        "KINGTASK_ID": "t",
        "KINGTASK_ATTEMPT": "2",
        "KINGTASK_QUEUE": "q",
        "KINGTASK_DUE_AT": "1800000000.001",
        "KINGTASK_DEADLINE": "1800000030.000",
        "KINGTASK_WORKER": "w.1",
        "KINGTASK_BROKER": "10.0.0.1:9595,10.0.0.2:9595",
    }


def test_a_request_may_set_the_language_but_not_who_it_is() -> None:
    found = of_attempt(
        {"LANG": "C", "TZ": "UTC", "KINGTASK_ID": "other", "KINGTASK_WORKER": "x", "KINGTASK_BROKER": "y"}
    )
    assert (found["LANG"], found["TZ"], found["KINGTASK_ID"]) == ("C", "UTC", "t")
    assert (found["KINGTASK_WORKER"], found["KINGTASK_BROKER"]) == ("w.1", "10.0.0.1:9595,10.0.0.2:9595")
