"""Replies that a peer does not read: what the broker holds of them, and what it does with the peer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
import zmq

from kingtask.broker import relay as module
from kingtask.broker.auth import Peer
from kingtask.broker.router import WINDOW_BYTES
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS, EchoRouter, Sockets
from tests.processes import until

LARGE = 5_000_000
"""Bytes of a reply for which the buffers of the kernel have no room."""


def read(peer: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(peer.recv(min(size, 1_000_000)))


def answer_with(served: EchoRouter, size: int) -> list[Peer]:
    """Have each request answered with so many bytes; return the list of those who asked."""
    asked: list[Peer] = []

    def answer(peer: Peer, message: bytes) -> None:
        asked.append(peer)
        served.router.reply(peer, bytes(size))

    served.on_request = answer
    return asked


def on_loop(served: EchoRouter, act: Callable[[], None]) -> None:
    """Run this between two turns of the broker's loop."""

    async def acted() -> None:
        act()

    asyncio.run_coroutine_threadsafe(acted(), served.loop).result(PATIENCE_MS / 1000)


def test_a_peer_with_twice_its_share_unread_is_not_read_until_it_has_read(sockets: Sockets, served: EchoRouter) -> None:
    served.relay.max_reply_bytes = module.SHARES * 100_000
    asked = answer_with(served, LARGE)
    echoed: list[bytes] = []

    def echo(sender: Peer, message: bytes) -> None:
        echoed.append(message)
        served.answer(sender, message)

    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"get"))
        until(lambda: served.relay.unread > 200_000, "its reply")
        served.on_request = echo
        peer.sendall(zmtp.frame(b"more"))
        other = sockets.new(zmq.DEALER, served.endpoint)
        for _ in range(20):
            other.send(b"x")
            other.recv()
        assert (len(asked), echoed) == (1, [b"x"] * 20)
        read(peer, LARGE + 9)
        assert peer.recv(100) == zmtp.frame(b"more")


def test_tiny_replies_count_with_their_memory_and_libzmq_has_few_of_them(served: EchoRouter) -> None:
    """A reply of one byte takes 300 times as much."""
    served.relay.max_reply_bytes = module.SHARES * 1_000_000
    asked: list[Peer] = []
    served.on_request = lambda sender, message: asked.append(sender)
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"wait"))
        until(lambda: bool(asked), "its request")
        replies = 30_000

        def end_all() -> None:
            for _ in range(replies):
                served.router.reply(asked[0], b"x")
            (connection,) = served.relay.connections.values()
            assert connection.given <= WINDOW_BYTES + 3
            assert served.relay.unread >= len(connection.replies) * module.QUEUED_BYTES > 1_000_000
            assert served.router.overfull(asked[0])

        on_loop(served, end_all)
        read(peer, replies * 3)
    until(lambda: served.relay.unread == 0, lambda: f"unread: {served.relay.unread}")
    assert not served.relay.unread_by_name


def test_over_the_bound_of_all_a_peer_that_does_not_read_is_cut_off_sooner(
    served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    monkeypatch.setattr(module, "SLOW_CHECKS", 10**9)
    answer_with(served, LARGE)
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"get"))
        until(lambda: served.relay.checks > 4 * module.CROWDED_CHECKS, "checks")
        assert served.counters.counts == {}, "all replies are few"
        served.relay.max_reply_bytes = 100_000
        until(lambda: served.counters.counts.get("cut_off") == 1, "it is cut off")
    until(lambda: not served.relay.connections, "nothing is left of it")
    assert (served.relay.unread, dict(served.relay.unread_by_name)) == (0, {})


def test_a_slow_peer_that_reads_is_not_cut_off(served: EchoRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 3600.0)
    answer_with(served, LARGE)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        peer.connect(("127.0.0.1", served.port))
        zmtp.shaken(peer).sendall(zmtp.frame(b"get"))
        until(lambda: bool(served.relay._watched), "its reply")
        for _ in range(module.SLOW_CHECKS + 10):
            read(peer, module.PROGRESS_BYTES)
            on_loop(served, served.relay._check)
        assert served.counters.counts == {}
        for _ in range(2 * module.SLOW_CHECKS):
            on_loop(served, served.relay._check)
        assert served.counters.counts == {"cut_off": 1}, "it has stopped to read"


def test_a_broker_that_stops_waits_for_replies_that_are_read(served: EchoRouter) -> None:
    answer_with(served, LARGE)
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"get"))
        until(lambda: served.relay.unread > 0, "its reply")
        sent = asyncio.run_coroutine_threadsafe(served.relay.sent(PATIENCE_MS / 1000), served.loop)
        on_loop(served, lambda: None)
        assert not sent.done()
        read(peer, LARGE + 9)
        sent.result(PATIENCE_MS / 1000)
        assert served.relay.unread == 0
    with zmtp.connect(served.port) as peer, suppress(OSError):
        peer.sendall(zmtp.frame(b"get"))
        until(lambda: served.relay.unread > 0, "its reply")
        asyncio.run_coroutine_threadsafe(served.relay.sent(0.0), served.loop).result(PATIENCE_MS / 1000)
        assert served.relay.unread > 0, "not longer than its bound"
