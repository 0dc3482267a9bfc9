"""The HTTP server against peers that misbehave: it answers, and is there for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kingtask.errors import ConfigurationError
from kingtask.metrics import scrape_server as module
from kingtask.metrics.family import Family, counter
from kingtask.metrics.scrape_server import CONNECTIONS, MAX_HEAD_BYTES, ScrapeServer
from tests.metrics.scrape import Figures, ask
from tests.processes import until
from tests.servers import free_port

PATIENCE_S = 20.0


class Served:
    """An Endpoint on a loop in a thread of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.scrapes = 0
        self.trouble: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.broken: Exception | None = None
        self.many = 1
        self.endpoint = ScrapeServer(
            "127.0.0.1", self.port, public=False, families=self.families, trouble=lambda: self.trouble
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)

    async def families(self) -> list[Family]:
        self.scrapes += 1
        await self.go_on.wait()
        if self.broken is not None:
            raise self.broken
        return [counter(f"kingtask_things{n}_total", "Things.", n) for n in range(self.many)]

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self) -> None:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.endpoint.open(), self.loop).result(PATIENCE_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.endpoint.close(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def hold(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.clear)

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.set)

    def forget(self) -> None:
        """As if the last text were old."""
        self.endpoint._text_s = -1e9

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)


@pytest.fixture
def served() -> Iterator[Served]:
    serving = Served()
    serving.start()
    yield serving
    serving.stop()


def everything(connection: socket.socket) -> bytes:
    """What comes until the other end closes; empty if it cuts."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            got += part
    return got


def exchange(served: Served, sent: bytes) -> bytes:
    with served.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        return everything(connection)


def test_figures_health_and_readiness(served: Served) -> None:
    status, text = ask(served.address, "/metrics?name=x")
    assert (status, Figures(text)("kingtask_things0_total")) == (200, 0.0)
    assert ask(served.address, "/healthz") == (200, "ok\n")
    assert ask(served.address, "/readyz") == (200, "ok\n")
    served.trouble = ["redis: away", "another"]
    assert ask(served.address, "/readyz") == (503, "redis: away\nanother\n")
    assert ask(served.address, "/healthz") == (200, "ok\n")


def test_head_has_no_body_and_others_are_told_what_is_expected(served: Served) -> None:
    head = exchange(served, b"HEAD /healthz HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert ask(served.address, "/") == (404, "expected one of /metrics, /healthz, /readyz\n")
    assert ask(served.address, "/metrics", "POST") == (405, "expected GET or HEAD\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in exchange(served, b"DELETE / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/2\r\n\r\n",
        b"get /metrics HTTP/1.1\r\n\r\n",
        b"GET /m\xc3\xa9trics HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_so(served: Served, sent: bytes) -> None:
    assert exchange(served, sent).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_head_without_end_is_refused_at_its_bound(served: Served) -> None:
    exchange(served, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES)  # unread, it costs the answer
    assert exchange(served, b"GET /" + b"x" * MAX_HEAD_BYTES).startswith(b"HTTP/1.1 431 ")
    assert ask(served.address, "/healthz")[0] == 200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_whatever_is_sent_the_next_one_is_answered(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        everything(connection)
    assert ask(served.address, "/healthz") == (200, "ok\n")


def test_a_request_in_pieces_and_a_peer_that_has_said_all(served: Served) -> None:
    with served.connect() as connection:
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)
        assert b"kingtask_things0_total 0.0\n" in everything(connection)


def test_who_says_nothing_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.05)
    with served.connect() as connection:
        assert everything(connection) == b""


def test_a_reader_that_does_not_read_is_cut_off_and_hinders_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLY_S", 0.3)
    served.many = 20_000
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.connect(("127.0.0.1", served.port))
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(served.address, "/healthz") == (200, "ok\n")
        until(lambda: not served.endpoint._connections, "the end of the connection")


def test_too_many_at_once_are_turned_away_and_leave_room_when_they_go(served: Served) -> None:
    held = [served.connect() for _ in range(CONNECTIONS)]
    until(lambda: len(served.endpoint._connections) == CONNECTIONS, "all of them")
    with served.connect() as one_more:
        assert everything(one_more) == b""
    assert served.endpoint.turned_away == 1
    for connection in held:
        connection.close()
    until(lambda: not served.endpoint._connections, "nobody")
    assert ask(served.address, "/healthz")[0] == 200


def test_scrapes_at_once_share_one_text_and_a_young_one_is_told_again(served: Served) -> None:
    served.hold()
    held = [served.connect() for _ in range(8)]
    for connection in held:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    until(lambda: len(served.endpoint._waiting) == 8, "all of them wait")
    held.pop().close()  # one does not wait for it
    served.release()
    answers = {everything(connection) for connection in held}
    for connection in held:
        connection.close()
    assert len(answers) == 1
    assert served.scrapes == 1
    served.forget()
    assert ask(served.address, "/metrics")[0] == 200
    assert served.scrapes == 2
    assert ask(served.address, "/metrics")[0] == 200
    assert served.scrapes == 2


def test_a_fault_of_ours_costs_that_scrape(served: Served) -> None:
    served.broken = RuntimeError("a bug")
    assert ask(served.address, "/metrics") == (500, "the log says why: RuntimeError\n")
    served.broken = None
    assert ask(served.address, "/metrics")[0] == 200


def test_the_loop_goes_on_while_a_long_text_is_written(served: Served) -> None:
    """Turns of the loop during one scrape, not milliseconds: they tell the same on a busy machine."""
    served.many = 2_000
    turns = 0
    done = threading.Event()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not done.is_set():
            served.loop.call_soon(turn)

    served.loop.call_soon_threadsafe(turn)
    before = turns
    assert ask(served.address, "/metrics")[0] == 200
    done.set()
    assert turns - before > 2_000


def test_an_address_that_is_taken(served: Served) -> None:
    other = ScrapeServer("127.0.0.1", served.port, public=False, families=served.families, trouble=list)
    with pytest.raises(ConfigurationError, match=r"metrics_addr: cannot listen on 127\.0\.0\.1:\d+: it is in use"):
        asyncio.run(other.open())
