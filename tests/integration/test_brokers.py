"""One and several brokers: failing over, stopping, Redis away, wrong set-ups."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
import zmq

from kingtask import (
    Client,
    IdConflict,
    InvalidRequest,
    NotConfirmed,
    RequestRefused,
    Task,
    TaskNotFound,
    Unavailable,
    WrongState,
    protocol,
)
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, until
from tests.servers import die_with_parent, free_port


def test_a_second_broker_does_not_take_the_socket_of_the_first_and_a_later_one_does(rig: StackHarness) -> None:
    """libzmq would: clients of the first would find the second, and nobody once that has ended."""
    paths: dict[str, Any] = {"addr": f"ipc://{rig.directory}/broker", "wakeup": f"ipc://{rig.directory}/wakeup"}
    first = rig.start_broker(**paths)
    for other in (paths, {**paths, "addr": f"ipc://{rig.directory}/other"}):
        second = rig.start_broker(ready=False, **other)
        assert second.process is not None
        assert second.process.wait(PATIENCE_S) == 3
        assert "it is in use" in second.text()
    with Client(first.endpoint) as client:
        assert client.ping()["broker"].split(".")[1] == str(first.pid)
    first.kill()  # its sockets stay
    assert rig.start_broker(**paths).endpoint == first.endpoint


def test_every_broker_is_active_and_any_may_die(rig: StackHarness) -> None:
    first, second = rig.start_broker(), rig.start_broker()
    rig.start_worker()
    client = rig.client()
    waiting = client.submit("ledger", ["1"], env=rig.env)
    scheduled = client.submit("ledger", delay=1, env=rig.env)
    first.kill()
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert waiting.wait(PATIENCE_S).success
    assert scheduled.wait(PATIENCE_S).success
    first.start()
    second.kill()
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert len(rig.executions()) == 4


def test_a_task_given_to_one_broker_is_seen_through_another(rig: StackHarness) -> None:
    first, second = rig.start_broker(), rig.start_broker()
    rig.start_worker()
    with Client(first.endpoint) as one, Client(second.endpoint) as other:
        task = one.submit("ledger", env=rig.env)
        assert other.wait(task.id, PATIENCE_S).success
        assert {broker["addr"][0] for broker in other.stats()["brokers"]} == {
            first.config["addr"],
            second.config["addr"],
        }


def test_a_client_that_is_killed_takes_nothing_along(rig: StackHarness) -> None:
    """What it had handed over runs, and whoever knows the id reads the result."""
    broker, task_id = rig.start_broker(), str(uuid.uuid4())
    options = ["--broker", broker.endpoint, "--wait", "--id", task_id, "--env", f"TASK_LEDGER={rig.ledger}"]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "kingtask", "submit", *options, "ledger"],
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
    )
    with waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().strip() == task_id.encode(), "it is told when the broker has it"
        waiting.kill()
    rig.start_worker()
    assert rig.client().wait(task_id, PATIENCE_S).success
    assert len(rig.executions()) == 1


def test_without_redis_a_broker_says_so_and_recovers_by_itself(rig: StackHarness) -> None:
    broker = rig.start_broker()
    rig.start_worker()
    client = rig.client()
    rig.redis.kill()
    until(lambda: not client.ping()["ready"], "the broker notices")
    with pytest.raises((Unavailable, NotConfirmed)):
        client.submit("ledger", env=rig.env, timeout=0.5)
    rig.redis.start()
    assert client.submit("ledger", env=rig.env, timeout=PATIENCE_S).wait(PATIENCE_S).success
    assert broker.process is not None
    assert broker.process.poll() is None


def test_a_result_is_held_while_redis_is_away(rig: StackHarness) -> None:
    """The task ends while Redis is down; nothing runs twice.

    An outage of under 3 s is not forgiven, so the lease has to outlast it.
    """
    rig.start_broker(lease=5)
    rig.start_worker(lease=5, renew=1)
    client = rig.client(timeout=PATIENCE_S)
    task = client.submit("ledger", ["1"], env=rig.env)
    until(rig.executions, "it runs")
    rig.redis.kill()
    until(lambda: rig.executions("end"), "it has ended")
    rig.redis.start()
    result = task.wait(PATIENCE_S)
    assert result.success
    assert len(rig.executions()) == 1


def test_a_stopping_broker_answers_everything_it_took(rig: StackHarness) -> None:
    """SIGTERM in the middle of a stream of submits: what got an OK is there, what did not can be sent again."""
    first = rig.start_broker()
    rig.start_broker()
    client = rig.client(timeout=PATIENCE_S)
    tasks: list[Task] = []

    def submit() -> None:
        while len(tasks) < 600:
            tasks.append(client.submit("ledger", env=rig.env))

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: len(tasks) > 100, "submits flow")
    assert first.stop() == 0
    thread.join(PATIENCE_S)
    assert [client.get(task.id).state for task in tasks] == ["ready"] * 600


def test_waiting_clients_are_told_at_once(rig: StackHarness, client: Client) -> None:
    """By push: far sooner than the look once a second would find it, measured against the task's own end."""
    delays = []
    for _ in range(5):
        result = client.submit("ledger", ["0.2"], env=rig.env).wait(PATIENCE_S)
        assert result.finished_at is not None
        delays.append(time.time() - result.finished_at)
    assert min(delays) < 0.5


