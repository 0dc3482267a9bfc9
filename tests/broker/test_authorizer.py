"""The rights of clients: values in, a quota or a refusal out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import protocol
from kingtask.broker.authorizer import (
    UNCHANGED_BURST,
    AuditTrail,
    Authorizer,
    ClientPolicy,
    Rate,
    kept_bounds,
)
from kingtask.broker.ops import ForeignTask
from kingtask.config.permissions_file import PermissionsFile, Rule
from kingtask.curve import ANONYMOUS
from kingtask.errors import Busy, NotConfirmed, PermissionDenied, RequestRefused, TaskNotFound
from kingtask.result import Result
from kingtask.states import State
from kingtask.store.codec import NO_SPEC, pack_spec
from kingtask.store.functions import Quota
from kingtask.task import TaskSpec
from tests.broker.fakes import StoppedClock

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
NEW_ID = "0d0c7a42-95a8-4f5c-8a6c-0f2f0e6f8d55"


def policy(**rule: Any) -> ClientPolicy:
    read = Rule(**rule)
    rate = Rate(read.submits_per_second) if read.submits_per_second else None
    return ClientPolicy(AuditTrail("alice", StoppedClock()), read, "clients.alice", rate)


def rules(default: Rule | None = None, **clients: Rule) -> PermissionsFile:
    return PermissionsFile(clients=clients, default=default)


def policy_of(authorizer: Authorizer, client: str) -> ClientPolicy:
    found = authorizer.policy_of(client)
    assert found is not None
    return found


def test_a_client_without_an_entry_has_no_rights() -> None:
    authorizer = Authorizer(rules(alice=Rule()))
    policy_of(authorizer, "alice").check_request(protocol.Stats())
    for client in ("bob", ANONYMOUS):
        with pytest.raises(PermissionDenied, match=r"op: this client may not stats \(default.ops"):
            policy_of(authorizer, client).check_request(protocol.Stats())


def test_a_client_without_an_entry_has_the_default_rights() -> None:
    authorizer = Authorizer(rules(Rule(ops=("get",)), alice=Rule()))
    bob = policy_of(authorizer, "bob")
    bob.check_request(protocol.Get(id=ID))
    with pytest.raises(PermissionDenied, match=r"default\.ops"):
        bob.check_request(protocol.Cancel(id=ID))


def test_without_permissions_there_is_no_rule_but_an_owner_for_a_client_with_a_key() -> None:
    authorizer = Authorizer(None)
    assert authorizer.policy_of(ANONYMOUS) is None
    alice = policy_of(authorizer, "alice")
    assert (alice.owner, alice.of, alice.quota) == ("alice", None, None)
    for request in (protocol.Cancel(id=ID), protocol.Pause(queue="mail"), protocol.Stats()):
        alice.check_request(request)
    assert alice.check_submit(TaskSpec(**SPEC), "task", 0.0) is None
    authorizer.reload(rules())
    with pytest.raises(PermissionDenied):
        policy_of(authorizer, "alice").check_request(protocol.Stats())


@pytest.mark.parametrize(
    ("rule", "owner", "own_only"),
    [
        ({}, "alice", False),
        ({"queues": ("mail",)}, "alice", True),
        ({"tasks": ("**",)}, "alice", True),
        ({"ops": ("get",), "max_priority": 3, "max_outstanding": 5}, "alice", False),
        ({"of": "own"}, "alice", True),
        ({"queues": ("mail",), "of": "all"}, "alice", False),
        ({"owner": "team"}, "team", False),
        ({"owner": "team", "queues": ()}, "team", True),
    ],
)
def test_a_bounded_client_acts_on_the_tasks_of_its_owner(rule: dict[str, Any], owner: str, own_only: bool) -> None:
    mine = policy(**rule)
    assert (mine.owner, mine.of) == (owner, owner if own_only else None)
    assert mine.quota in (None, Quota(owner, 5))


def test_an_anonymous_client_has_no_owner() -> None:
    rule = Rule(queues=("mail",), owner="team", of="own", max_outstanding=5)
    anonymous = policy_of(Authorizer(rules(anonymous=rule)), ANONYMOUS)
    assert (anonymous.owner, anonymous.of, anonymous.quota) == (None, None, Quota(ANONYMOUS, 5))


@pytest.mark.parametrize(
    ("rule", "key"),
    [({"max_priority": 4}, "max_priority"), ({"max_time_limit": 59.0}, "max_time_limit"), ({"env": ("B",)}, "env")],
)
def test_a_requeue_is_held_to_the_limits_of_a_submit(rule: dict[str, Any], key: str) -> None:
    theirs = Result(id=ID, name="rm", queue="mail", priority=5, state=State.FAILED, created_at=1.0, due_at=1.0)
    spec = pack_spec(TaskSpec(name="rm", time_limit_s=60.0, env={"A": "1"}))
    mine = policy(**rule)
    assert mine.depends_on_task(protocol.Requeue(id=ID, new_id=NEW_ID))
    assert not mine.depends_on_task(protocol.Get(id=ID))
    mine.check_task("get", theirs, spec, 0.0)
    with pytest.raises(PermissionDenied, match=rf"id: .*\(clients\.alice\.{key} ") as denied:
        mine.check_task("requeue", theirs, spec, 0.0)
    assert denied.value.field == "id"
    policy(max_priority=5, max_time_limit=60, env=("A",)).check_task("requeue", theirs, spec, 0.0)
    with pytest.raises(PermissionDenied, match="max_time_limit"):
        policy(max_time_limit=60).check_task("requeue", theirs, NO_SPEC, 0.0)


SPEC: dict[str, Any] = {"name": "reports/daily", "queue": "reports", "time_limit_s": 60.0}


@pytest.mark.parametrize(
    ("rule", "spec", "message"),
    [
        ({"queues": ("reports",)}, {"queue": "mail"}, "task.queue: not one of .*: mail .clients.alice.queues"),
        ({"tasks": ("reports/*",)}, {"name": "rm"}, "task.name: not one of .*: rm .clients.alice.tasks"),
        ({"env": ("TASK_*",)}, {"env": {"TASK_A": "", "A": ""}}, r"task.env\['A'\]: not one of .*clients.alice.env of"),
        ({"env": ()}, {"env": {"TASK_A": ""}}, r"task.env\['TASK_A'\]: not one of .*clients.alice.env of"),
        ({"max_priority": 5}, {"priority": 6}, "task.priority: expected at most 5, got 6 .clients.alice.max_priority"),
        ({"max_time_limit": 60}, {"time_limit_s": 61.0}, "task.time_limit_s: expected one of at most 60 s"),
        ({"max_time_limit": 60}, {"time_limit_s": None}, "task.time_limit_s: expected one of at most 60 s"),
    ],
)
def test_a_submit_outside_a_rule_is_denied_with_the_rule(
    rule: dict[str, Any], spec: dict[str, Any], message: str
) -> None:
    policy(**rule).check_submit(TaskSpec(**SPEC), "task", 0.0)
    with pytest.raises(PermissionDenied, match=message):
        policy(**rule).check_submit(TaskSpec(**{**SPEC, **spec}), "task", 0.0)


def test_a_request_with_a_queue_is_checked_against_the_rules_of_queues() -> None:
    mine = policy(queues=("mail",), ops=("list", "pause"))
    mine.check_request(protocol.Pause(queue="mail"))
    for request in (protocol.Pause(queue="other"), protocol.List(state=State.READY, queue="other")):
        with pytest.raises(PermissionDenied, match="queue: not one of this client's: other"):
            mine.check_request(request)
    with pytest.raises(PermissionDenied, match=r"op: this client may not cancel .clients.alice.ops"):
        mine.check_request(protocol.Cancel(id=ID))


@pytest.mark.parametrize("op", [op for op in protocol.OPS.values() if op.by_id], ids=lambda op: op.name)
def test_an_op_by_id_is_checked_against_the_stored_task(op: protocol.Op) -> None:
    theirs = Result(id=ID, name="rm", queue="mail", priority=5, state=State.READY, created_at=1.0, due_at=1.0)
    for rule, field in (({"queues": ("reports",)}, "queues"), ({"tasks": ("reports/*",)}, "tasks")):
        with pytest.raises(PermissionDenied, match=rf"id: not one of .*clients.alice.{field}"):
            policy(**rule).check_task(op.name, theirs, NO_SPEC, 0.0)
    policy(queues=("mail",), tasks=("rm",)).check_task(op.name, theirs, NO_SPEC, 0.0)


def test_only_rules_on_tasks_need_the_stored_task() -> None:
    get, requeue = protocol.Get(id=ID), protocol.Requeue(id=ID, new_id=NEW_ID)
    assert not policy().depends_on_task(get)
    assert policy(queues=("mail",)).depends_on_task(get)
    assert policy(tasks=("rm",)).depends_on_task(get)
    assert not policy(submits_per_second=1).depends_on_task(get)
    assert policy(submits_per_second=1).depends_on_task(requeue)


def test_replies_are_filtered_by_queue_and_task() -> None:
    mine = policy(queues=("mail",), tasks=("send*",))
    tasks = [{"name": "send", "queue": "mail"}, {"name": "rm", "queue": "mail"}, {"name": "send", "queue": "other"}]
    assert mine.filtered({"tasks": tasks, "cursor": None}) == {"tasks": tasks[:1], "cursor": None}
    assert mine.filtered({"id": ID}) == {"id": ID}


HOST = {"host": "h", "pid": 1, "bin_path": ["/bin"]}
STATS: dict[str, Any] = {
    "queues": [{"name": "mail", "served": True}, {"name": "other", "served": True}],
    "workers": [
        {"name": "both", "queues": ["other", "mail"], "slots": 4, **HOST},
        {"name": "other", "queues": ["other"], "slots": 4, **HOST},
        {"name": "new", **HOST},
    ],
    "brokers": [{"name": "b", "addr": ["a"], "host": "h", "pid": 2}],
}


def test_stats_show_a_bounded_client_its_queues_and_the_workers_that_serve_them() -> None:
    assert policy(queues=("mail",)).filtered(STATS) == {
        "queues": STATS["queues"][:1],
        "workers": [{"name": "both", "queues": ["mail"], "slots": 4}],
        "brokers": [{"name": "b", "addr": ["a"]}],
    }
    shown = policy(tasks=("send",)).filtered(STATS)
    assert shown["queues"] == STATS["queues"]
    assert [worker["name"] for worker in shown["workers"]] == ["both", "other"]
    assert "host" not in str(shown)
    assert policy(max_priority=5, of="own").filtered(STATS) == STATS


def test_a_rate_limited_submit_says_when_to_retry() -> None:
    mine = policy(submits_per_second=2)
    for _ in range(2):
        mine.check_submit(TaskSpec(**SPEC), "task", 0.0)
    with pytest.raises(Busy, match=r"clients\.alice\.submits_per_second") as refused:
        mine.check_submit(TaskSpec(**SPEC), "task", 0.0)
    assert (refused.value.code, refused.value.retryable, refused.value.retry_after_s) == ("rate_limited", True, 0.5)
    mine.check_submit(TaskSpec(**SPEC), "task", 0.5)


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 3), max_size=200))
def test_a_rate_holds_over_any_time(per_s: float, steps: list[float]) -> None:
    rate, now_s, taken = Rate(per_s), 0.0, 0
    for step in steps:
        now_s += step
        wait_s = rate.take(now_s)
        taken += not wait_s
        assert 0 <= wait_s <= 1 / per_s + 1e-6
        assert taken <= max(1.0, per_s) + per_s * now_s + 1e-6


def test_a_submit_returns_the_quota_that_the_store_checks() -> None:
    assert policy(max_outstanding=7).check_submit(TaskSpec(**SPEC), "task", 0.0) == Quota("alice", 7)
    assert policy(max_queues=0).check_submit(TaskSpec(**SPEC), "task", 0.0) == Quota("alice", queues=0)
    assert policy().check_submit(TaskSpec(**SPEC), "task", 0.0) is None


def test_the_store_keeps_the_bounds_of_ended_tasks() -> None:
    assert policy(max_kept_bytes=9).quota == Quota("alice", 0, True)
    assert policy(max_keep_result=1.5, max_outstanding=7, owner="team").quota == Quota("team", 7, False, 1500)
    limited = policy(max_keep_result=60.0)
    for keep_result_s in (None, 1.0, 60.0):
        limited.check_submit(TaskSpec(**SPEC, keep_result_s=keep_result_s), "task", 0.0)
    refused = r"task\.keep_result_s: expected at most 60 s, got 61 .clients\.alice\.max_keep_result"
    with pytest.raises(PermissionDenied, match=refused):
        limited.check_submit(TaskSpec(**SPEC, keep_result_s=61.0), "task", 0.0)


def test_the_least_bound_of_an_owner_is_its_bound() -> None:
    assert kept_bounds(None) == kept_bounds(rules(Rule(max_outstanding=5), alice=Rule())) == {}
    clients = {
        "alice": Rule(max_kept_bytes=9),
        "bob": Rule(owner="alice", max_kept_bytes=5),
        "carol": Rule(owner="alice"),
        "dave": Rule(),
        "anonymous": Rule(owner="alice", max_kept_bytes=1),
    }
    assert kept_bounds(rules(**clients)) == {"alice": 5, "dave": 0, "": 0, ANONYMOUS: 1}
    assert kept_bounds(rules(Rule(max_kept_bytes=7), dave=Rule())) == {"dave": 0, "": 7, ANONYMOUS: 7}
    assert kept_bounds(rules(Rule(max_kept_bytes=7, owner="team"))) == {"team": 7, ANONYMOUS: 7}


def test_a_requeue_of_a_dropped_request_is_left_to_the_store() -> None:
    gone = Result(
        id=ID,
        name="rm",
        queue="mail",
        priority=5,
        state=State.FAILED,
        created_at=1.0,
        due_at=1.0,
        request_dropped=True,
    )
    policy(max_time_limit=60).check_task("requeue", gone, NO_SPEC, 0.0)
    with pytest.raises(PermissionDenied, match="tasks"):
        policy(tasks=("send",)).check_task("requeue", gone, NO_SPEC, 0.0)


def test_a_reload_keeps_an_unchanged_rate() -> None:
    authorizer = Authorizer(rules(alice=Rule(submits_per_second=1)))
    policy_of(authorizer, "alice").check_submit(TaskSpec(**SPEC), "task", 0.0)
    authorizer.reload(rules(alice=Rule(submits_per_second=1)))
    with pytest.raises(Busy):
        policy_of(authorizer, "alice").check_submit(TaskSpec(**SPEC), "task", 0.0)
    authorizer.reload(rules(alice=Rule(submits_per_second=2)))
    policy_of(authorizer, "alice").check_submit(TaskSpec(**SPEC), "task", 0.0)


def test_the_audit_log_names_client_op_ids_and_outcome(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kingtask.audit")
    AuditTrail("alice", StoppedClock()).answered(protocol.Requeue(id=ID, new_id=NEW_ID), {"outcome": "created"})
    AuditTrail("bob", StoppedClock()).answered(protocol.Pause(queue="mail"), Busy("no room"))
    with pytest.raises(PermissionDenied):
        policy(ops=()).check_request(protocol.Cancel(id=ID))
    AuditTrail("eve", StoppedClock()).answered(protocol.Get(id=ID), ForeignTask("id: there is no task"))
    assert caplog.messages == [
        f"audit=requeue client=alice id={ID} new_id={NEW_ID} outcome=created",
        "audit=pause client=bob queue=mail outcome='no room'",
        f"audit=denied client=alice op=cancel id={ID} rule=clients.alice.ops",
        f"audit=get client=eve id={ID} outcome=foreign",
    ]


def flood(authorizer: Authorizer, client: str, requests: int) -> None:
    for _ in range(requests):
        with pytest.raises(PermissionDenied):
            policy_of(authorizer, client).check_request(protocol.Stats())


def test_denied_requests_fill_the_log_no_faster_than_a_rate_and_none_is_uncounted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = StoppedClock()
    authorizer = Authorizer(rules(), clock)
    flood(authorizer, "eve", 10_000)
    assert len(caplog.messages) == UNCHANGED_BURST
    flood(authorizer, "bob", 1)
    assert caplog.messages[-1] == "audit=denied client=bob op=stats id=None rule=default.ops", "each client by itself"
    clock.now_s += 1
    authorizer.reload(rules())
    flood(authorizer, "eve", 5)
    assert caplog.messages[UNCHANGED_BURST + 1 :] == [
        f"audit=denied client=eve op=stats id=None rule=default.ops omitted={10_000 - UNCHANGED_BURST}"
    ]


def test_refusals_that_changed_nothing_count_as_denied_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kingtask.audit")
    trail = Authorizer(None, StoppedClock()).trail_of(ANONYMOUS)
    for _ in range(1_000):
        trail.answered(protocol.Cancel(id=ID), TaskNotFound("no such task"))
        trail.answered(protocol.Requeue(id=ID, new_id=NEW_ID), {"outcome": "exists"})
    assert len(caplog.messages) == UNCHANGED_BURST


@pytest.mark.parametrize(
    "answer",
    [{"outcome": "cancelled"}, {"queue": "mail", "paused": True}, NotConfirmed("no reply"), RequestRefused("?")],
)
def test_no_line_of_a_request_that_may_have_changed_something_is_left_out(
    caplog: pytest.LogCaptureFixture, answer: dict[str, Any] | RequestRefused
) -> None:
    caplog.set_level(logging.INFO, "kingtask.audit")
    authorizer = Authorizer(rules(), StoppedClock())
    flood(authorizer, "eve", 2 * UNCHANGED_BURST)
    caplog.clear()
    for _ in range(50):
        authorizer.trail_of("eve").answered(protocol.Cancel(id=ID), answer)
    assert len(caplog.messages) == 50
    assert [f"omitted={UNCHANGED_BURST}" in line for line in caplog.messages] == [True] + [False] * 49
