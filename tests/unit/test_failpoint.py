"""Failpoints exist only under their environment variable, and take nothing that would be ignored."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kingtask import failpoint
from kingtask.errors import ConfigurationError
from kingtask.failpoint import Failpoints, parse

PACKAGE = Path(failpoint.__file__).parent


@pytest.mark.parametrize("text", ["after_claims=kill", "after_claim", "after_claim=die", "after_claim=kill:0", "x"])
def test_what_nothing_would_act_upon_is_refused(text):
    with pytest.raises(ConfigurationError, match="KINGTASK_FAILPOINTS"):
        parse(text)


def test_several_settings_stand_beside_each_other():
    assert parse("before_ack=kill:3, no_barrier,library=/a.lua") == {
        "before_ack": "kill:3",
        "no_barrier": "",
        "library": "/a.lua",
    }


@pytest.mark.parametrize(
    ("action", "sent"),
    [
        ("kill", [signal.SIGKILL, None, None]),
        ("kill:3", [None, None, signal.SIGKILL]),
        ("stop:2", [None, signal.SIGSTOP, None]),
        ("p1", [signal.SIGKILL] * 3),
        ("p0.000000001", [None, None, None]),
    ],
)
def test_an_action_comes_when_it_was_asked_for(action, sent, monkeypatch):
    signals: list[int | None] = []
    monkeypatch.setattr("os.kill", lambda pid, number: signals.append(number))
    points = Failpoints(parse(f"after_spawn={action}"), 1)
    for number, expected in enumerate(sent, 1):
        points.reach("after_spawn")
        points.reach("after_exit")
        signals += [None] * (number - len(signals))
        assert signals[number - 1] == expected
    assert len(signals) == len(sent)


def test_every_place_is_in_the_code_once_or_as_often_as_there_are_ways_to_it():
    """And each look is behind `failpoint.ACTIVE`, so that without the variable nothing else is done."""
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "failpoint.py")
    assert set(re.findall(r'failpoint\.reach\("(\w+)"\)', text)) == failpoint.PLACES
    assert set(re.findall(r'failpoint\.variant\("(\w+)"\)', text)) == failpoint.VARIANTS
    calls = len(re.findall(r"failpoint\.(?:reach|variant)\(", text))
    guarded = len(re.findall(r"if [^\n]*failpoint\.ACTIVE[^\n]*(?::\n +| and )failpoint\.(?:reach|variant)\(", text))
    guarded += len(re.findall(r"failpoint\.ACTIVE and \(path := failpoint\.variant\(", text))
    assert calls == guarded


def test_without_the_variable_nothing_is_active():
    told = subprocess.run(
        [sys.executable, "-c", "from kingtask import failpoint; print(failpoint.ACTIVE)"],
        capture_output=True,
        text=True,
        env={},
        cwd=PACKAGE.parent,
        check=True,
    )
    assert told.stdout == "False\n"
