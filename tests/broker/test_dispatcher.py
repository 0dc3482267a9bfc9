"""The dispatcher: rights and bounds, the call of each op, and one reply to each message."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kingtask import protocol, wire
from kingtask.broker import stats_gatherer
from kingtask.broker.auth import AuthenticatedPeer, Peer
from kingtask.broker.authorizer import AuditTrail, ClientPolicy
from kingtask.broker.counters import Counters
from kingtask.broker.dispatcher import Dispatcher
from kingtask.broker.reads import MOST
from kingtask.broker.submit import SubmitBatcher
from kingtask.broker.waiters import Waiters
from kingtask.config import BrokerConfig, permissions_file
from kingtask.errors import StoreError
from kingtask.result import Result
from kingtask.states import State
from kingtask.store.codec import Page
from kingtask.store.functions import Quota, StoredTask
from kingtask.store.stats import QueueStats, StoreStats
from tests.broker.fakes import LOST, FakeRouter, FakeStore, FakeTicker, FakeWakeups
from tests.processes import PATIENCE_S

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
OTHER = "0d0c7a42-95a8-4f5c-8a6c-0f2f0e6f8d55"
PEER: Peer = (b"peer",)
NO_STATS: tuple[list[Any], StoreStats] = ([], StoreStats([], [], []))
"""The first answer of a gathering: no queue is left to be read."""


def stored(state: State = State.READY, *, name: str = "a", queue: str = "default") -> StoredTask:
    task = Result(id=ID, name=name, queue=queue, priority=5, state=state, created_at=1.0, due_at=1.0)
    return StoredTask(1, task, msgspec.Raw(wire.pack(protocol.result_fields(task))))


class DispatcherHarness:
    """A dispatcher between fakes."""

    def __init__(self, **config: Any) -> None:
        self.counters = Counters()
        self.store = FakeStore()
        self.router = FakeRouter(self.counters)
        self.config = BrokerConfig(**config)
        self.batcher = SubmitBatcher(self.store, self.config.policy, FakeWakeups(), FakeTicker())
        self.dispatcher = Dispatcher(
            "broker.1", self.config, self.store, self.router, self.batcher, Waiters(self.store)
        )

    def ask(self, op: str, rid: int = 7, peer: Peer = PEER, **fields: Any) -> None:
        self.dispatcher.dispatch(peer, protocol.encode_request(rid, op, fields))
        self.batcher.flush()

    def reply(self, peer: Peer = PEER) -> dict[str, Any]:
        """The only reply so far, which is then forgotten."""
        ((to, fields),) = self.router.replies
        self.router.replies.clear()
        assert to == peer
        return fields

    def code(self, peer: Peer = PEER) -> str:
        code: str = self.reply(peer)["error"]["code"]
        return code


@pytest.fixture
def setting() -> DispatcherHarness:
    return DispatcherHarness()


# ── one message, one reply ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_ping_is_answered_without_redis(setting: DispatcherHarness) -> None:
    setting.store.connected = False
    setting.ask("ping")
    reply = setting.reply()
    assert (reply["ok"], reply["rid"], reply["broker"], reply["ready"]) == (True, 7, "broker.1", False)
    assert reply["limits"] == protocol.LIMITS
    assert not setting.store.sent


async def test_a_ping_names_the_owner_to_a_client_with_a_key(setting: DispatcherHarness, tmp_path: Path) -> None:
    alice = AuthenticatedPeer(PEER, "alice")
    ruled = with_permissions(tmp_path, clients={"alice": {"owner": "team", "ops": []}}, default={"owner": "team"})
    for harness, owner in ((setting, "alice"), (ruled, "team")):
        harness.ask("ping", peer=alice)
        assert harness.reply()["owner"] == owner
        harness.ask("ping")
        assert "owner" not in harness.reply()


REPLIES: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "get": ({"id": ID}, stored(), {"task": {"id": ID, "name": "a"}}),
    "cancel": ({"id": ID}, "ready", {"id": ID, "outcome": "cancelled"}),
    "forget": ({"id": ID}, "forgotten", {"id": ID, "outcome": "forgotten"}),
    "list": ({"state": "failed"}, Page([], None), {"tasks": [], "cursor": None}),
    "stats": ({}, NO_STATS, {"queues": [], "workers": [], "brokers": []}),
    "pause": ({"queue": "mail"}, "ok", {"queue": "mail", "paused": True}),
    "resume": ({"queue": "mail"}, "ok", {"queue": "mail", "paused": False}),
}


@pytest.mark.parametrize("op", REPLIES)
async def test_an_op_is_one_call_and_its_value_the_reply(setting: DispatcherHarness, op: str) -> None:
    fields, value, expected = REPLIES[op]
    setting.ask(op, **fields)
    assert setting.router.replies == []
    setting.store.answer("pause" if op == "resume" else op, value)
    reply = setting.reply()
    assert (reply["rid"], reply["ok"]) == (7, True)
    assert {**expected, "task": None} == {**{key: reply[key] for key in expected}, "task": None}
    if op == "get":
        assert reply["task"]["id"] == ID


async def test_a_submit_is_answered_when_it_is_confirmed(setting: DispatcherHarness) -> None:
    setting.ask("submit", task={"name": "a", "id": ID})
    (sent,) = setting.store.submits
    assert setting.dispatcher.pending == 1
    sent.succeed("ready")
    assert setting.reply() == {"v": 1, "rid": 7, "ok": True, "id": ID, "outcome": "created", "ack": "fsync"}
    assert (setting.dispatcher.pending, setting.dispatcher.pending_bytes) == (0, 0)


@pytest.mark.parametrize(("reached", "ok"), [(True, True), (False, False)])
async def test_a_requeue_is_answered_when_it_is_confirmed(setting: DispatcherHarness, reached: bool, ok: bool) -> None:
    setting.ask("requeue", id=ID, new_id=OTHER)
    setting.store.answer("requeue", ("ready", "default"))
    assert setting.router.replies == []
    setting.store.confirms.pop()(reached)
    reply = setting.reply()
    assert reply["ok"] == ok
    assert ok or reply["error"]["code"] == "not_confirmed"


async def test_a_refused_requeue_waits_for_no_replica(setting: DispatcherHarness) -> None:
    setting.ask("requeue", id=ID, new_id=OTHER)
    setting.store.answer("requeue", ("missing", ""))
    assert setting.code() == "not_found"


@pytest.mark.parametrize(
    ("message", "code", "rid"),
    [
        (b"\xc1", "malformed", None),
        (wire.pack({"v": 1, "rid": 3, "op": "fly"}), "unknown_op", 3),
        (wire.pack({"v": 2, "rid": 3, "op": "ping"}), "unsupported_version", 3),
        (wire.pack({"v": 1, "rid": 3, "op": "get", "id": "x"}), "invalid_request", 3),
        (wire.pack({"v": 1, "rid": [], "op": "ping"}), "invalid_request", None),
    ],
)
async def test_a_bad_request_is_refused_with_its_rid(
    setting: DispatcherHarness, message: bytes, code: str, rid: int | None
) -> None:
    setting.dispatcher.dispatch(PEER, message)
    reply = setting.reply()
    assert (reply["error"]["code"], reply["rid"]) == (code, rid)
    assert setting.counters.counts == {code: 1}


async def test_a_fault_of_the_broker_costs_one_reply(
    setting: DispatcherHarness, caplog: pytest.LogCaptureFixture
) -> None:
    setting.ask("list", state="failed")
    setting.store.answer("list", "no page")
    assert setting.code() == "internal"
    assert setting.dispatcher.pending == 0
    assert any(message.startswith("request=failed") for message in caplog.messages)


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_over_max_pending_the_reply_is_busy() -> None:
    setting = DispatcherHarness(max_pending=1)
    setting.ask("stats")
    setting.ask("stats")
    assert setting.code() == "busy"
    setting.store.answer("stats", LOST)
    setting.router.replies.clear()
    setting.ask("stats")
    assert setting.router.replies == [], "there is room again"


async def test_over_max_pending_bytes_the_reply_is_busy(setting: DispatcherHarness) -> None:
    setting.dispatcher.pending_bytes = setting.config.max_pending_bytes
    setting.ask("stats")
    assert setting.code() == "busy"


async def test_without_redis_the_reply_is_unavailable(setting: DispatcherHarness) -> None:
    setting.store.connected = False
    setting.ask("submit", task={"name": "a"})
    reply = setting.reply()
    assert (reply["error"]["code"], reply["error"]["stored"]) == ("unavailable", "no")
    assert "connection refused" in reply["error"]["message"]


async def test_a_call_without_an_answer_leaves_open_whether_a_write_happened(setting: DispatcherHarness) -> None:
    for op, stored_ in (("cancel", "unknown"), ("get", "no")):
        setting.ask(op, id=ID)
        setting.store.answer(op, LOST)
        assert setting.reply()["error"]["stored"] == stored_


async def test_a_reload_changes_the_bounds(setting: DispatcherHarness) -> None:
    setting.dispatcher.reconfigure(BrokerConfig(max_pending=1), None)
    setting.ask("stats")
    setting.ask("stats")
    assert setting.code() == "busy"


# ── waits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_wait_is_answered_at_the_end_of_the_task_and_is_not_pending(setting: DispatcherHarness) -> None:
    setting.ask("wait", id=ID, timeout_s=60.0)
    assert (setting.dispatcher.pending, setting.dispatcher.waiting) == (0, 1)
    setting.store.answer("wait", "succeeded")
    setting.store.answer("get", stored(State.SUCCEEDED))
    reply = setting.reply()
    assert (reply["task"]["state"], reply["pending"]) == ("succeeded", False)
    assert setting.dispatcher.waiting == 0


async def test_a_wait_that_timed_out_is_pending_still(setting: DispatcherHarness) -> None:
    setting.ask("wait", id=ID)
    setting.store.answer("wait", "succeeded")
    setting.store.answer("get", stored(State.RUNNING))
    assert setting.reply()["pending"] is True


async def test_a_wait_reads_its_task_by_its_owner(tmp_path: Path) -> None:
    """The record may have gone meanwhile, by its time or by `forget`, and another client may have used the id."""
    setting = with_permissions(tmp_path, clients={"alice": {"of": "own"}})
    alice = AuthenticatedPeer(PEER, "alice")
    setting.ask("wait", peer=alice, id=ID)
    setting.store.answer("wait", "succeeded")
    assert setting.store.answer("get", FOREIGN).arguments["of"] == "alice"
    assert setting.code(alice) == "not_found"


async def test_a_wait_that_has_ended_is_in_progress_until_its_reply(setting: DispatcherHarness) -> None:
    setting.ask("wait", id=ID)
    setting.store.answer("wait", "succeeded")
    assert (setting.dispatcher.pending, setting.dispatcher.waiting) == (1, 0)
    draining = asyncio.ensure_future(setting.dispatcher.drain(PATIENCE_S))
    await asyncio.sleep(0)
    assert not draining.done()
    setting.store.answer("get", stored(State.SUCCEEDED))
    await draining
    assert setting.reply()["pending"] is False
    assert (setting.dispatcher.pending, setting.dispatcher.pending_bytes) == (0, 0)


async def test_all_that_wait_for_a_task_get_one_record(setting: DispatcherHarness) -> None:
    for _ in range(MOST):
        setting.ask("get", id=OTHER)
    for rid in range(100):
        setting.ask("wait", rid, id=ID)
    setting.store.sent[-1].answer("succeeded")
    for call, answer in list(setting.store.sent):
        if call.function == "get":
            answer(LOST)
    await asyncio.sleep(0)
    setting.router.replies.clear()
    call, answer = setting.store.sent[-1]
    answer(stored(State.SUCCEEDED))
    assert call.arguments["id"] == ID
    assert sorted(reply["rid"] for _, reply in setting.router.replies) == list(range(100))
    assert {reply["task"]["state"] for _, reply in setting.router.replies} == {"succeeded"}


async def test_a_wait_for_an_unknown_task_is_not_found(setting: DispatcherHarness) -> None:
    setting.ask("wait", id=ID)
    setting.store.answer("wait", "missing")
    assert setting.code() == "not_found"


async def test_over_max_waits_the_reply_is_busy() -> None:
    setting = DispatcherHarness(max_waits=1)
    setting.ask("wait", id=ID)
    setting.ask("wait", id=ID)
    assert setting.code() == "busy"


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_broker_that_stops_ends_waits_and_answers_requests_in_progress(setting: DispatcherHarness) -> None:
    setting.ask("wait", id=ID)
    setting.ask("stats", rid=8)
    draining = asyncio.ensure_future(setting.dispatcher.drain(PATIENCE_S))
    await asyncio.sleep(0)
    assert setting.code() == "unavailable", "the wait"
    setting.ask("stats", rid=9)
    assert setting.code() == "unavailable"
    assert not draining.done()
    setting.store.sent.pop(0)
    setting.store.answer("stats", NO_STATS)
    await draining
    assert setting.reply()["rid"] == 8


async def test_a_drain_ends_at_its_timeout(setting: DispatcherHarness, caplog: pytest.LogCaptureFixture) -> None:
    setting.ask("stats")
    await setting.dispatcher.drain(0.001)
    assert "broker=stopping unanswered=1" in caplog.messages


async def test_a_client_that_leaves_replies_unread_gets_busy_from_ops_that_only_read(
    setting: DispatcherHarness,
) -> None:
    setting.ask("get", id=ID)
    setting.router.leaves_unread = True
    setting.store.answer("get", stored(State.SUCCEEDED))
    assert setting.code() == "busy"
    for op in ("get", "wait"):
        setting.ask(op, id=ID)
        assert setting.code() == "busy"
        assert not setting.store.sent
    setting.ask("cancel", id=ID)
    setting.store.answer("cancel", "ready")
    assert setting.reply()["ok"]


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_permissions(directory: Path, **file: Any) -> DispatcherHarness:
    path = directory / "permissions.yaml"
    path.write_text(yaml.safe_dump(file))
    return DispatcherHarness(permissions=str(path))


async def test_a_client_is_known_by_its_key(tmp_path: Path) -> None:
    setting = with_permissions(tmp_path, clients={"alice": {"ops": ["stats"]}})
    alice = AuthenticatedPeer(PEER, "alice")
    setting.ask("stats", peer=alice)
    assert setting.router.replies == []
    setting.ask("cancel", peer=alice, id=ID)
    assert setting.code(alice) == "permission_denied"
    setting.ask("stats")
    assert setting.code() == "permission_denied", "without a key"


async def test_an_op_by_id_reads_the_task_before_it_acts(tmp_path: Path) -> None:
    setting = with_permissions(tmp_path, default={"queues": ["mail"]})
    setting.ask("cancel", id=ID)
    setting.store.answer("get", stored(queue="mail"))
    setting.store.answer("cancel", "ready")
    assert setting.reply()["ok"]
    setting.ask("cancel", id=ID)
    setting.store.answer("get", stored(queue="other"))
    assert setting.code() == "permission_denied"
    assert not setting.store.sent
    setting.ask("get", id=ID)
    setting.store.answer("get", stored(queue="mail"))
    assert setting.reply()["task"]["id"] == ID, "which is read once"
    for found, code in ((StoredTask(1, None), "not_found"), (LOST, "unavailable")):
        setting.ask("cancel", id=ID)
        setting.store.answer("get", found)
        assert setting.code() == code


FOREIGN = StoredTask(1, None, foreign=True)
BY_ID: dict[str, tuple[Any, Any]] = {
    "get": (FOREIGN, StoredTask(1, None)),
    "wait": ("foreign", "missing"),
    "cancel": ("foreign", "missing"),
    "requeue": (("foreign", ""), ("missing", "")),
    "forget": ("foreign", "missing"),
}
"""Of each op by id: what its call returns for the task of another owner, and for a task that does not exist."""


@pytest.mark.parametrize("bounds", [{"of": "own"}, {"queues": ["mail"]}], ids=["own", "bounded"])
@pytest.mark.parametrize("op", BY_ID)
async def test_a_foreign_task_is_not_found_and_the_log_has_the_truth(
    op: str, bounds: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kingtask.audit")
    setting = with_permissions(tmp_path, clients={"alice": bounds, "bob": {}})
    alice, bob = (AuthenticatedPeer(PEER, name) for name in ("alice", "bob"))
    replies, calls = [], []
    fields: dict[str, Any] = {"id": ID, "new_id": OTHER} if op == "requeue" else {"id": ID}
    for found in BY_ID[op]:
        setting.ask(op, peer=alice, **fields)
        first = "get" if "queues" in bounds else op
        shown = FOREIGN if found == BY_ID[op][0] else StoredTask(1, None)
        calls.append(setting.store.answer(first, shown if first == "get" else found))
        assert not setting.store.sent
        replies.append(setting.reply())
    assert calls[0].arguments == calls[1].arguments
    assert calls[0].arguments["of"] == "alice"
    assert replies[0] == replies[1]
    assert replies[0]["error"]["code"] == "not_found"
    lines = [line for line in caplog.messages if line.endswith("outcome=foreign")]
    assert len(lines) == 1
    assert lines[0].startswith(f"audit={op} client=alice id={ID}")
    setting.ask(op, peer=bob, **fields)
    assert "of" not in setting.store.sent[0].call.arguments


async def test_the_line_for_a_foreign_task_does_not_delay_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = with_permissions(tmp_path, clients={"alice": {"of": "own"}})
    alice = AuthenticatedPeer(PEER, "alice")
    order: list[str] = []
    monkeypatch.setattr(setting.router, "refuse", lambda *_: order.append("reply"))
    monkeypatch.setattr(AuditTrail, "answered", lambda *_: order.append("audit"))
    for op in ("get", "cancel"):
        for found in BY_ID[op]:
            setting.ask(op, peer=alice, id=ID)
            setting.store.answer(op, found)
    assert order == ["reply", "audit", "reply", "audit", "reply", "audit", "reply"]


async def test_a_list_of_own_tasks_and_a_submit_carry_the_owner(tmp_path: Path) -> None:
    setting = with_permissions(tmp_path, clients={"alice": {"of": "own", "owner": "team"}})
    alice = AuthenticatedPeer(PEER, "alice")
    setting.ask("list", peer=alice, state="failed")
    assert setting.store.sent[0].call.arguments["of"] == "team"
    setting.ask("submit", peer=alice, task={"name": "a", "id": ID})
    (sent,) = setting.store.submits
    assert sent.call.arguments["tasks"][0][4] == "team"


def numbers(queue: str) -> QueueStats:
    return QueueStats(
        name=queue, paused=False, scheduled=0, ready=0, running=0, oldest_waiting_s=0, totals={}, rates={}
    )


async def test_stats_show_only_the_queues_of_a_client(tmp_path: Path) -> None:
    setting = with_permissions(tmp_path, default={"queues": ["mail"]})
    setting.ask("stats")
    queues = [numbers("mail"), numbers("other")]
    setting.store.answer("stats", ([], StoreStats(queues, [], [])))
    assert [queue["name"] for queue in setting.reply()["queues"]] == ["mail"]


async def test_stats_of_many_clients_are_one_gathering_and_packed_once_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_gatherer, "APART_S", 0.0)
    monkeypatch.setattr(stats_gatherer, "REST", 0)
    setting = with_permissions(tmp_path, clients={"alice": {"queues": ["mail"]}, "bob": {}})
    alice, bob = (AuthenticatedPeer(PEER, name) for name in ("alice", "bob"))
    filtered: list[Any] = []
    original = ClientPolicy.filtered

    def counted(*args: Any) -> Any:
        filtered.append(args)
        return original(*args)

    monkeypatch.setattr(ClientPolicy, "filtered", counted)
    setting.ask("stats", peer=bob)
    for rid in range(5):
        setting.ask("stats", rid, peer=alice)
        setting.ask("stats", rid, peer=bob)
    setting.store.answer("stats", NO_STATS)
    setting.router.replies.clear()
    filtered.clear()
    setting.store.answer("stats", ([], StoreStats([numbers("mail"), numbers("other")], [], [])))
    assert setting.store.sent == []
    assert len(filtered) == 2
    for client, shown in ((alice, ["mail"]), (bob, ["mail", "other"])):
        replies = [reply for peer, reply in setting.router.replies if peer is client]
        assert [reply["rid"] for reply in replies] == list(range(5))
        assert all([queue["name"] for queue in reply["queues"]] == shown for reply in replies)


async def test_stats_take_half_of_the_requests_in_progress_at_most() -> None:
    setting = DispatcherHarness(max_pending=4)
    for _ in range(2):
        setting.ask("stats")
    assert setting.router.replies == []
    setting.ask("stats")
    assert setting.code() == "busy"
    setting.ask("get", id=ID)
    assert setting.router.replies == []


async def test_a_requeue_carries_the_quota_of_its_client(tmp_path: Path) -> None:
    setting = with_permissions(tmp_path, default={"max_outstanding": 7})
    setting.ask("requeue", id=ID, new_id=OTHER)
    assert setting.store.sent[0].call.arguments["quota"] == Quota("anonymous", 7)


async def test_a_reload_changes_the_permissions(setting: DispatcherHarness, tmp_path: Path) -> None:
    path = tmp_path / "permissions.yaml"
    path.write_text("default: {ops: [get]}")
    setting.dispatcher.reconfigure(setting.config, permissions_file.load(path))
    setting.ask("stats")
    assert setting.code() == "permission_denied"


@pytest.mark.parametrize("op", [op for op in protocol.OPS.values() if op.name not in {"ping", "wait", "submit"}])
async def test_only_audited_ops_are_in_the_audit_log(
    op: protocol.Op, setting: DispatcherHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kingtask.audit")
    fields: dict[str, dict[str, Any]] = {
        "get": {"id": ID},
        "cancel": {"id": ID},
        "requeue": {"id": ID, "new_id": OTHER},
        "forget": {"id": ID},
        "stats": {},
    }
    fields |= {"list": {"state": "failed"}, "pause": {"queue": "mail"}, "resume": {"queue": "mail"}}
    setting.ask(op.name, **fields[op.name])
    setting.store.sent.pop().answer(StoreError("away", "gone"))
    lines = [message for message in caplog.messages if message.startswith(f"audit={op.name} client=anonymous ")]
    assert len(lines) == op.audited


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_with_metrics_each_reply_is_timed_by_its_op() -> None:
    setting = DispatcherHarness(metrics_addr="127.0.0.1:9597")
    assert set(setting.dispatcher.times) == set(protocol.OPS) - {"ping"}
    setting.ask("stats")
    setting.store.answer("stats", NO_STATS)
    counted = {op: times.buckets()[-1][1] for op, times in setting.dispatcher.times.items()}
    assert counted == {**dict.fromkeys(counted, 0), "stats": 1}


async def test_without_metrics_nothing_is_timed(setting: DispatcherHarness) -> None:
    assert setting.dispatcher.times == {}
