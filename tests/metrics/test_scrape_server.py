"""The HTTP server with hostile peers: it replies, and serves the next peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import CounterMetricFamily

from kingtask.endpoint import Address
from kingtask.errors import ConfigurationError
from kingtask.metrics import scrape_server as module
from kingtask.metrics.scrape_server import CONNECTIONS, MAX_HEAD_BYTES, ScrapeServer
from tests.metrics.scrape import Figures, ask
from tests.processes import until
from tests.servers import free_port

PATIENCE_S = 20.0


class ScrapeServerThread:
    """A ScrapeServer on a loop in its own thread."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.scrapes = 0
        self.reasons: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.broken: Exception | None = None
        self.many = 1
        self.server = ScrapeServer(Address("127.0.0.1", self.port), self.collect, lambda: self.reasons)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, daemon=True)

    async def collect(self) -> list[CounterMetricFamily]:
        self.scrapes += 1
        await self.go_on.wait()
        if self.broken is not None:
            raise self.broken
        return [CounterMetricFamily(f"kingtask_things{n}", "Things.", n) for n in range(self.many)]

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self) -> None:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.server.open(), self.loop).result(PATIENCE_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.close(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def hold(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.clear)

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.set)

    def forget(self) -> None:
        """Make the last text old."""
        self.server._text_s = -1e9

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)


@pytest.fixture
def served() -> Iterator[ScrapeServerThread]:
    serving = ScrapeServerThread()
    serving.start()
    yield serving
    serving.stop()


def everything(connection: socket.socket) -> bytes:
    """Return the bytes received until the peer closes; empty if it aborts."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            got += part
    return got


def exchange(served: ScrapeServerThread, sent: bytes) -> bytes:
    with served.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        return everything(connection)


def test_figures_health_and_readiness(served: ScrapeServerThread) -> None:
    status, text = ask(served.address, "/metrics?name=x")
    assert (status, Figures(text)("kingtask_things0_total")) == (200, 0.0)
    assert ask(served.address, "/healthz") == (200, "ok\n")
    assert ask(served.address, "/readyz") == (200, "ok\n")
    served.reasons = ["redis: away", "another"]
    assert ask(served.address, "/readyz") == (503, "redis: away\nanother\n")
    assert ask(served.address, "/healthz") == (200, "ok\n")


def test_head_has_no_body_and_other_methods_and_paths_are_errors(served: ScrapeServerThread) -> None:
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
def test_a_malformed_request_is_a_bad_request(served: ScrapeServerThread, sent: bytes) -> None:
    assert exchange(served, sent).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_head_without_end_is_refused_at_its_bound(served: ScrapeServerThread) -> None:
    exchange(served, b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES)  # unread, it costs the answer
    assert exchange(served, b"GET /" + b"x" * MAX_HEAD_BYTES).startswith(b"HTTP/1.1 431 ")
    assert ask(served.address, "/healthz")[0] == 200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_after_any_bytes_the_next_request_is_answered(served: ScrapeServerThread, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        everything(connection)
    assert ask(served.address, "/healthz") == (200, "ok\n")


def test_a_request_in_pieces_and_a_half_closed_connection(served: ScrapeServerThread) -> None:
    with served.connect() as connection:
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            connection.sendall(bytes([byte]))
        connection.shutdown(socket.SHUT_WR)
        assert b"kingtask_things0_total 0.0\n" in everything(connection)


def test_bytes_after_the_head_are_ignored(served: ScrapeServerThread) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n" + b"x" * (MAX_HEAD_BYTES - 1))
        assert everything(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_peer_that_keeps_sending_fills_no_memory(served: ScrapeServerThread) -> None:
    served.hold()
    taken = 0
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while taken < 1_000_000:
                taken += connection.send(b"x" * 4_096)
    served.release()
    assert taken < 100_000
    assert ask(served.address, "/healthz")[0] == 200


def test_a_silent_peer_is_disconnected(served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.05)
    with served.connect() as connection:
        assert everything(connection) == b""


def test_a_peer_that_does_not_read_is_disconnected_and_blocks_no_other(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPLY_S", 0.3)
    served.many = 20_000
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.connect(("127.0.0.1", served.port))
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(served.address, "/healthz") == (200, "ok\n")
        until(lambda: not served.server._connections, "the end of the connection")


def test_slow_connections_end_when_others_need_their_places(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most CONNECTIONS at once, and a request is answered at any time."""
    monkeypatch.setattr(module, "REQUEST_S", 10 * PATIENCE_S)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.connect()) for _ in range(CONNECTIONS)]
        until(lambda: len(served.server._connections) == CONNECTIONS, "all of them")
        assert ask(served.address, "/metrics")[0] == 200
        assert everything(held[0]) == b"", "the oldest is ended"
        for connection in held[1:]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 200 OK\r\n"), "no other is ended"
        until(lambda: not served.server._connections, "nobody")


