"""The op `submit`: batches, hints, outcomes and replies, without sockets and without Redis."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest

from kingtask import protocol, topics
from kingtask.broker import submit as module
from kingtask.broker.authorizer import AuditTrail, ClientPolicy
from kingtask.broker.submit import SubmitBatcher, prepare
from kingtask.clock import monotonic_s
from kingtask.config.permissions_file import Rule
from kingtask.errors import Busy, IdConflict, InvalidRequest, NotConfirmed, RequestRefused
from kingtask.policy import Policy
from kingtask.store.functions import REFUSED, Quota, Submitted
from tests.broker.fakes import LOST, FakeStore, FakeTicker, FakeWakeups, SubmitSent

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
OTHER = "0d0c7a42-95a8-4f5c-8a6c-0f2f0e6f8d55"
POLICY = Policy()


class BatcherHarness:
    """A batcher between fakes; `replies` are those of all requests."""

    def __init__(self, idle_workers: int = 0) -> None:
        self.store = FakeStore()
        self.wakeups = FakeWakeups(idle_workers)
        self.ticker = FakeTicker()
        self.batcher = SubmitBatcher(self.store, POLICY, self.wakeups, self.ticker)
        self.replies: list[Any] = []

    def submit(self, client: ClientPolicy | None = None, **fields: Any) -> None:
        """One task, and the end of the drain."""
        self.batcher.submit(protocol.Submit(task={"name": "a", **fields}), client, self.replies.append)
        self.batcher.flush()

    def bulk(self, *tasks: dict[str, Any]) -> None:
        self.batcher.submit(protocol.Submit(tasks=list(tasks)), None, self.replies.append)
        self.batcher.flush()

    def the_submit(self) -> SubmitSent:
        (sent,) = self.store.submits
        return sent


def client(**rule: Any) -> ClientPolicy:
    return ClientPolicy(AuditTrail("alice", monotonic_s), Rule(**rule), "clients.alice", None)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lone_submit_is_sent_at_the_end_of_its_drain() -> None:
    setting = BatcherHarness()
    setting.batcher.submit(protocol.Submit(task={"name": "a", "id": ID}), None, setting.replies.append)
    assert not setting.store.submits
    setting.batcher.flush()
    assert [row[0] for row in setting.the_submit().call.arguments["tasks"]] == [ID]


def test_submits_that_arrive_while_a_call_is_in_flight_share_the_next_one() -> None:
    setting = BatcherHarness()
    for _ in range(4):
        setting.submit()
    assert len(setting.store.submits) == 1
    setting.store.submits[0].succeed("ready")
    assert [len(sent.call.arguments["tasks"]) for sent in setting.store.submits] == [1, 3]


def test_the_next_batch_does_not_wait_for_the_replicas_of_the_last() -> None:
    setting = BatcherHarness()
    setting.submit()
    setting.submit()
    setting.store.submits[0].stored(LOST)
    assert len(setting.store.submits) == 2


def test_a_full_batch_is_sent_although_a_call_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 2)
    setting = BatcherHarness()
    for _ in range(4):
        setting.submit()
    assert [len(sent.call.arguments["tasks"]) for sent in setting.store.submits] == [1, 2]


def test_a_batch_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2_500)
    setting = BatcherHarness()
    setting.bulk(*[{"name": "a", "stdin": bytes(1_000)}] * 5)
    assert [len(sent.call.arguments["tasks"]) for sent in setting.store.submits] == [2, 2]
    for sent in setting.store.submits[:2]:
        sent.succeed("ready", "ready")
    assert len(setting.store.submits) == 3, "the last task waited until no call was in flight"


def test_a_reload_applies_to_later_submits() -> None:
    setting = BatcherHarness()
    setting.batcher.reconfigure(Policy(max_queue_length=7))
    setting.submit()
    assert 7 in setting.the_submit().call.arguments.values()


# ── hints and instants ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_is_sent_alone_is_announced_early_and_once() -> None:
    setting = BatcherHarness(idle_workers=2)
    setting.submit()
    assert setting.wakeups.early == ["default"]
    setting.the_submit().succeed("ready")
    assert setting.wakeups.gained == []


def test_an_early_hint_that_is_too_old_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now_us = 1_000_000
    monkeypatch.setattr(module, "monotonic_us", lambda: now_us)
    setting = BatcherHarness(idle_workers=1)
    setting.submit()
    now_us += topics.EARLY_US
    setting.the_submit().succeed("ready")
    assert setting.wakeups.gained == [("default", 1)]


def test_without_an_idle_worker_the_hint_follows_the_reply_of_redis() -> None:
    setting = BatcherHarness()
    setting.submit()
    assert setting.wakeups.gained == []
    setting.the_submit().succeed("ready")
    assert setting.wakeups.gained == [("default", 1)]


@pytest.mark.parametrize("later", [{"delay_s": 5.0}, {"start_at": 2_000_000_000.0}])
def test_a_scheduled_task_gives_no_hint_and_its_instant_to_the_ticker(later: dict[str, Any]) -> None:
    setting = BatcherHarness(idle_workers=1)
    setting.submit(**later)
    setting.the_submit().succeed("scheduled", due_ms=[77])
    assert (setting.wakeups.early, setting.wakeups.gained, setting.ticker.learned) == ([], [], [77])


def test_tasks_sent_together_are_announced_when_they_are_stored() -> None:
    setting = BatcherHarness(idle_workers=2)
    setting.bulk({"name": "a"}, {"name": "b"})
    assert setting.wakeups.early == []
    setting.the_submit().succeed("ready", "ready")
    assert setting.wakeups.gained == [("default", 2)]


# ── the reply to one task ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("outcome", "shown"), [("ready", "created"), ("scheduled", "created"), ("exists", "exists")])
def test_an_accepted_task_is_acknowledged_once_it_is_confirmed(outcome: str, shown: str) -> None:
    setting = BatcherHarness()
    setting.submit(id=ID)
    sent = setting.the_submit()
    sent.stored(Submitted(1, [outcome], [], []))
    assert setting.replies == []
    sent.confirm(True)
    assert setting.replies == [{"id": ID, "outcome": shown, "ack": "fsync"}]


def test_a_task_without_an_id_gets_one() -> None:
    setting = BatcherHarness()
    setting.submit()
    setting.the_submit().succeed("ready")
    assert UUID(setting.replies[0]["id"]).version == 4


def test_a_task_that_was_not_confirmed_may_be_stored() -> None:
    setting = BatcherHarness()
    setting.submit()
    setting.the_submit().succeed("ready", reached=False)
    assert [type(reply) for reply in setting.replies] == [NotConfirmed]


@pytest.mark.parametrize("outcome", sorted({"conflict", *REFUSED}))
def test_a_refusal_needs_no_confirmation(outcome: str) -> None:
    setting = BatcherHarness()
    setting.submit()
    setting.the_submit().succeed(outcome, reached=False)
    assert [type(reply) for reply in setting.replies] == [IdConflict if outcome == "conflict" else Busy]


def test_a_call_without_an_answer_leaves_open_whether_the_task_is_stored() -> None:
    setting = BatcherHarness()
    setting.submit()
    setting.the_submit().stored(LOST)
    (reply,) = setting.replies
    assert isinstance(reply, RequestRefused)
    assert reply.stored == "unknown"


@pytest.mark.parametrize("task", [{"name": "../x"}, {"priority": 10}])
def test_an_invalid_task_is_refused_before_redis(task: dict[str, Any]) -> None:
    setting = BatcherHarness()
    (field,) = task
    with pytest.raises(InvalidRequest, match=rf"task\.{field}"):
        setting.submit(**task)
    assert not setting.store.submits


# ── the reply to several ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bulk_reply_has_an_outcome_for_each_task_in_order() -> None:
    setting = BatcherHarness()
    setting.bulk({"name": "a", "id": ID}, {"name": "../x", "id": "no-id"}, {"name": "c", "id": OTHER})
    assert setting.replies == []
    setting.the_submit().succeed("ready", "conflict")
    (reply,) = setting.replies
    assert reply["ack"] == "fsync"
    created, invalid, conflict = reply["outcomes"]
    assert created == {"id": ID, "outcome": "created"}
    assert (invalid["id"], invalid["outcome"], invalid["error"]["code"]) == ("no-id", "error", "invalid_request")
    assert invalid["error"]["message"].startswith("tasks[1].")
    assert (conflict["id"], conflict["error"]["code"]) == (OTHER, "id_conflict")


def test_a_bulk_reply_without_a_valid_task_needs_no_redis() -> None:
    setting = BatcherHarness()
    setting.bulk({"name": "../x"}, {})
    assert not setting.store.submits
    assert [outcome["outcome"] for outcome in setting.replies[0]["outcomes"]] == ["error", "error"]


def test_a_bulk_reply_comes_when_the_last_of_its_calls_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 1)
    setting = BatcherHarness()
    setting.bulk({"name": "a"}, {"name": "b"})
    first, second = setting.store.submits
    second.succeed("ready")
    assert setting.replies == []
    first.succeed("ready")
    assert [outcome["outcome"] for outcome in setting.replies[0]["outcomes"]] == ["created", "created"]


# ── clients with rules ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_quota_and_the_owner_of_a_client_travel_with_its_task() -> None:
    setting = BatcherHarness()
    setting.submit(client(max_outstanding=7))
    setting.the_submit().succeed("ready")
    setting.submit()
    with_quota, without = (sent.call.arguments["tasks"][0] for sent in setting.store.submits)
    assert (with_quota[3:], without[3:]) == ((Quota("alice", 7), "alice"), (None, None))


def test_a_task_outside_the_rules_of_its_client_is_denied() -> None:
    setting = BatcherHarness()
    with pytest.raises(RequestRefused, match=r"clients\.alice\.queues"):
        setting.submit(client(queues=("mail",)))
    assert not setting.store.submits


def test_prepared_tells_what_the_broker_needs_of_a_task() -> None:
    task = prepare({"name": "a", "queue": "mail", "id": ID}, 1.0, "task", None)
    assert (task.id, task.name, task.queue, task.immediate) == (ID, "a", "mail", True)
    assert task.row[0] == ID
    assert task.size == len(task.row[1]) + len(task.row[2])
    assert not prepare({"name": "a", "delay_s": 0.1}, 1.0, "task", None).immediate


def test_the_debug_log_names_task_and_outcome(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kingtask.broker")
    setting = BatcherHarness()
    setting.submit(id=ID, queue="mail")
    setting.the_submit().succeed("ready")
    assert f"submit=ready task={ID} name=a queue=mail" in caplog.messages
