"""permissions.yaml: what is read, what is refused by file, line and key, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import protocol
from kingtask.broker.authorizer import ANONYMOUS, Authorizer, ClientPolicy, Rate
from kingtask.config import permissions_file
from kingtask.config.permissions_file import Rule, compiled
from kingtask.errors import Busy, ConfigurationError, PermissionDenied
from kingtask.store.functions import Quota
from kingtask.task import TaskSpec

SHIPPED = Path(__file__).parents[2] / "etc" / "permissions.yaml"
ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"
Load = Callable[[str], permissions_file.PermissionsFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str) -> permissions_file.PermissionsFile:
        path = tmp_path / "permissions.yaml"
        path.write_text(text)
        return permissions_file.load(path)

    return loaded


def permit(**rule: object) -> ClientPolicy:
    read = Rule(**rule)  # type: ignore[arg-type]
    rate = Rate(read.submits_per_second, 0.0) if read.submits_per_second else None
    return ClientPolicy("alice", read, "clients.alice", rate)


def test_the_shipped_file_is_what_its_comments_say():
    read = permissions_file.load(SHIPPED)
    assert set(read.clients) == {"operator", "reports", "dashboard"}
    assert read.clients["operator"] == Rule()
    assert read.default == Rule(ops=("get", "wait"))
    text = SHIPPED.read_text()
    for key in Rule.__struct_fields__:
        assert re.search(rf"^#   {key} +\S", text, re.MULTILINE), key
    ops = set(protocol.REQUESTS) - {"ping"}
    assert set(permissions_file.Op.__args__) == ops  # type: ignore[attr-defined]


def test_one_value_may_stand_for_a_list(load: Load):
    assert load("clients: {a: {ops: submit, queues: mail, tasks: '**'}}").clients["a"] == Rule(
        ops=("submit",), queues=("mail",), tasks=("**",)
    )
    assert load("clients: {a: }\n").clients["a"] == Rule()
    assert load("# nothing\nclients:\n") == permissions_file.PermissionsFile(
        path=load("# nothing\nclients:\n").path, clients={}, default=None
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("client: {}", "1: client: unknown key; did you mean clients"),
        ("xyz: {}", "1: xyz: unknown key; expected clients or default"),
        ("clients: []", "1: clients: expected a map of names"),
        ("clients:\n  a/b: {}", "2: clients: expected names of 1 to 64"),
        ("clients:\n  a: []", "2: clients.a: expected a map"),
        ("clients:\n  a: {}\n  a: {}", "3: clients.a: stands here twice"),
        ("clients:\n  a:\n    queue: [x]", "3: clients.a.queue: unknown key; did you mean queues"),
        ("clients:\n  a:\n    ops: [get, gte]", "3: clients.a.ops[1]: expected one of cancel, "),
        ("clients:\n  a:\n    ops: gte", "3: clients.a.ops: expected one of cancel, "),
        ("clients:\n  a:\n    tasks: [../x/]", "3: clients.a.tasks[0]: expected a name in which *"),
        ("clients:\n  a:\n    tasks: ['a b']", "3: clients.a.tasks[0]: expected a name in which *"),
        ("default: {max_priority: 10}", "1: default.max_priority: expected an integer from 0 to 9, got 10"),
        ("default: {max_time_limit: 0}", "1: default.max_time_limit: expected a number from"),
        ("default: {submits_per_second: 0}", "1: default.submits_per_second: expected a number from"),
        ("default: {max_outstanding: 0}", "1: default.max_outstanding: expected an integer from 1"),
        ("default: {max_waits: 5}", "1: default.max_waits: unknown key"),
        ("[]", "1: expected lines of the form"),
    ],
)
def test_what_is_wrong_is_told_by_file_line_and_key(load: Load, text: str, told: str):
    with pytest.raises(ConfigurationError) as refused:
        load(text)
    assert f"permissions.yaml:{told}" in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("reports/*", ["reports/a", "reports/a.b-c"], ["reports", "reports/a/b", "xreports/a", "a/reports/b"]),
        ("reports/**", ["reports", "reports/a", "reports/a/b/c"], ["reports2", "reports2/a", "a/reports"]),
        ("**", ["a", "a/b/c/d"], []),
        ("**/daily", ["daily", "a/daily", "a/b/daily"], ["xdaily", "a/daily/b"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz", "a/z/b"]),
        ("a*c", ["ac", "abc", "a.c"], ["a/c", "abcd"]),
        ("*", ["a"], ["a/b"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_a_star_stops_at_a_part(pattern: str, yes: list[str], no: list[str]):
    names = compiled((pattern,))
    assert [name for name in yes if not names.fullmatch(name)] == []
    assert [name for name in no if names.fullmatch(name)] == []


def test_no_pattern_is_no_name():
    assert compiled(()).fullmatch("") is None
    assert compiled(()).fullmatch("a") is None
    assert compiled(("a|b", "c")).fullmatch("a") is None


def test_whoever_has_no_entry_may_do_nothing():
    permits = Authorizer()
    assert not permits.on
    permits.reload(permissions_file.PermissionsFile(path="", clients={"alice": Rule()}, default=None))
    permits.of("alice", 0.0).request(protocol.Stats())
    for client in ("bob", ANONYMOUS):
        with pytest.raises(PermissionDenied, match=r"op: this client may not stats \(default.ops"):
            permits.of(client, 0.0).request(protocol.Stats())


SPEC = {"name": "reports/daily", "queue": "reports", "time_limit_s": 60.0}


@pytest.mark.parametrize(
    ("rule", "spec", "told"),
    [
        ({"queues": ("reports",)}, {"queue": "mail"}, "task.queue: not one of .*: mail .clients.alice.queues"),
        ({"tasks": ("reports/*",)}, {"name": "rm"}, "task.name: not one of .*: rm .clients.alice.tasks"),
        ({"max_priority": 5}, {"priority": 6}, "task.priority: expected at most 5, got 6 .clients.alice.max_priority"),
        ({"max_time_limit": 60}, {"time_limit_s": 61.0}, "task.time_limit_s: expected one of at most 60 s"),
        ({"max_time_limit": 60}, {"time_limit_s": None}, "task.time_limit_s: expected one of at most 60 s"),
    ],
)
def test_a_task_outside_of_a_rule_is_refused_by_its_name(rule: dict[str, object], spec: dict[str, object], told: str):
    permit(**rule).submit(TaskSpec(**SPEC), "task", 0.0)  # type: ignore[arg-type]
    with pytest.raises(PermissionDenied, match=told):
        permit(**rule).submit(TaskSpec(**{**SPEC, **spec}), "task", 0.0)  # type: ignore[arg-type]


def test_what_names_a_queue_is_refused_before_it_is_done():
    mine = permit(queues=("mail",), ops=("list", "pause"))
    mine.request(protocol.Pause(queue="mail"))
    for request in (protocol.Pause(queue="other"), protocol.List(state="ready", queue="other")):  # type: ignore[arg-type]
        with pytest.raises(PermissionDenied, match="queue: not one of this client's: other"):
            mine.request(request)
    with pytest.raises(PermissionDenied, match=r"op: this client may not cancel .clients.alice.ops"):
        mine.request(protocol.Cancel(id=ID))


def test_too_many_submits_come_back_when_there_is_room_again():
    mine = permit(submits_per_second=2)
    for _ in range(2):
        mine.submit(TaskSpec(**SPEC), "task", 0.0)  # type: ignore[arg-type]
    with pytest.raises(Busy, match=r"clients\.alice\.submits_per_second") as refused:
        mine.submit(TaskSpec(**SPEC), "task", 0.0)  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.retryable, refused.value.retry_after_s) == ("rate_limited", True, 0.5)
    mine.submit(TaskSpec(**SPEC), "task", 0.5)  # type: ignore[arg-type]


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 3), max_size=200))
def test_a_rate_holds_over_any_time(per_s: float, steps: list[float]):
    rate, now_s, taken = Rate(per_s, 0.0), 0.0, 0
    for step in steps:
        now_s += step
        wait_s = rate.take(now_s)
        taken += not wait_s
        assert 0 <= wait_s <= 1 / per_s + 1e-6
        assert taken <= max(1.0, per_s) + per_s * now_s + 1e-6


def test_how_many_tasks_there_may_be_is_what_the_store_has_to_count():
    assert permit(max_outstanding=7).submit(TaskSpec(**SPEC), "task", 0.0) == Quota("alice", 7)  # type: ignore[arg-type]
    assert permit().submit(TaskSpec(**SPEC), "task", 0.0) is None  # type: ignore[arg-type]


def test_a_reload_does_not_start_a_rate_anew():
    rules = permissions_file.PermissionsFile(path="", clients={"alice": Rule(submits_per_second=1)}, default=None)
    permits = Authorizer()
    for i in range(2):
        permits.reload(rules)
        mine = permits.of("alice", 0.0)
        if not i:
            mine.submit(TaskSpec(**SPEC), "task", 0.0)  # type: ignore[arg-type]
    with pytest.raises(Busy):
        mine.submit(TaskSpec(**SPEC), "task", 0.0)  # type: ignore[arg-type]
