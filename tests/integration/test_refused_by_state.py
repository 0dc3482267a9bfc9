"""What a broker says to requests in good order that it cannot serve now: which code, and what is stored then."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import zmq

from kingtask import protocol
from kingtask.errors import REFUSALS
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, alive, until
from tests.servers import RedisServer


class RawClient:
    """A DEALER that says what it means byte by byte."""

    def __init__(self, broker: Daemon) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvtimeo = round(PATIENCE_S * 1000)
        self._socket.connect(broker.endpoint)
        self._kept: list[dict[str, Any]] = []

    def send(self, rid: int | str, op: str, **fields: Any) -> None:
        self._socket.send(protocol.encode_request(rid, op, fields))

    def receive(self) -> dict[str, Any]:
        return self._kept.pop(0) if self._kept else protocol.decode_reply(self._socket.recv())

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.send("asked", op, **fields)
        while (reply := protocol.decode_reply(self._socket.recv()))["rid"] != "asked":
            self._kept.append(reply)
        return reply

    def submit(self, **fields: Any) -> dict[str, Any]:
        return self.ask("submit", task={"id": str(uuid4()), "name": "example", **fields})

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def rig() -> Iterator[StackHarness]:
    with StackHarness() as made:
        yield made


@contextmanager
def peer_of(broker: Daemon) -> Iterator[RawClient]:
    peer = RawClient(broker)
    try:
        yield peer
    finally:
        peer.close()


def refused(reply: dict[str, Any], code: str) -> bool:
    """True if it is this refusal, and says of itself what the protocol's page says of the code."""
    if reply["ok"]:
        return False
    error = reply["error"]
    kind = REFUSALS[error["code"]]
    assert (error["retryable"], error["stored"]) == (kind.retryable, kind.stored)
    assert error["retry_after_s"] > 0, "when to come back"
    return bool(error["code"] == code)


def tasks(redis: RedisServer) -> set[str]:
    client: Any = redis.client()
    return {key.decode().rpartition(":")[2] for key in client.keys("*:task:*")}


def stopped(redis: RedisServer) -> Callable[[], None]:
    os.kill(redis.pid, signal.SIGSTOP)
    return lambda: os.kill(redis.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("config", "fields", "most"),
    [({"max_pending": 3}, {}, 3), ({"max_pending_bytes": 4_194_304}, {"stdin": bytes(1_000_000)}, 5)],
    ids=["requests", "bytes"],
)
def test_past_its_bounds_a_broker_is_busy_and_takes_what_it_took(
    rig: StackHarness, config: dict[str, Any], fields: dict[str, Any], most: int
) -> None:
    broker = rig.start_broker(**config)
    ids = [str(uuid4()) for _ in range(most + 20)]
    with peer_of(broker) as peer:
        go_on = stopped(rig.redis)
        for number, id_ in enumerate(ids):
            peer.send(number, "submit", task={"id": id_, "name": "example", **fields})
        replies = [peer.receive() for _ in range(20)]
        assert all(refused(reply, "busy") for reply in replies)
        assert peer.ask("ping")["ok"], "which is answered always"
        assert refused(peer.ask("get", id=ids[0]), "busy")
        go_on()
        replies += [peer.receive() for _ in range(most)]
        assert {reply["rid"] for reply in replies} == set(range(most + 20)), "one answer each"
        stored = {ids[reply["rid"]] for reply in replies if reply["ok"]}
        unknown = {ids[reply["rid"]] for reply in replies if not reply["ok"] and reply["error"]["stored"] == "unknown"}
        assert len(stored | unknown) == most
        until(lambda: peer.submit()["ok"], "it goes on")
        assert stored <= tasks(rig.redis) & set(ids) <= stored | unknown


