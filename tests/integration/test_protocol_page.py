"""PROTOCOL.md against a broker: its program runs, and every reply has the fields of its tables."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from kingtask import protocol
from kingtask.result import Attempt, Result
from tests.docs.blocks import blocks, promised_output
from tests.integration.rig import StackHarness
from tests.processes import PATIENCE_S, until
from tests.unit.page import PAGE, documented, section, tables

SUM = "#!/bin/sh\necho $(($1 + $2))\n"
ALWAYS = {"v", "rid", "ok"}


class PageClient:
    """A client of nothing but this page."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self.socket.connect(endpoint)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.socket.send(protocol.encode_request("r", op, fields))
        return self.reply()

    def reply(self) -> dict[str, Any]:
        reply = protocol.decode_reply(self.socket.recv())
        assert reply["v"] == 1
        return reply


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as rig:
        rig.executable("example", SUM)
        rig.start_broker()
        rig.start_worker()
        yield rig


@pytest.fixture
def peer(rig: StackHarness) -> Iterator[PageClient]:
    peer = PageClient(rig.daemons[0].endpoint)
    yield peer
    peer.socket.close(0)


def shown_reply(op: str, title: str = "reply") -> set[str]:
    return set(documented(section(f"`{op}`"), title))


def submit(peer: PageClient, **fields: Any) -> str:
    task_id = str(uuid.uuid4())
    reply = peer.ask("submit", task={"id": task_id, "name": "example", "args": ["12", "45"], **fields})
    assert reply["outcome"] == "created"
    return task_id