def test_an_unread_reply_makes_room_but_a_request_that_waits_does_not(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    monkeypatch.setattr(module, "REPLY_S", 10 * PATIENCE_S)
    served.many = 20_000

    def states() -> list[int]:
        return sorted(connection.state for connection in served.server._connections.values())

    with socket.socket() as lazy, served.connect() as waiting:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.connect(("127.0.0.1", served.port))
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: module._ANSWERED in states(), "an answer that is not read")
        served.forget()
        served.hold()
        waiting.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: states() == [module._WAITING, module._ANSWERED], "both places to be taken")
        assert ask(served.address, "/healthz") == (200, "ok\n")
        until(lambda: states() == [module._WAITING], "the end of the one that does not read")
        served.many = 1
        served.release()
        assert everything(waiting).startswith(b"HTTP/1.1 200 OK\r\n")


def test_one_address_cannot_take_the_places_of_another(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        first, *others = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", served.port), PATIENCE_S, source_address=(address, 0))
            )
            for address in ("127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2")
        ]
        assert everything(others[0]) == b"", "the oldest of those with the most"
        first.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert everything(first).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (host, 200)
            for host in ("127.0.0.1", "127.0.0.1:9597", "[::1]:9597", "10.1.2.3", "localhost", "LocalHost:1")
        ),
        *((host, 200) for host in ("broker", "my-broker_1:9597", "x.localhost", "localhost.localdomain:80", "")),
        *((host, 200) for host in (socket.gethostname(), "metrics.example.org", "Metrics.Example.org.:9597")),
        *(
            (host, 421)
            for host in ("evil.example", "evil.example:9597", "127.0.0.1.evil.example", "localhost.evil.com")
        ),
        *(
            (host, 421)
            for host in ("evil.metrics.example.org", "metrics-example-org.evil.com", "a b", "[::1].x", "1.2.x")
        ),
    ],
)
def test_only_hosts_that_a_web_page_cannot_take_over_are_answered(
    served: ScrapeServerThread, host: str, status: int, path: str
) -> None:
    """A page of evil.example that lets its name lead to 127.0.0.1 may otherwise read the metrics (DNS rebinding)."""
    named = ScrapeServer(Address("metrics.example.org", served.port), served.collect, list)
    served.server._hosts = named._hosts
    reply = exchange(served, f"GET {path} HTTP/1.1\r\nA: b\r\nhOst: \t{host} \r\n\r\n".encode())
    assert reply.split(b" ")[1] == str(status).encode()
    assert (b"kingtask" in reply) == (status == 200 and path == "/metrics")
    twice = exchange(served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: {host}\r\n\r\n".encode())
    assert twice.split(b" ")[1] == str(status).encode()


def test_concurrent_scrapes_and_those_of_a_second_share_one_text(served: ScrapeServerThread) -> None:
    served.hold()
    held = [served.connect() for _ in range(8)]
    for connection in held:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert ask(served.address, "/healthz")[0] == 200  # by now the loop has read the earlier requests
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


def test_a_scrape_that_times_out_leaves_the_text_to_others(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.hold()
    with monkeypatch.context() as patched, served.connect() as connection:
        patched.setattr(module, "REPLY_S", 0.05)
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert everything(connection) == b""
    with served.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(served.address, "/healthz")[0] == 200  # by now the loop has read the earlier request
        served.release()
        assert everything(connection).startswith(b"HTTP/1.1 200 OK\r\n")
    assert served.scrapes == 1


def test_an_exception_fails_that_scrape_only(served: ScrapeServerThread) -> None:
    served.broken = RuntimeError("a bug")
    assert ask(served.address, "/metrics") == (500, "the log says why: RuntimeError\n")
    served.broken = None
    assert ask(served.address, "/metrics")[0] == 200


def test_the_loop_runs_while_a_long_text_is_formatted(
    served: ScrapeServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the turns of the loop during a scrape, not milliseconds: a busy machine does not change them."""
    monkeypatch.setattr(module, "TURN_S", 0.0)
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


def test_an_address_in_use(served: ScrapeServerThread) -> None:
    other = ScrapeServer(Address("127.0.0.1", served.port), served.collect, list)
    with pytest.raises(ConfigurationError, match=r"metrics_addr: cannot listen on 127\.0\.0\.1:\d+: it is in use"):
        asyncio.run(other.open())
