"""Clients of one queue: each acts on the tasks of its owner only, and learns nothing of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import yaml

from kingtask import Client
from kingtask.cli.param_types import id_of_key
from kingtask.errors import IdConflict, PermissionDenied, RequestRefused, TaskNotFound
from tests.integration.keyed import Keyed
from tests.processes import PATIENCE_S, until

RULES: dict[str, Any] = {
    "clients": {
        "alice": {"queues": ["mail"]},
        "bob": {"queues": ["mail"]},
        "carol": {"queues": ["mail"], "owner": "alice"},
        "dave": {"max_priority": 5, "max_outstanding": 1},
    }
}


@pytest.fixture
def keyed() -> Iterator[Keyed]:
    with Keyed() as rig:
        for name in ("bob", "carol", "dave"):
            rig.admit(rig.pair(name))
        yield rig


def start(keyed: Keyed, rules: dict[str, Any] = RULES) -> Any:
    path = keyed.directory / "permissions.yaml"
    path.write_text(yaml.safe_dump(rules))
    return keyed.start_broker(permissions=str(path))


def as_(keyed: Keyed, name: str) -> Client:
    return keyed.client(timeout=5, **keyed.keys_of(name))


def refusal(act: Callable[[], Any], task: str) -> tuple[Any, ...]:
    """All that the client learns from a refusal, without the id."""
    with pytest.raises(RequestRefused) as refused:
        act()
    error = refused.value
    told = (error.code, error.retryable, error.stored, error.field, error.retry_after_s, error.message)
    return tuple(part.replace(task, "ID") if isinstance(part, str) else part for part in told)


BY_ID: dict[str, Callable[[Client, str], Any]] = {
    "get": lambda client, task: client.get(task),
    "wait": lambda client, task: client.wait(task, timeout=3),
    "cancel": lambda client, task: client.cancel(task),
    "requeue": lambda client, task: client.requeue(task),
    "forget": lambda client, task: client.forget(task),
}


def test_a_client_neither_reads_nor_changes_the_task_of_another_one(keyed: Keyed):
    broker = start(keyed)
    alice, bob = as_(keyed, "alice"), as_(keyed, "bob")
    ready, ended = (alice.submit("ledger", ["secret"], queue="mail", stdin=b"secret").id for _ in range(2))
    alice.cancel(ended)
    for op, act in BY_ID.items():
        for task in (ready, ended):
            missing = str(uuid4())
            assert refusal(lambda: act(bob, task), task) == refusal(lambda: act(bob, missing), missing), op  # noqa: B023
            until(lambda: f"audit={op} client=bob id={task}" in broker.text(), "the truth")  # noqa: B023
    assert broker.text().count("outcome=foreign") == len(BY_ID) * 2
    assert [list(bob.list(state, "mail")) for state in ("ready", "cancelled")] == [[], []]
    assert (alice.get(ready).state, alice.get(ended).state) == ("ready", "cancelled")
    assert [task.id for task in alice.list("ready", "mail")] == [ready]
    assert len(list(alice.list("cancelled"))) == 1, "no task came of a requeue"


def test_a_client_with_the_same_owner_acts_on_its_tasks(keyed: Keyed):
    start(keyed)
    alice, carol, dave = (as_(keyed, name) for name in ("alice", "carol", "dave"))
    task = alice.submit("ledger", queue="mail")
    assert carol.get(task).state == "ready"
    assert carol.submit("ledger", queue="mail", id=task.id).outcome == "exists"
    assert carol.cancel(task) == "cancelled"
    again = carol.requeue(task)
    assert {found.id for found in alice.list("ready", "mail")} == {again.id}
    assert dave.cancel(again) == "cancelled", "dave has no bounds of queues and tasks"


def test_who_takes_a_foreign_id_leaves_no_word_about_the_task(keyed: Keyed):
    start(keyed)
    alice, bob, dave = (as_(keyed, name) for name in ("alice", "bob", "dave"))
    task = alice.submit("ledger", queue="mail")
    told = set()
    for client in (bob, dave):
        for args in ([], ["other"]):
            with pytest.raises(IdConflict) as conflict:
                client.submit("ledger", args, queue="mail", id=task.id)
            told.add(conflict.value.message)
    mine = bob.submit("ledger", queue="mail")
    with pytest.raises(IdConflict) as conflict:
        bob.submit("ledger", ["other"], queue="mail", id=mine.id)
    told.add(conflict.value.message.replace(mine.id, task.id))
    assert len(told) == 1, "another content of an own task reads the same"


def test_a_requeue_keeps_the_owner_and_is_held_to_the_limits_of_its_client(keyed: Keyed):
    start(keyed)
    alice, bob, dave = (as_(keyed, name) for name in ("alice", "bob", "dave"))
    task, urgent = alice.submit("ledger", queue="mail"), alice.submit("ledger", queue="mail", priority=9)
    for one in (task, urgent):
        one.cancel()
    again = dave.requeue(task)
    assert alice.get(again.id).origin == task.id
    with pytest.raises(TaskNotFound):
        bob.get(again.id)
    with pytest.raises(PermissionDenied, match=r"id: expected at most 5, got 9 .clients\.dave\.max_priority"):
        dave.requeue(urgent)
    with Client(keyed.daemons[0].endpoint, timeout=0.5, **keyed.keys_of("dave")) as hasty:
        assert refusal(lambda: hasty.requeue(task), task.id)[0] == "rate_limited"


def test_a_key_of_the_command_is_an_id_of_the_owner(keyed: Keyed):
    broker = start(keyed)

    def submitted(name: str) -> Any:
        files = keyed.keys_of(name)
        keys = [f"--{option.replace('_', '-')}={file}" for option, file in files.items()]
        command = [
            "submit",
            "--json",
            "--broker",
            broker.endpoint,
            *keys,
            "--queue",
            "mail",
            "--key",
            "nightly",
            "ledger",
        ]
        run = subprocess.run(
            [sys.executable, "-m", "kingtask", *command], capture_output=True, timeout=PATIENCE_S, check=True
        )
        return json.loads(run.stdout)

    assert submitted("alice") == {"id": id_of_key("nightly", "alice"), "outcome": "created"}
    assert submitted("carol") == {"id": id_of_key("nightly", "alice"), "outcome": "exists"}
    assert submitted("bob") == {"id": id_of_key("nightly", "bob"), "outcome": "created"}


def test_stats_show_nothing_of_the_queues_and_hosts_of_others(keyed: Keyed):
    rules: dict[str, Any] = {"clients": {**RULES["clients"], "worker": {"worker": True, "ops": []}}}
    start(keyed, rules)
    keyed.start_worker(queues=["mail", "secret"], ready=False)
    keyed.start_worker(queues=["secret"], ready=False)
    bob, dave = as_(keyed, "bob"), as_(keyed, "dave")
    dave.submit("ledger", queue="secret", env=keyed.env)
    bob.submit("ledger", queue="mail", env=keyed.env)
    until(lambda: len(dave.stats()["workers"]) == 2, "both workers")
    stats = bob.stats()
    assert [queue["name"] for queue in stats["queues"]] == ["mail"]
    assert [worker["queues"] for worker in stats["workers"]] == [["mail"]]
    assert [peer for peer in stats["workers"] + stats["brokers"] if {"host", "pid", "bin_path"} & peer.keys()] == []
    assert "secret" not in str(stats)


def test_without_permissions_tasks_have_owners_for_the_day_that_there_are_some(keyed: Keyed):
    keyed.start_broker()
    task = as_(keyed, "alice").submit("ledger", queue="mail")
    assert as_(keyed, "bob").get(task).state == "ready"
    keyed.daemons.pop().stop()
    start(keyed)
    assert as_(keyed, "alice").get(task).state == "ready"
    with pytest.raises(TaskNotFound):
        as_(keyed, "bob").get(task)