def test_as_many_waits_as_may_be(rig: StackHarness) -> None:
    with peer_of(rig.start_broker(max_waits=2)) as peer:
        ids = [peer.submit(delay_s=3600)["id"] for _ in range(3)]
        for number, id_ in enumerate(ids):
            peer.send(number, "wait", id=id_, timeout_s=3600)
        reply = peer.receive()
        assert (reply["rid"], refused(reply, "busy")) == (2, True)
        assert peer.ask("get", id=ids[2])["ok"]


def away(redis: RedisServer) -> Callable[[], object]:
    redis.kill()
    return redis.start


def full(redis: RedisServer) -> Callable[[], None]:
    return set_to(redis, "maxmemory", "1", "0")


def without_replicas(redis: RedisServer) -> Callable[[], None]:
    return set_to(redis, "min-replicas-to-write", "1", "0")


def set_to(redis: RedisServer, name: str, value: str, back: str) -> Callable[[], None]:
    client: Any = redis.client()
    client.config_set(name, value)

    def take_back() -> None:
        client.config_set(name, back)

    return take_back


def a_replica(redis: RedisServer) -> Callable[[], None]:
    """Of nobody: its primary cannot be reached."""
    client: Any = redis.client()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client.execute_command("REPLICAOF", "127.0.0.1", str(nobody.getsockname()[1]))

    def take_back() -> None:
        client.execute_command("REPLICAOF", "NO", "ONE")

    return take_back


@pytest.mark.parametrize(
    ("happens", "code"),
    [(away, "unavailable"), (full, "store_full"), (without_replicas, "unavailable"), (a_replica, "unavailable")],
)
def test_without_a_redis_that_takes_it_nothing_is_stored_and_it_recovers_by_itself(
    rig: StackHarness, happens: Callable[[RedisServer], Callable[[], object]], code: str
) -> None:
    broker = rig.start_broker()
    pid = broker.pid
    with peer_of(broker) as peer:
        assert peer.submit(delay_s=3600)["ok"]
        before = tasks(rig.redis)
        take_back = happens(rig.redis)
        until(lambda: refused(peer.submit(), code), "the refusal")  # not_confirmed, to what was under way just then
        sent = [str(uuid4()) for _ in range(20)]
        told: Counter[str] = Counter()
        for id_ in sent:
            told[peer.submit(id=id_)["error"]["code"]] += 1
        assert told == {code: 20}
        assert peer.ask("ping")["ok"]
        take_back()
        until(lambda: peer.submit(id=sent[0])["ok"], "it recovers")
        assert not tasks(rig.redis) & set(sent[1:]), "stored: no"
        assert before <= tasks(rig.redis)
        until(lambda: counted(rig).get(code, 0) >= 21, lambda: f"its counts: {counted(rig)}")
    assert (broker.pid, alive(pid)) == (pid, True)
    assert broker.text().count(f"refused={code} ") == 1, "told once a minute"


def counted(rig: StackHarness) -> dict[str, int]:
    found: dict[str, int] = rig.client().stats()["brokers"][0]["refused"]
    return found


def test_a_broker_that_is_stopping_takes_nothing_more_and_answers_what_it_took(rig: StackHarness) -> None:
    broker = rig.start_broker()
    with peer_of(broker) as peer:
        go_on = stopped(rig.redis)
        ids = [str(uuid4()) for _ in range(2)]
        peer.send("before", "submit", task={"id": ids[0], "name": "example"})
        assert peer.ask("ping")["ready"], "so it has read the one before"
        broker.signal(signal.SIGTERM)

        def turned_away() -> bool:
            ready: bool = peer.ask("ping")["ready"]
            return not ready

        until(turned_away, "it is stopping")
        assert refused(peer.ask("submit", task={"id": ids[1], "name": "example"}), "unavailable")
        go_on()
        reply = peer.receive()
        assert (reply["rid"], reply["ok"] or reply["error"]["stored"] == "unknown") == ("before", True)
        assert broker.stop() == 0
    assert ids[1] not in tasks(rig.redis)
    assert not reply["ok"] or ids[0] in tasks(rig.redis)