def test_what_is_refused(client: Client, rig: StackHarness) -> None:
    task = client.submit("ledger", env=rig.env)
    with pytest.raises(IdConflict):
        client.submit("other", id=task.id)
    assert task.wait(PATIENCE_S).success
    with pytest.raises(WrongState):
        client.cancel(task.id)
    for call in (client.get, client.cancel, client.requeue):
        with pytest.raises(TaskNotFound):
            call(str(uuid.uuid4()))
    with pytest.raises(InvalidRequest, match="queue"):
        client.submit("ledger", queue="a/b")


def test_requeue_makes_a_new_task(client: Client, rig: StackHarness) -> None:
    old = client.submit("ledger", env=rig.env).wait(PATIENCE_S)
    new = client.requeue(old.id).wait(PATIENCE_S)
    assert (new.success, new.origin, new.id == old.id) == (True, old.id, False)
    assert client.get(old.id) == old


def refused_start(rig: StackHarness, kind: str, settings: Mapping[str, Any]) -> str:
    daemon = Daemon(rig, kind, dict(settings))
    done = subprocess.run(
        [sys.executable, "-c", f"from kingtask.cli.daemons import {kind}; {kind}()", "-c", daemon.path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_busy_port_is_named_and_the_first_broker_goes_on(rig: StackHarness) -> None:
    broker = rig.start_broker()
    told = refused_start(rig, "broker", {**broker.config, "wakeup": f"127.0.0.1:{free_port()}"})
    assert f"addr: cannot listen on {broker.endpoint}: it is in use" in told
    assert rig.client().ping()["ready"]


def test_an_acknowledgement_that_cannot_be_had_refuses_to_start(rig: StackHarness) -> None:
    rig.redis.client().config_set("appendfsync", "everysec")
    settings = {"addr": f"127.0.0.1:{free_port()}", "redis": rig.redis.url, "ack": "fsync"}
    assert "ack: fsync needs a server with appendonly yes, appendfsync always" in refused_start(rig, "broker", settings)


def test_a_wrong_password_is_named(rig: StackHarness) -> None:
    rig.redis.client().config_set("requirepass", "right")
    settings = {"addr": f"127.0.0.1:{free_port()}", "redis": f"unix://:wrong@{rig.redis.socket}"}
    told = refused_start(rig, "broker", settings)
    assert "check user and password" in told
    assert "wrong@" not in told


def test_a_newer_schema_is_refused(rig: StackHarness) -> None:
    rig.redis.client().hset("{kingtask}:meta", "schema", 99)
    settings = {"redis": rig.redis.url, "bin_path": str(rig.bin_path)}
    assert "newer kingtask (schema 99" in refused_start(rig, "worker", settings)


def test_every_refusal_carries_the_id_of_its_request(rig: StackHarness) -> None:
    """Whichever way a request was read: a client that cannot correlate a refusal waits for nothing."""
    broker = rig.start_broker()
    rig.redis.kill()
    client = rig.client()
    until(lambda: not client.ping()["ready"], "the broker notices")
    task: dict[str, Any] = {"name": "ledger"}
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvtimeo = 0, int(PATIENCE_S * 1000)
        socket.connect(broker.endpoint)
        for rid, fields in enumerate((task, {**task, "env": {"A": "1"}}, {**task, "x": 1})):
            socket.send(protocol.encode_request(rid, "submit", {"task": fields}))
            reply = protocol.decode_reply(socket.recv())
            assert (reply["rid"], reply["ok"]) == (rid, False)


def test_a_damaged_record_costs_one_reply(rig: StackHarness) -> None:
    broker = rig.start_broker()
    client = rig.client()
    task = client.submit("ledger")
    rig.redis.client().hset(f"{{kingtask}}:task:{task.id}", "s", b"\xc1")
    with pytest.raises(RequestRefused, match="cannot be read"):
        client.get(task.id)
    assert client.submit("ledger").id
    assert "record=damaged" in broker.text()