def test_the_program_prints_what_it_says(rig: StackHarness):
    (block,) = blocks(PAGE, "python")
    program = subprocess.run(
        [sys.executable, "-c", block.text],
        env={**os.environ, "KINGTASK_BROKER": rig.daemons[0].config["addr"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert program.stdout == promised_output(block)


@pytest.mark.parametrize("op", ["ping", "stats", "pause", "resume"])
def test_replies_that_need_no_task(peer: PageClient, op: str):
    reply = peer.ask(op, **({"queue": "other"} if op in ("pause", "resume") else {}))
    assert set(reply) - ALWAYS == shown_reply(op) - ({"owner"} if op == "ping" else set()), "this client has no key"


def test_the_facts_in_stats(peer: PageClient):
    peer.ask("wait", id=submit(peer), timeout_s=PATIENCE_S)

    def complete() -> dict[str, Any]:
        stats = peer.ask("stats")
        return stats if stats["workers"] and stats["brokers"] else {}

    reply = until(complete, "a worker and a broker in stats")
    shown = documented(section("`stats`"), "reply")
    for name, (text, *_) in shown.items():
        listed = text.split("{", 1)[1].split("}", 1)[0]
        assert {part.strip(' "') for part in listed.split(",")} == set(reply[name][0])
    for queue in reply["queues"]:
        assert all(f"`{what}`" in shown["queues"][0] for what in (*queue["totals"], *queue["rates"]))


def test_the_replies_of_submit(peer: PageClient):
    reply = peer.ask("submit", task={"name": "example", "args": ["1", "2"]})
    assert set(reply) - ALWAYS == shown_reply("submit", "reply to `task")
    reply = peer.ask("submit", tasks=[{"name": "example"}, {"name": "/"}, 5])
    assert set(reply) - ALWAYS == shown_reply("submit", "reply to `tasks")
    created, wrong, unreadable = reply["outcomes"]
    assert set(created) == {"id", "outcome"}
    assert set(wrong) == {"id", "outcome", "error"}
    assert (unreadable["id"], unreadable["outcome"], unreadable["error"]["field"]) == (None, "error", "tasks[2]")


def test_the_replies_about_one_task(peer: PageClient):
    task_id = submit(peer)
    waited = peer.ask("wait", id=task_id, timeout_s=PATIENCE_S)
    assert set(waited) - ALWAYS == shown_reply("wait")
    got = peer.ask("get", id=task_id)
    assert set(got) - ALWAYS == shown_reply("get")
    assert got["task"] == waited["task"]
    assert set(got["task"]) <= set(Result.__struct_fields__)
    assert set(got["task"]["attempts"][0]) <= set(Attempt.__struct_fields__)
    requeued = peer.ask("requeue", id=task_id, new_id=str(uuid.uuid4()))
    assert set(requeued) - ALWAYS == shown_reply("requeue")
    later = submit(peer, delay_s=3600)
    assert peer.ask("wait", id=later, timeout_s=0)["pending"] is True
    cancelled = peer.ask("cancel", id=later)
    assert set(cancelled) - ALWAYS == shown_reply("cancel")
    assert cancelled["outcome"] == "cancelled"
    forgotten = peer.ask("forget", id=later)
    assert set(forgotten) - ALWAYS == shown_reply("forget")


def test_the_reply_of_list(peer: PageClient):
    for _ in range(3):
        peer.ask("cancel", id=submit(peer, delay_s=3600))
    page = peer.ask("list", state="cancelled", limit=2)
    assert set(page) - ALWAYS == shown_reply("list")
    assert not {"args", "tags", "stdout", "stderr", "attempts"} & {field for task in page["tasks"] for field in task}
    rest = peer.ask("list", state="cancelled", limit=2, cursor=page["cursor"])
    assert not {task["id"] for task in page["tasks"]} & {task["id"] for task in rest["tasks"]}


def test_sending_again_is_safe(peer: PageClient):
    task = {"id": str(uuid.uuid4()), "name": "example", "args": ["12", "45"], "delay_s": 0.01}
    assert peer.ask("submit", task=task)["outcome"] == "created"
    assert peer.ask("submit", task=task)["outcome"] == "exists"
    peer.ask("wait", id=task["id"], timeout_s=PATIENCE_S)
    assert peer.ask("submit", task=task)["outcome"] == "exists"
    assert peer.ask("submit", task={**task, "args": []})["error"]["code"] == "id_conflict"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"", b"\x80", b"\x80"], "bad_frames"),
        ([b"\x80", b"\x80"], "bad_frames"),
        ([b"x"], "invalid_request"),
        ([b"", b"\xc1"], "malformed"),
        ([protocol.encode_request(1, "ping", {}) + b"\0"], "malformed"),
    ],
)
def test_what_is_no_message_gets_an_error_without_rid(rig: StackHarness, frames: list[bytes], code: str):
    peer = PageClient(rig.daemons[0].endpoint)
    peer.socket.send_multipart(frames)
    received = peer.socket.recv_multipart()
    peer.socket.close(0)
    assert received[:-1] == ([b""] if frames[0] == b"" else [])
    reply = protocol.decode_reply(received[-1])
    assert (reply["rid"], reply["ok"], reply["error"]["code"]) == (None, False, code)
    assert set(reply["error"]) <= {row[0] for row in tables(section("Errors"))["field of `error"]}


def test_an_empty_message_gets_nothing_and_a_req_is_served(rig: StackHarness):
    peer = PageClient(rig.daemons[0].endpoint)
    peer.socket.send(b"")
    peer.socket.send_multipart([b"", b""])
    assert peer.ask("ping")["server"] == "kingtask"  # the first that is answered
    peer.socket.close(0)
    peer = PageClient(rig.daemons[0].endpoint, zmq.REQ)
    assert peer.ask("ping")["server"] == "kingtask"
    peer.socket.close(0)


def test_now_is_the_clock_that_decides(peer: PageClient):
    now_s = peer.ask("ping")["now"]
    task_id = submit(peer, start_at=now_s + 0.3)
    task = peer.ask("wait", id=task_id, timeout_s=PATIENCE_S)["task"]
    assert task["due_at"] == pytest.approx(now_s + 0.3, abs=0.002)
    assert task["started_at"] >= now_s + 0.3
