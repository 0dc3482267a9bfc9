"""Redis servers of every kind that `redis:` can name, and those that are refused."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kingtask import Client, NotConfirmed, Task, Unavailable
from tests.integration.rig import StackHarness
from tests.integration.test_brokers import refused_start
from tests.processes import PATIENCE_S, until
from tests.servers import FAST_REPLICATION, RedisServer, free_port


def runs_a_task(rig: StackHarness, **redis_settings: Any) -> None:
    rig.start_broker(**redis_settings)
    rig.start_worker(**redis_settings)
    assert rig.client().submit("ledger", env=rig.env).wait(PATIENCE_S).success


def test_a_unix_socket_and_a_database(rig: StackHarness) -> None:
    runs_a_task(rig, redis=f"unix://{rig.redis.socket}?db=3")
    assert rig.redis.client(db=3).exists("{kingtask}:meta")
    assert not rig.redis.client().exists("{kingtask}:meta")


def test_a_user_with_a_password_from_a_file(rig: StackHarness) -> None:
    rig.redis.client().execute_command("ACL", "SETUSER", "worker", "on", ">s3cret:/@", "~*", "&*", "+@all")
    rig.redis.client().execute_command("ACL", "SETUSER", "default", "off")
    password = rig.directory / "password"
    password.write_text("s3cret:/@\n")
    password.chmod(0o600)
    broker: dict[str, Any] = {"redis": f"unix://worker@{rig.redis.socket}", "redis_password_file": str(password)}
    daemon = rig.start_broker(**broker)
    assert "s3cret" not in daemon.text()


def test_a_password_that_is_rotated_is_read_again(rig: StackHarness) -> None:
    password = rig.directory / "password"
    password.write_text("first-s3cret\n")
    password.chmod(0o600)
    rig.redis.client().config_set("requirepass", "first-s3cret")
    settings: dict[str, Any] = {"redis_password_file": str(password)}
    daemons = rig.start_broker(**settings), rig.start_worker(**settings)
    client = rig.client(timeout=PATIENCE_S)
    admin = rig.redis.client(password="first-s3cret")
    admin.config_set("requirepass", "second-s3cret")
    admin.client_kill_filter(_type="normal", skipme=True)
    for daemon in daemons:
        daemon.until_logged("WRONGPASS")
    password.write_text("second-s3cret\n")
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert not any("s3cret" in daemon.text() for daemon in daemons)


def certify(directory: Path, name: str, *, host: str = "IP:127.0.0.1") -> dict[str, str]:
    """A certificate that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = directory / f"{name}-key.pem", directory / f"{name}.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate}"
        f" -subj /CN=127.0.0.1 -addext subjectAltName={host}".split(),
        check=True,
        capture_output=True,
    )
    return {"ca": str(certificate), "cert": str(certificate), "key": str(key)}


@contextmanager
def tls_server(certificate: Mapping[str, str], **options: Any) -> Iterator[tuple[RedisServer, str]]:
    """A server and its `rediss://` address. Skips where the server under test was built without TLS."""
    files = {f"tls_{'ca_cert' if name == 'ca' else name}_file": path for name, path in certificate.items()}
    port = free_port()
    server = RedisServer(appendonly="yes", appendfsync="always", **{"tls_port": port, **files, **options})
    try:
        server.start()
    except RuntimeError as error:
        server.close()
        if "TLS support" in str(error):
            pytest.skip("this server was built without TLS")
        raise
    with closing(server):
        yield server, f"rediss://127.0.0.1:{port}/1"


def test_tls_with_a_client_certificate_from_end_to_end(rig: StackHarness, tmp_path: Path) -> None:
    certificates = certify(tmp_path, "server")
    with tls_server(certificates) as (server, address):
        settings: dict[str, Any] = {"redis": address, "redis_tls": certificates}
        runs_a_task(rig, **settings)
        assert server.client(db=1).exists("{kingtask}:meta")
        broker = next(daemon for daemon in rig.daemons if daemon.kind == "broker")
        command = [sys.executable, "-m", "kingtask", "doctor", "-c", str(broker.path)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (told.returncode, "fail" in told.stdout) == (0, False), told.stdout
        stranger = rig.start_broker(ready=False, **{**settings, "redis_tls": {"ca": certificates["ca"]}})
        stranger.until_logged("redis=unreachable")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("issuer", "self-signed certificate"),
        ("host", "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ("date", "certificate has expired"),
    ],
)
def test_a_certificate_that_is_not_to_be_trusted_is_named_and_tried_again(
    rig: StackHarness, tmp_path: Path, wrong: str, told: str
) -> None:
    offered = certify(tmp_path, "offered", host="IP:127.9.9.9" if wrong == "host" else "IP:127.0.0.1")
    trusted = certify(tmp_path, "other") if wrong == "issuer" else offered
    if wrong == "date":
        path = offered["cert"]
        command = ["openssl", "x509", "-in", path, "-signkey", offered["key"], "-days", "-1", "-out", path]
        subprocess.run(command, check=True, capture_output=True)
    with tls_server(offered, tls_auth_clients="no") as (_, address):
        broker = rig.start_broker(ready=False, redis=address, redis_tls={"ca": trusted["ca"]})
        text = broker.until_logged("redis=unreachable")
        assert told in text
        assert "redis_tls" in text
        assert broker.process is not None
        assert broker.process.poll() is None


