"""Clients that may not do everything: what they may not is not done, and they are told which rule it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
import zmq
from zmq.utils.monitor import parse_monitor_message

from kingtask import Client, TaskSpec, protocol
from kingtask.errors import Busy, PermissionDenied
from tests.integration.keyed import Keyed
from tests.integration.rig import Daemon, StackHarness
from tests.processes import until

RULES: dict[str, Any] = {
    "clients": {
        "alice": {},
        "bob": {
            "queues": ["mail"],
            "tasks": ["ledger", "mail/**"],
            "env": ["TASK_*"],
            "max_priority": 5,
            "ops": ["get", "list", "submit"],
            "of": "all",
        },
        "carol": {"queues": ["mail"], "tasks": ["ledger"], "of": "all"},
        "dave": {"submits_per_second": 0.01},
    }
}


@pytest.fixture
def keyed() -> Iterator[Keyed]:
    with Keyed() as rig:
        for name in ("bob", "carol", "dave", "eve"):
            rig.admit(rig.pair(name))
        yield rig


def write(rig: StackHarness, rules: dict[str, Any]) -> str:
    path = rig.directory / "permissions.yaml"
    path.write_text(yaml.safe_dump(rules))
    return str(path)


def reloaded(broker: Daemon, outcome: str = "done") -> str:
    seen = len(broker.text())
    broker.signal(signal.SIGHUP)
    until(lambda: f"reload={outcome}" in broker.text()[seen:], f"reload={outcome}")
    return broker.text()[seen:]


def as_(keyed: Keyed, name: str) -> Client:
    return keyed.client(timeout=5, **keyed.keys_of(name))


def queues(client: Client) -> dict[str, tuple[int, bool]]:
    return {queue["name"]: (queue["ready"], queue["paused"]) for queue in client.stats()["queues"]}


def test_nothing_is_done_that_is_not_allowed(keyed: Keyed):
    broker = keyed.start_broker(permissions=write(keyed, RULES))
    alice, bob, carol, eve = (as_(keyed, name) for name in ("alice", "bob", "carol", "eve"))
    foreign = alice.submit("ledger", queue="other", env=keyed.env)
    allowed = bob.submit("ledger", queue="mail", env=keyed.env, priority=5)
    before = queues(alice)
    for act, rule in (
        (lambda: bob.submit("ledger", queue="other"), "clients.bob.queues"),
        (lambda: bob.submit("ledger"), "clients.bob.queues"),
        (lambda: bob.submit("rm", queue="mail"), "clients.bob.tasks"),
        (lambda: bob.submit("ledger", queue="mail", priority=6), "clients.bob.max_priority"),
        (lambda: bob.submit("ledger", queue="mail", env={**keyed.env, "OTHER": "x"}), "clients.bob.env"),
        (lambda: bob.cancel(allowed), "clients.bob.ops"),
        (lambda: bob.pause("mail"), "clients.bob.ops"),
        (lambda: bob.get(foreign), "clients.bob.queues"),
        (lambda: carol.cancel(foreign), "clients.carol.queues"),
        (lambda: carol.wait(foreign, timeout=1), "clients.carol.queues"),
        (lambda: carol.requeue(foreign), "clients.carol.queues"),
        (lambda: carol.pause("other"), "clients.carol.queues"),
        (lambda: list(carol.list("ready", "other")), "clients.carol.queues"),
        (lambda: eve.submit("ledger"), "default.ops"),
        (lambda: eve.get(allowed), "default.ops"),
        (eve.stats, "default.ops"),
    ):
        with pytest.raises(PermissionDenied, match=rule.replace(".", r"\.")) as denied:
            act()
        assert denied.value.stored == "no"
        assert f"rule={rule}" in broker.text()
    assert queues(alice) == before
    assert (alice.get(foreign).state, alice.get(allowed).state) == ("ready", "ready")
    assert "audit=denied client=bob op=cancel id=" + allowed.id in broker.text()
    outcomes = bob.submit_many(
        TaskSpec(name=name, queue="mail", env=keyed.env) for name in ("ledger", "rm", "mail/a/b")
    )
    assert [outcome.outcome for outcome in outcomes] == ["created", "error", "created"]
    assert "tasks[1].name" in str(outcomes[1].error)


def test_what_is_allowed_is_done_and_told(keyed: Keyed):
    broker = keyed.start_broker(permissions=write(keyed, RULES))
    alice, bob, carol = (as_(keyed, name) for name in ("alice", "bob", "carol"))
    alice.submit("ledger", queue="other")
    mine = carol.submit("ledger", queue="mail")
    assert bob.get(mine).state == "ready"
    assert [queue["name"] for queue in carol.stats()["queues"]] == ["mail"]
    assert carol.cancel(mine) == "cancelled"
    again = carol.requeue(mine)
    alice.cancel(alice.submit("ledger", queue="other"))
    assert [task.id for task in bob.list("cancelled")] == [mine.id]
    carol.pause("mail")
    carol.resume("mail")
    text = broker.text()
    for line in (
        f"audit=cancel client=carol id={mine.id} outcome=cancelled",
        f"audit=requeue client=carol id={mine.id} new_id={again.id} outcome=created",
        "audit=pause client=carol queue=mail",
        "audit=resume client=carol queue=mail",
    ):
        assert line in text


def test_a_rate_is_told_when_to_come_back_and_clients_do(keyed: Keyed):
    rules = {"clients": {"dave": {"submits_per_second": 0.01}, "alice": {"submits_per_second": 10}}}
    broker = keyed.start_broker(permissions=write(keyed, rules))
    dave, alice = as_(keyed, "dave"), as_(keyed, "alice")
    dave.submit("ledger")
    with pytest.raises(Busy, match=r"clients\.dave\.submits_per_second") as limited:
        dave.submit("ledger")
    assert limited.value.code == "rate_limited"
    assert limited.value.retry_after_s is not None
    assert limited.value.retry_after_s > 5
    for _ in range(20):
        alice.submit("ledger", timeout=30)
    assert "refused=rate_limited" in broker.text()


def test_tasks_outstanding_are_counted_by_all_brokers_until_they_end(keyed: Keyed):
    rules = {"clients": {"alice": {"max_outstanding": 2}, "bob": {}}}
    brokers = [keyed.start_broker(permissions=write(keyed, rules)) for _ in range(2)]
    bob = as_(keyed, "bob")
    with zmq.Context() as context, ExitStack() as stack:
        sockets = [stack.enter_context(keyed.socket(zmq.DEALER, context, "alice")) for _ in brokers]
        for socket, broker in zip(sockets, brokers, strict=True):
            socket.rcvtimeo = 30_000
            socket.connect(broker.endpoint)

        def told(broker: int, op: str, **fields: Any) -> Any:
            """Shipped clients would come again until their time is over."""
            sockets[broker].send(protocol.encode_request(1, op, fields))
            return protocol.decode_reply(sockets[broker].recv())

        first, second = (told(i, "submit", task={"name": "ledger", "delay_s": 600.0 * i})["id"] for i in (0, 1))
        for nth in (0, 1):
            error = told(nth, "submit", task={"name": "ledger"})["error"]
            assert (error["code"], error["retryable"], error["stored"]) == ("rate_limited", True, "no")
            assert "max_outstanding" in error["message"]
            assert error["retry_after_s"] == 1
        many = told(0, "submit", tasks=[{"name": "ledger"}] * 2)["outcomes"]
        assert [outcome["error"]["code"] for outcome in many] == ["rate_limited"] * 2
        bob.submit("ledger")
        bob.cancel(second)
        assert told(0, "submit", task={"name": "ledger"})["ok"]
        assert told(1, "submit", task={"name": "ledger"})["error"]["code"] == "rate_limited"
        bob.cancel(first)
        assert told(1, "requeue", id=first, new_id=str(uuid4()))["ok"]
        assert told(0, "requeue", id=first, new_id=str(uuid4()))["error"]["code"] == "rate_limited"


def test_names_of_queues_are_counted_by_all_brokers(keyed: Keyed):
    rules = {"clients": {"alice": {"max_queues": 1}, "bob": {"owner": "alice", "max_queues": 1}, "carol": {}}}
    brokers = [keyed.start_broker(permissions=write(keyed, rules)) for _ in range(2)]
    with (
        Client(brokers[0].endpoint, timeout=0.5, **keyed.keys_of("alice")) as alice,
        Client(brokers[1].endpoint, timeout=0.5, **keyed.keys_of("bob")) as bob,
    ):
        alice.submit("ledger", queue="mail")
        bob.submit("ledger", queue="mail")
        for act in (lambda: bob.submit("ledger", queue="other"), lambda: bob.pause("other")):
            with pytest.raises(Busy, match="max_queues") as refused:
                act()
            assert (refused.value.code, refused.value.field, refused.value.stored) == ("rate_limited", "queue", "no")
        as_(keyed, "carol").submit("ledger", queue="other")
        bob.submit("ledger", queue="other")


def test_permissions_change_with_a_reload_and_a_bad_file_changes_nothing(keyed: Keyed):
    path = Path(write(keyed, {"clients": {"alice": {}}}))
    broker = keyed.start_broker(permissions=str(path))
    bob = as_(keyed, "bob")
    with pytest.raises(PermissionDenied):
        bob.submit("ledger")
    write(keyed, {"clients": {"alice": {}, "bob": {}}})
    reloaded(broker)
    bob.submit("ledger")
    path.write_text("clients:\n  bob: {op: [get]}\n")
    assert "permissions.yaml:2: clients.bob.op: unknown key; did you mean ops?" in reloaded(broker, "refused")
    bob.submit("ledger")
    broker.config["permissions"] = None
    broker.path.write_text(yaml.safe_dump(broker.config))
    reloaded(broker)
    as_(keyed, "eve").submit("ledger")


def test_only_a_workers_key_may_use_the_wakeup_socket(keyed: Keyed):
    """A client on it would get the hints of workers, who then start tasks up to `period` later."""
    rules = {"clients": {"alice": {}, "worker": {"ops": [], "worker": True}}}
    broker = keyed.start_broker(permissions=write(keyed, rules))
    worker = keyed.start_worker(period=3600)
    worker.until_logged("wakeup=connected")
    assert as_(keyed, "alice").submit("ledger", env=keyed.env).wait(timeout=30).success, "by a hint"
    with pytest.raises(PermissionDenied, match=r"clients\.worker\.ops"):
        as_(keyed, "worker").stats()
    assert hears_nothing(keyed, broker, "alice")
    write(keyed, {"clients": {"alice": {"worker": True}}})
    reloaded(broker)
    worker.until_logged("wakeup=refused")
    assert "or not as a worker's" in worker.text()
    assert not hears_nothing(keyed, broker, "alice")
    broker.config["permissions"] = None
    broker.path.write_text(yaml.safe_dump(broker.config))
    reloaded(broker)
    until(lambda: worker.text().count("wakeup=connected") == 2, "the worker to come back")


def hears_nothing(keyed: Keyed, broker: Daemon, name: str) -> bool:
    """True if the wakeup socket refuses the key of this client in the handshake."""
    accepted, refused = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH
    with (
        zmq.Context() as context,
        keyed.socket(zmq.SUB, context, name) as socket,
        socket.get_monitor_socket(accepted | refused) as monitor,
    ):
        socket.connect(f"tcp://{broker.config['wakeup']}")
        assert monitor.poll(30_000)
        return bool(parse_monitor_message(monitor.recv_multipart())["event"] == refused)


def test_without_keys_everyone_is_anonymous():
    with StackHarness() as rig:
        broker = rig.start_broker(permissions=write(rig, {"clients": {"anonymous": {"tasks": ["ledger"]}}}))
        client = rig.client()
        task = client.submit("ledger")
        with pytest.raises(PermissionDenied, match=r"clients\.anonymous\.tasks"):
            client.submit("rm")
        client.cancel(task)
        assert f"audit=cancel client=anonymous id={task.id}" in broker.text()
