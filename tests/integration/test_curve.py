"""Brokers that ask for keys: who has none of the right ones gets nothing done, and is told why."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from kingtask import AsyncClient, Client, curve, protocol
from kingtask.errors import ConfigurationError, KingtaskError, NoAnswer, PermissionDenied
from tests.integration.keyed import Keyed, RecordingProxy
from tests.integration.rig import Daemon
from tests.processes import until

pytestmark = pytest.mark.long


@pytest.fixture
def keyed() -> Iterator[Keyed]:
    with Keyed() as rig:
        yield rig


def reloaded(broker: Daemon, outcome: str = "done") -> str:
    seen = len(broker.text())
    broker.signal(signal.SIGHUP)
    until(lambda: f"reload={outcome}" in broker.text()[seen:], f"reload={outcome}")
    return broker.text()[seen:]


def nothing_was_done(keyed: Keyed) -> bool:
    stats = keyed.client().stats()
    return stats["queues"] == [] and keyed.executions() == []


def test_who_has_a_key_gets_everything_done(keyed: Keyed):
    keyed.start_broker()
    worker = keyed.start_worker(period=3600)  # so it is woken up, over CURVE
    worker.until_logged("wakeup=connected")
    client = keyed.client()
    assert [client.submit("ledger", env=keyed.env).wait(timeout=30).success for _ in range(3)] == [True] * 3

    async def ask() -> bool:
        async with AsyncClient(keyed.daemons[0].endpoint, **keyed.keys) as other:
            task = await other.submit("ledger", env=keyed.env)
            return (await task.wait(timeout=30)).success

    assert asyncio.run(ask())
    big = client.submit("ledger", ["0", "x" * 100_000], env=keyed.env, stdin=b"x" * 1_000_000)
    assert big.wait(timeout=30).success


@pytest.mark.parametrize("who", ["nobody", "mallory", "wrong server"])
def test_who_has_no_key_that_fits_is_told_and_gets_nothing_done(keyed: Keyed, who: str):
    broker = keyed.start_broker()
    keyed.start_worker()
    keyed.pair("mallory")
    keys, told, counted = {
        "nobody": ({}, "--curve-key and --server-key", "without a key"),
        "mallory": (keyed.keys_of("mallory"), "does not know this client's key", "its key is not known"),
        "wrong server": (
            keyed.keys_of("alice", server="mallory"),
            "another key than the given server key",
            "wrong server key",
        ),
    }[who]
    with Client(broker.endpoint, timeout=3, **keys) as client:
        for act in (client.ping, client.stats, lambda: client.submit("ledger", env=keyed.env)):
            with pytest.raises(PermissionDenied, match=told) as refused:
                act()
            assert refused.value.stored == "no"

    async def ask() -> None:
        async with AsyncClient(broker.endpoint, timeout=3, **keys) as other:
            await other.submit("ledger", env=keyed.env)

    with pytest.raises(PermissionDenied, match=told):
        asyncio.run(ask())
    broker.until_logged(counted)
    assert nothing_was_done(keyed)
    refused_by = keyed.client().stats()["brokers"][0]["refused"]
    assert set(refused_by) <= {"handshake_failed"}  # nothing that needed an answer, so nothing reached the requests


def test_an_unknown_key_is_refused_at_once(keyed: Keyed):
    """The broker says so, so nobody has to wait for the time-out."""
    broker = keyed.start_broker()
    keyed.pair("mallory")
    with Client(broker.endpoint, timeout=3600, **keyed.keys_of("mallory")) as client, pytest.raises(PermissionDenied):
        client.ping()


def test_keys_against_a_broker_without_any(keyed: Keyed):
    broker = keyed.start_broker(curve=None, ready=False)
    with Client(broker.endpoint, timeout=5, **keyed.keys) as client:
        until(lambda: "broker=started" in broker.text(), "the broker")
        with pytest.raises(PermissionDenied, match="or that uses no keys"):
            client.ping()


def test_a_broker_that_is_away_is_no_matter_of_keys(keyed: Keyed):
    broker = keyed.start_broker()
    client = keyed.client(timeout=2)
    client.ping()
    broker.kill()
    with pytest.raises(NoAnswer):
        client.ping()


def test_a_revoked_client_is_cut_off_and_refused(keyed: Keyed):
    broker = keyed.start_broker()
    worker = keyed.start_worker()
    keyed.admit(keyed.pair("bob"))
    assert "key=added client=bob" in reloaded(broker)
    with zmq.Context() as context, keyed.socket(zmq.DEALER, context, "bob") as bob:
        bob.rcvtimeo = 30_000
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        with bob.get_monitor_socket(events) as monitor:
            bob.connect(broker.endpoint)
            ping = protocol.encode_request(1, "ping", {})
            bob.send(ping)
            assert protocol.decode_reply(bob.recv())["ok"]
            keyed.revoke("bob")
            assert "key=revoked client=bob" in reloaded(broker)
            for event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_AUTH):
                assert recv_monitor_message(monitor)["event"] == event
            bob.disable_monitor()
            with suppress(zmq.Again):  # libzmq may have given up the connection
                bob.send(
                    protocol.encode_request(2, "submit", {"task": {"name": "ledger", "env": keyed.env}}), zmq.NOBLOCK
                )
            assert not bob.poll(200)
    assert "its key was revoked" in broker.text()
    assert nothing_was_done(keyed)
    assert worker.stop() == 0


def test_a_revoked_client_is_not_told_what_it_waits_for(keyed: Keyed):
    broker = keyed.start_broker()
    task = keyed.client().submit("ledger", env=keyed.env)
    keyed.admit(keyed.pair("bob"))
    reloaded(broker)
    with zmq.Context() as context, keyed.socket(zmq.DEALER, context, "bob") as bob:
        bob.connect(broker.endpoint)
        bob.send(protocol.encode_request(1, "wait", {"id": task.id, "timeout_s": 60.0}))
        redis = keyed.redis.client()
        until(lambda: redis.hget(f"{{kingtask}}:task:{task.id}", "watched") == b"1", "it to wait")
        keyed.revoke("bob")
        reloaded(broker)
        keyed.start_worker()
        assert task.wait(timeout=30).success
        assert not bob.poll(0)


def test_no_secret_key_is_written_down(keyed: Keyed):
    broker = keyed.start_broker(log_level="debug")
    worker = keyed.start_worker(log_level="debug")
    worker.until_logged("wakeup=connected")
    assert keyed.client().submit("ledger", env=keyed.env).wait(timeout=30).success
    keyed.admit(keyed.pair("bob"))
    reloaded(broker)
    secret = keyed.private / "bob.key_secret"
    (keyed.authorized / "bob.key").write_bytes(secret.read_bytes())
    assert "bob.key holds a secret key" in reloaded(broker, "refused")
    keys = [curve.read_pair(path).secret.decode() for path in keyed.private.glob("*.key_secret")]
    assert len(keys) == 4
    for daemon in (broker, worker):
        assert daemon.text()
        assert not [key for key in keys if key in daemon.text()], daemon.kind


def test_a_revoked_worker_hears_nothing_more(keyed: Keyed):
    broker = keyed.start_broker()
    worker = keyed.start_worker(period=0.05)
    worker.until_logged("wakeup=connected")
    client = keyed.client()
    assert client.submit("ledger", env=keyed.env).wait(timeout=30).success  # so it has said that it is idle
    keyed.revoke("worker")
    reloaded(broker)
    worker.until_logged("wakeup=refused")
    assert "does not know this worker's key" in worker.text()
    until(lambda: "its key was revoked" in broker.text(), "the broker to cut it off")
    assert client.submit("ledger", env=keyed.env).wait(timeout=30).success  # Redis is where tasks come from
    keyed.admit("worker")
    reloaded(broker)
    until(lambda: worker.text().count("wakeup=connected") == 2, "the worker to come back")


def test_a_directory_with_something_wrong_in_it_changes_nothing(keyed: Keyed):
    broker = keyed.start_broker()
    (keyed.authorized / "bob.key").write_text("")
    assert "bob.key is empty" in reloaded(broker, "refused")
    assert keyed.client().ping()["ready"]


@pytest.mark.parametrize("failure", ["no_authenticator", "authenticator_fails"])
def test_without_an_authenticator_nobody_is_let_in(keyed: Keyed, failure: str):
    broker = start_failing(keyed, failure)
    broker.until_logged("broker=started")
    for keys in (keyed.keys, {}):
        with Client(broker.endpoint, timeout=1, **keys) as client, pytest.raises((PermissionDenied, NoAnswer)):
            client.ping()
    assert "refused=handshake_failed" in broker.text()
    assert broker.stop() == 0


def test_a_broker_that_would_let_everybody_in_does_not_start(keyed: Keyed):
    """libzmq asks no authenticator about a socket whose domain is empty."""
    broker = start_failing(keyed, "empty_domain")
    assert broker.process is not None
    assert broker.process.wait(60) == 3
    assert "a client with an unknown key was let in" in broker.text()


def start_failing(keyed: Keyed, failure: str) -> Daemon:
    def dress(daemon: Daemon) -> None:
        daemon.environment["KINGTASK_FAILPOINTS"] = failure

    keyed.dress = dress  # type: ignore[method-assign]
    return keyed.start_broker(ready=False)


def test_a_public_address_needs_no_more_than_keys(keyed: Keyed):
    broker = keyed.start_broker(addr=f"0.0.0.0:{free()}", ready=False)
    broker.until_logged("broker=started")
    broker.config["curve"] = None
    broker.stop()


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


SECRETS = ("hush-hush", "do-not-tell")


def test_nothing_can_be_read_on_the_way_and_nothing_be_sent_again(keyed: Keyed):
    broker = keyed.start_broker()
    worker = keyed.start_worker()
    keyed.executable(SECRETS[0], '#!/bin/sh\necho ran >> "$TASK_LEDGER"; echo $1\n')
    port = int(broker.endpoint.rpartition(":")[2])
    with RecordingProxy(port) as wire:
        with Client(f"127.0.0.1:{wire.port}", **keyed.keys) as client:
            task = client.submit(SECRETS[0], [SECRETS[1]], env=keyed.env)
            assert task.wait(timeout=30).stdout == f"{SECRETS[1]}\n".encode()
        until(lambda: len(wire.up) == 1 and len(wire.down[0]) > 500, "what went over the wire")
        for kept in (wire.up[0], wire.down[0]):
            assert not [word for word in (*SECRETS, "submit", task.id) if word.encode() in kept]
        sent = bytes(wire.up[0])
    before = [queue["totals"] for queue in keyed.client().stats()["queues"]]
    failed = broker.text().count("handshake")
    for part in (sent, sent[:64] + sent[64 + 200 :], sent + sent):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.settimeout(30)
            raw.sendall(part)
            answer = b""
            while more := answer_part(raw):  # until the broker ends the connection
                answer += more
        assert SECRETS[1].encode() not in answer
    assert [queue["totals"] for queue in keyed.client().stats()["queues"]] == before
    assert keyed.ledger.read_text() == "ran\n"
    until(lambda: broker.text().count("handshake") > failed, "the broker to count them")
    assert worker.stop() == 0


def answer_part(raw: socket.socket) -> bytes:
    try:
        return raw.recv(65_536)
    except ConnectionResetError:
        return b""


def test_a_storm_of_bad_keys_keeps_nobody_out(keyed: Keyed):
    """2,000 handshakes with keys that nobody knows, eight at a time; meanwhile a client comes and goes."""
    broker = keyed.start_broker()
    keyed.pair("mallory")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.setsockopt(zmq.MAX_SOCKETS, 1000)

    def storm(thread: int) -> None:
        for i in range(250):
            with keyed.socket(zmq.DEALER, context, "mallory") as dealer:
                dealer.setsockopt(zmq.RECONNECT_IVL, -1)
                with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED, f"inproc://{thread}.{i}") as monitor:
                    dealer.connect(broker.endpoint)
                    assert monitor.poll(30_000)
                    monitor.recv_multipart()

    threads = [threading.Thread(target=storm, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    came = 0
    while any(thread.is_alive() for thread in threads):
        with Client(broker.endpoint, timeout=30, **keyed.keys) as client:
            assert client.ping()["ready"]
            came += 1
    context.term()
    assert came > 10
    client = keyed.client()
    until(
        lambda: client.stats()["brokers"][0]["refused"].get("handshake_failed") == 2000,
        lambda: f"all to be counted: {client.stats()['brokers'][0]['refused']}",
    )
    assert broker.text().count("refused=handshake_failed") < 5


KEYS = ("--curve-key", "--server-key")


def kingtask(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kingtask", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_command_line_has_keys_by_option_or_by_environment(keyed: Keyed):
    broker = keyed.start_broker()
    keyed.pair("mallory")
    address = ("--broker", broker.endpoint, "--timeout", "3")
    alice, mallory = keyed.keys, keyed.keys_of("mallory")
    named = {"KINGTASK_CURVE_KEY": str(alice["curve_key"]), "KINGTASK_SERVER_KEY": str(alice["server_key"])}
    assert kingtask("ping", *address, **named).returncode == 0
    assert kingtask("ping", *address, KEYS[0], alice["curve_key"], KEYS[1], alice["server_key"]).returncode == 0
    for keys, status, told in (
        ((), 5, "requires keys"),
        ((KEYS[0], mallory["curve_key"], KEYS[1], alice["server_key"]), 5, "does not know this client's key"),
        (
            (KEYS[0], alice["curve_key"], KEYS[1], keyed.private / "mallory.key"),
            5,
            "another key than the given server key",
        ),
        ((KEYS[0], alice["curve_key"]), 3, "but not the broker's public one"),
        ((KEYS[0], alice["server_key"], KEYS[1], alice["server_key"]), 3, "holds a public key only"),
        ((KEYS[0], keyed.private / "nobody.key_secret", KEYS[1], alice["server_key"]), 3, "cannot read"),
    ):
        ended = kingtask("ping", *address, *keys)
        assert (ended.returncode, told in ended.stderr) == (status, True), ended


def test_doctor_comes_with_keys_or_says_which_it_needs(keyed: Keyed):
    broker = keyed.start_broker()
    args = ("doctor", "-c", broker.path, "--timeout", "5")
    assert "--curve-key and --server-key" in kingtask(*args).stdout
    alice = keyed.keys
    told = kingtask(*args, KEYS[0], alice["curve_key"], KEYS[1], alice["server_key"]).stdout
    assert "an OK means: fsync" in told


def test_keygen_prints_what_it_made_and_replaces_nothing_unasked(tmp_path: Path):
    made = kingtask("keygen", "bob", "--directory", tmp_path)
    assert made.returncode == 0
    assert made.stdout.split() == [f"{tmp_path}/bob.key", f"{tmp_path}/bob.key_secret"]
    again = kingtask("keygen", "bob", "--directory", tmp_path)
    assert (again.returncode, "exists" in again.stderr) == (3, True)
    assert kingtask("keygen", "bob", "--directory", tmp_path, "--replace").returncode == 0
    assert kingtask("keygen", "../bob", "--directory", tmp_path).returncode == 3


def test_one_key_without_the_other_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KINGTASK_SERVER_KEY", "/nowhere")
    with pytest.raises(ConfigurationError, match="but not the own secret one"):
        Client()
    assert issubclass(ConfigurationError, KingtaskError)