def test_a_server_without_functions_is_refused() -> None:
    with StackHarness(rename_command=("FUNCTION", "hidden")) as rig:
        told = refused_start(rig, "broker", {"addr": f"127.0.0.1:{free_port()}", "redis": rig.redis.url})
    assert "this server has no functions" in told


def test_a_server_that_evicts_is_refused(rig: StackHarness) -> None:
    rig.redis.client().config_set("maxmemory", "100mb")
    rig.redis.client().config_set("maxmemory-policy", "allkeys-lru")
    told = refused_start(rig, "broker", {"addr": f"127.0.0.1:{free_port()}", "redis": rig.redis.url})
    assert "set it to noeviction" in told


@pytest.fixture
def old_server() -> Iterator[int]:
    """Answers everything as Redis 6.2 answers INFO; such a server is in no distribution that the tests run on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(4096):
                        connection.sendall(b"$20\r\nredis_version:6.2.13\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_an_older_server_is_refused(rig: StackHarness, old_server: int) -> None:
    told = refused_start(rig, "worker", {"redis": f"127.0.0.1:{old_server}", "bin_path": str(rig.bin_path)})
    assert "redis 6.2.13; kingtask needs Redis 7.0 or Valkey 7.2" in told


def test_replicas_that_are_not_there_refuse_to_start(rig: StackHarness) -> None:
    settings = {"addr": f"127.0.0.1:{free_port()}", "redis": rig.redis.url, "ack": "replicas", "ack_timeout": 0.1}
    assert "ack: replicas needs 1 of them (ack_replicas), and 0 are attached" in refused_start(rig, "broker", settings)


def test_what_the_replicas_do_not_confirm_converges_when_it_is_sent_again(rig: StackHarness) -> None:
    with RedisServer(tcp=True, **FAST_REPLICATION) as primary, primary.replica() as replica:
        rig.start_broker(redis=primary.url, ack="replicas", ack_timeout=0.05)
        client = rig.client(timeout=PATIENCE_S)
        assert client.ping()["ack"] == "replicas"
        ended = client.submit("ledger", delay=3600)
        client.cancel(ended.id)
        calls: tuple[Callable[..., Task], ...] = (
            partial(client.submit, "ledger", id=str(uuid4())),
            partial(client.requeue, ended.id, str(uuid4())),
        )
        for call in calls:
            replica.pause()
            with pytest.raises(NotConfirmed) as caught:
                call(timeout=0.3)
            assert (caught.value.retryable, caught.value.stored) == (True, "unknown")
            assert client.get(str(caught.value.id)).state == "ready", "stored, and not confirmed"
            replica.resume()
            again = call()
            assert (again.id, again.outcome) == (caught.value.id, "exists")


def refusal(client: Client) -> str:
    with pytest.raises(Unavailable) as caught:
        client.submit("ledger", timeout=0.3)
    return str(caught.value)


def test_a_server_that_comes_back_empty_is_not_begun_anew(rig: StackHarness) -> None:
    """F55: nobody writes to it until the data are back, or somebody says that they will not be."""
    rig.redis.options["appendonly"] = "no"
    rig.redis.restart()
    broker, worker = rig.start_broker(), rig.start_worker()
    client = rig.client(timeout=PATIENCE_S)
    client.submit("ledger", env=rig.env).result()
    redis = rig.redis.client()
    identity: Any = redis.hgetall("{kingtask}:meta")
    rig.redis.restart()
    for daemon in (broker, worker):
        daemon.until_logged("has lost its identity")
    until(lambda: "has lost its identity" in refusal(client), "the broker says why it refuses")
    assert client.ping()["ready"] is False
    assert redis.keys() == []
    redis.hset("{kingtask}:meta", mapping=identity)  # as a restored backup would
    assert client.submit("ledger", env=rig.env, timeout=PATIENCE_S).wait(PATIENCE_S).success
    redis.flushall()
    worker.until_logged("FOREIGN")
    for daemon in (broker, worker):
        assert daemon.stop() == 0
        daemon.start()
    assert client.submit("ledger", env=rig.env, timeout=PATIENCE_S).wait(PATIENCE_S).success


def test_whoever_starts_first_waits_for_the_others(rig: StackHarness) -> None:
    """F41: a worker without a broker on a new database, a broker without Redis, and Redis last, slowly."""
    rig.redis.stop()
    address, wakeup = (f"127.0.0.1:{free_port()}" for _ in range(2))
    worker = rig.start_worker(broker=address, wakeup=wakeup, ready=False)
    worker.until_logged("redis=unreachable")
    rig.redis.start()
    worker.until_logged("is new: a broker must create it")
    assert rig.redis.client().keys() == []
    rig.redis.stop()
    broker = rig.start_broker(addr=address, wakeup=wakeup, ready=False)
    broker.until_logged("redis=unreachable")
    rig.redis.start()
    client = rig.client(timeout=PATIENCE_S)
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
