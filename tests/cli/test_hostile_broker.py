"""A broker that puts control characters into every text of its replies: none reaches the terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest

from kingtask.errors import Busy, InvalidRequest
from kingtask.states import State
from tests.cli.tree import kingtask
from tests.client.responder import Request, Responder, result, task_reply

EVIL = "x\x1b]0;title\x07\x9b2J\x7f\r\u202e"
"""Sets the title and clears the screen, by both sets of control characters."""
ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"


def hostile(request: Request) -> Any:
    match request["op"]:
        case "ping":
            return {"server": EVIL, "broker": EVIL, "version": EVIL, "protocols": [EVIL], "ready": True, "ack": EVIL}
        case "cancel":
            return {"id": ID, "outcome": EVIL}
        case "get" | "wait":
            texts = {"name": EVIL, "queue": EVIL, "args": (EVIL,), "tags": (EVIL,), "reason": EVIL, "worker": EVIL}
            return task_reply(result(ID, State.FAILED, **texts))
        case "list":
            row = {"id": EVIL, "name": EVIL, "queue": EVIL, "priority": 5, "state": "ready", "reason": EVIL}
            return {"tasks": [{**row, "created_at": 1.0, "due_at": 1.0, "worker": EVIL}], "cursor": None}
        case "pause":
            return Busy(EVIL, retry_after_s=60.0)  # longer than the command waits: it gives up at once
        case op:
            return InvalidRequest(f"{op}: {EVIL}", field=EVIL)


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    responder = Responder(hostile)
    yield responder.endpoint
    responder.stop()


COMMANDS = [
    ("ping",),
    ("cancel", ID),
    ("get", ID),
    ("wait", ID),
    ("list",),
    ("stats",),
    ("submit", "example"),
    ("pause", "default"),
]


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_control_character_of_a_broker_reaches_the_terminal(
    broker: str, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    done = kingtask(*command, *options, broker=broker)
    text = (done.stdout + done.stderr).decode()
    assert b"Traceback" not in done.stderr
    assert "title" in text, "the broker was heard"
    assert {c for c in text if unicodedata.category(c) == "Cc"} <= {"\n"}


def test_json_has_the_same_value_escaped(broker: str) -> None:

    assert json.loads(kingtask("cancel", ID, "--json", broker=broker).stdout)["outcome"] == EVIL
