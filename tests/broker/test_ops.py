"""The calls and the replies of the ops: values in, values out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kingtask import policy, protocol, wire
from kingtask.broker import ops
from kingtask.errors import (
    Busy,
    IdConflict,
    InvalidRequest,
    NotConfirmed,
    RequestRefused,
    StoreError,
    TaskNotFound,
    Unavailable,
    WrongState,
)
from kingtask.result import Result
from kingtask.states import State
from kingtask.store import functions
from kingtask.store.codec import Page
from kingtask.store.stats import WORKER_ALIVE_S, Peer, QueueStats, StoreStats

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
OTHER = "0d0c7a42-95a8-4f5c-8a6c-0f2f0e6f8d55"
POLICY = policy.Policy()


def answer(request: protocol.Request, value: Any) -> dict[str, Any]:
    return ops.reply_to(request, value)


REQUESTS: dict[str, protocol.Request] = {
    "get": protocol.Get(id=ID),
    "cancel": protocol.Cancel(id=ID),
    "requeue": protocol.Requeue(id=ID, new_id=OTHER),
    "forget": protocol.Forget(id=ID),
    "list": protocol.List(state=State.FAILED),
    "stats": protocol.Stats(),
    "pause": protocol.Pause(queue="mail"),
    "resume": protocol.Resume(queue="mail"),
}


def test_every_op_has_its_call_but_those_of_other_modules() -> None:
    assert set(REQUESTS) == set(protocol.OPS) - {"ping", "submit", "wait"}
    for request in (protocol.Ping(), protocol.Submit(task={}), protocol.Wait(id=ID), protocol.Stats()):
        with pytest.raises(TypeError, match="is not a single call"):
            ops.call_of(request, POLICY, None)
    for request in (protocol.Ping(), protocol.Submit(task={})):
        with pytest.raises(TypeError, match="is not a single call"):
            ops.reply_to(request, None)


@pytest.mark.parametrize("op", sorted(REQUESTS.keys() - {"stats"}))
def test_an_op_calls_the_function_of_its_name(op: str) -> None:
    function = "pause" if op == "resume" else op
    assert ops.call_of(REQUESTS[op], POLICY, None).function == function


def test_pause_and_resume_differ_in_one_argument_and_in_the_reply() -> None:
    for request, paused in ((REQUESTS["pause"], True), (REQUESTS["resume"], False)):
        arguments = ops.call_of(request, POLICY, None).arguments
        assert (arguments["queue"], arguments["paused"]) == ("mail", int(paused))
        assert answer(request, "ok") == {"queue": "mail", "paused": paused}
        with pytest.raises(Busy, match="too many queues"):
            answer(request, "too_many_queues")


def test_a_foreign_task_is_refused_as_a_missing_one() -> None:
    for request, foreign, missing in (
        (protocol.Cancel(id=ID), "foreign", "missing"),
        (protocol.Get(id=ID), functions.StoredTask(0, None, foreign=True), functions.StoredTask(0, None)),
        (protocol.Wait(id=ID), functions.StoredTask(0, None, foreign=True), functions.StoredTask(0, None)),
        (protocol.Requeue(id=ID, new_id=OTHER), ("foreign", ""), ("missing", "")),
        (protocol.Forget(id=ID), "foreign", "missing"),
    ):
        refusals = []
        for value in (foreign, missing):
            with pytest.raises(TaskNotFound) as refused:
                answer(request, value)
            refusals.append(protocol.refusal(1, refused.value))
            assert isinstance(refused.value, ops.ForeignTask) == (value is foreign)
            assert (str(refused.value) == "foreign") == (value is foreign), "for the audit log"
        assert refusals[0] == refusals[1]


@pytest.mark.parametrize("op", ["requeue", "pause", "resume"])
def test_a_call_that_may_create_something_carries_the_quota(op: str) -> None:
    assert ops.call_of(REQUESTS[op], POLICY, None).arguments["quota"] is None
    quota = functions.Quota("alice", 7, queues=8)
    assert ops.call_of(REQUESTS[op], POLICY, quota).arguments["quota"] == quota


def test_a_failed_call_is_refused_by_whether_the_op_writes() -> None:
    lost = StoreError("lost", "why", stored="unknown")
    for op, request in REQUESTS.items():
        with pytest.raises(RequestRefused) as refused:
            answer(request, lost)
        assert (refused.value.stored == "unknown") == protocol.OPS[op].writes, op


@pytest.mark.parametrize("outcome", ["ready", "scheduled", "exists"])
def test_a_stored_task_is_no_refusal(outcome: str) -> None:
    assert ops.submit_refusal(outcome, ID) is None


@pytest.mark.parametrize(
    ("outcome", "kind", "retryable", "stored"),
    [
        ("conflict", IdConflict, False, "no"),
        ("queue_full", Busy, True, "no"),
        ("too_many_queues", Busy, True, "no"),
        ("too_many_tasks", Busy, True, "no"),
        ("too_many_names", Busy, True, "no"),
        ("quota_exceeded", Busy, True, "no"),
        ("unconfirmed", NotConfirmed, True, "unknown"),
        ("??", RequestRefused, False, "unknown"),
    ],
)
def test_each_outcome_of_submit_has_its_refusal(
    outcome: str, kind: type[RequestRefused], retryable: bool, stored: str
) -> None:
    refused = ops.submit_refusal(outcome, ID)
    assert type(refused) is kind
    assert (refused.retryable, refused.stored) == (retryable, stored)


@pytest.mark.parametrize("kind", ["away", "loading", "readonly", "masterdown", "noreplicas", "misconf", "busy", "auth"])
def test_a_store_that_cannot_serve_is_unavailable(kind: str) -> None:
    refused = ops.store_refusal(StoreError(kind, "why"), writes=True)
    assert (type(refused), refused.retryable, refused.stored) == (Unavailable, True, "no")


def test_a_write_without_an_answer_may_be_stored_and_a_read_is_not() -> None:
    lost = StoreError("lost", "why", stored="unknown")
    assert type(ops.store_refusal(lost, writes=True)) is NotConfirmed
    read = ops.store_refusal(lost, writes=False)
    assert (type(read), read.stored) == (Unavailable, "no")


def test_a_full_store_has_its_own_code() -> None:
    refused = ops.store_refusal(StoreError("full", "OOM"), writes=True)
    assert (refused.code, refused.retryable) == ("store_full", True)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("scheduled", "cancelled"), ("ready", "cancelled"), ("running", "cancelling"), ("cancelled", "cancelled")],
)
def test_cancel(state: str, outcome: str) -> None:
    assert answer(protocol.Cancel(id=ID), state)["outcome"] == outcome


@pytest.mark.parametrize("state", ["succeeded", "failed", "expired"])
def test_cancel_of_an_ended_task(state: str) -> None:
    with pytest.raises(WrongState, match=state):
        answer(protocol.Cancel(id=ID), state)


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED])
def test_a_record_is_in_the_reply_as_it_is_packed(state: State) -> None:
    task = Result(id=ID, name="a", queue="q", priority=5, state=state, created_at=1.0, due_at=1.0, stdout=b"\0out")
    packed = msgspec.Raw(wire.pack(protocol.result_fields(task)))
    found = functions.StoredTask(0, task, packed)
    assert answer(protocol.Get(id=ID), found) == {"task": packed}
    reply = answer(protocol.Wait(id=ID), found)
    assert reply["pending"] == (state is State.RUNNING)
    assert protocol.ok(1, reply) == protocol.ok(1, {**reply, "task": protocol.result_fields(task)})


def test_an_unknown_task_is_not_found() -> None:
    for request, value in (
        (protocol.Cancel(id=ID), "missing"),
        (protocol.Get(id=ID), functions.StoredTask(0, None)),
        (protocol.Requeue(id=ID, new_id=OTHER), ("missing", "")),
    ):
        with pytest.raises(TaskNotFound, match=ID):
            answer(request, value)


@pytest.mark.parametrize(("found", "outcome"), [(("ready", "default"), "created"), (("exists", ""), "exists")])
def test_requeue(found: tuple[str, str], outcome: str) -> None:
    reply = answer(protocol.Requeue(id=ID, new_id=OTHER), found)
    assert reply == {"id": OTHER, "origin": ID, "outcome": outcome}


def test_forget() -> None:
    assert answer(protocol.Forget(id=ID), "forgotten") == {"id": ID, "outcome": "forgotten"}
    for state in ("scheduled", "ready", "running"):
        with pytest.raises(WrongState, match=f"has not ended yet .{state}"):
            answer(protocol.Forget(id=ID), state)


@pytest.mark.parametrize("state", ["scheduled", "ready", "running"])
def test_requeue_of_a_living_task(state: str) -> None:
    with pytest.raises(WrongState, match=state):
        answer(protocol.Requeue(id=ID, new_id=OTHER), (state, ""))


def test_requeue_of_a_task_whose_request_was_dropped() -> None:
    with pytest.raises(WrongState, match=rf"task {ID} cannot be requeued: .* dropped to make room"):
        answer(protocol.Requeue(id=ID, new_id=OTHER), ("dropped", ""))


def list_arguments(**fields: Any) -> dict[str, Any]:
    request = protocol.List(**fields)
    return ops.call_of(request, POLICY, None).arguments


def test_list_reads_living_tasks_forwards_and_ended_ones_backwards() -> None:
    scheduled = list_arguments(state=State.SCHEDULED, since=10.0, until=20.0)
    assert (scheduled["from"], scheduled["to"]) == ("10000", "20000")
    failed = list_arguments(state=State.FAILED, since=10.0, until=20.0)
    assert (failed["from"], failed["to"]) == ("20000", "10000")


def test_list_goes_on_behind_a_cursor() -> None:
    found = list_arguments(state=State.FAILED, cursor="20000:3", since=10.0)
    assert (found["from"], found["to"], found["rest"]) == ("20000", "10000", 3)


def test_a_cursor_from_a_reply_is_accepted_again() -> None:
    page = Page([], ("1763870000000.0009765625", 7))
    reply = answer(protocol.List(state=State.SCHEDULED), page)
    again = protocol.parse({"v": 1, "rid": 1, "op": "list", "state": "scheduled", "cursor": reply["cursor"]})
    assert isinstance(again, protocol.List)
    assert again.cursor == "1763870000000.0009765625:7"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"state": State.READY}, "queue"),
        ({"state": State.READY, "queue": "q", "since": 1.0}, "since"),
        ({"state": State.RUNNING, "until": 1.0}, "until"),
    ],
)
def test_list_refuses_what_it_cannot_do(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list_arguments(**fields)
    assert caught.value.field == field


def test_a_queue_is_served_by_workers_seen_lately() -> None:
    queues = [
        QueueStats(name=name, paused=False, scheduled=0, ready=1, running=0, oldest_waiting_s=0, totals={}, rates={})
        for name in ("served", "left", "never")
    ]
    workers = [
        Peer(name="a", seen_s=1.0, facts={"queues": ["served"]}),
        Peer(name="b", seen_s=WORKER_ALIVE_S + 1, facts={"queues": ["left"]}),
    ]
    packed = answer(protocol.Stats(), StoreStats(queues, workers, []))
    reply = protocol.decode_reply(protocol.ok(1, packed))
    assert {queue["name"]: queue["served"] for queue in reply["queues"]} == {
        "served": True,
        "left": False,
        "never": False,
    }
