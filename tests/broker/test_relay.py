"""The relay against peers that would end or fill a broker, over real sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq

from kingtask.broker import relay as module
from kingtask.broker.auth import Peer
from kingtask.broker.counters import Counters
from kingtask.broker.relay import Relay, RelayedConnection
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS, EchoRouter, Sockets
from tests.processes import descriptors, until

ROOT = Path(__file__).parents[2]
GOOD = zmtp.frame(b"hello")


def alone(story: Callable[[str], None], argument: str) -> None:
    """Run a story in a process of its own, which libzmq may abort."""
    program = f"import {__name__} as m; m.{story.__name__}({argument!r})"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@contextmanager
def serving() -> Iterator[tuple[EchoRouter, Sockets]]:
    served, sockets = EchoRouter(), Sockets()
    served.thread.start()
    yield served, sockets
    sockets.close()
    served.stop()


def still_answers(served: EchoRouter, sockets: Sockets) -> None:
    dealer = sockets.new(zmq.DEALER, served.endpoint)
    dealer.send(b"still here")
    assert dealer.recv() == b"still here"


def ends_with_pings_behind_a_full_queue(how: str) -> None:
    with serving() as (served, sockets):
        peers = []
        for _ in range(100):
            peers.append(zmtp.connect(served.port))
            peers[-1].setblocking(False)
            with suppress(OSError):
                peers[-1].send(zmtp.full_queue())
            zmtp.end(peers[-1], how)
        still_answers(served, sockets)
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("how", zmtp.ENDS)
def test_no_end_of_a_connection_aborts_the_process(how: str) -> None:
    """libzmq asserts `!_io_error` if a PING stands behind a full queue whose connection is closed both ways."""
    alone(ends_with_pings_behind_a_full_queue, how)


def ends_while_its_message_is_read(_: str) -> None:
    module.MAX_FRAMES = 1_000_000  # as with CURVE
    with serving() as (served, sockets):
        for number in range(1, 4):
            peer = zmtp.connect(served.port)
            peer.sendall(zmtp.long_message(100_000))
            until(lambda: served.router.amid_message, "a part of the message is read")
            zmtp.end(peer, "reset")
            still_answers(served, sockets)
            until(lambda: len(served.relay.connections) == number, "it is forgotten")  # noqa: B023


def test_the_end_of_a_connection_whose_message_is_half_read_does_not_abort_the_process() -> None:
    """libzmq asserts `!_more` if an endpoint is dropped amid a message."""
    alone(ends_while_its_message_is_read, "")


def claims_the_routing_ids_of_later_connections(_: str) -> None:
    first = 0x6B8B4567  # libzmq's first routing id of its own: rand() without a seed
    with serving() as (served, sockets):
        claims = [b"\0" + struct.pack(">I", first + number) for number in range(200)] + [b"%d" % n for n in range(200)]
        peers = [zmtp.connect(served.port, identity=claim) for claim in claims]
        peers += [zmtp.connect(served.port) for _ in range(100)]
        still_answers(served, sockets)
        for peer in peers:
            peer.close()


def test_a_claimed_routing_id_does_not_abort_the_process() -> None:
    """libzmq asserts that a routing id of its own is free."""
    alone(claims_the_routing_ids_of_later_connections, "")


def test_many_that_come_and_go_at_once_are_all_answered(served: EchoRouter) -> None:
    """To connect takes events of the socket's descriptor, which is edge-triggered."""
    unanswered: list[int] = []

    def come_and_go() -> None:
        with zmq.Context() as context:
            for number in range(100):
                with context.socket(zmq.DEALER) as dealer:
                    dealer.linger = 0
                    dealer.rcvtimeo = PATIENCE_MS
                    dealer.connect(served.endpoint)
                    dealer.send(b"x")
                    try:
                        dealer.recv()
                    except zmq.Again:
                        unanswered.append(number)

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unanswered == []
    until(lambda: not served.relay.connections, "all connections are forgotten")
    assert served.relay.held == 0


def test_what_a_peer_sent_before_its_end_is_processed(served: EchoRouter) -> None:
    """libzmq drops the messages of an ended connection that are not read yet."""
    received: list[bytes] = []
    served.on_request = lambda peer, message: received.append(message)
    for number in range(50):
        with zmtp.connect(served.port) as peer:
            peer.sendall(zmtp.frame(b"%d" % number) * 3)
    until(lambda: len(received) == 150, lambda: f"all messages: {len(received)}")


def test_an_end_waits_until_libzmq_has_read_what_was_before(
    served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    with monkeypatch.context() as unread:
        unread.setattr(module, "_queued", lambda sender: 1)
        zmtp.connect(served.port).close()
        until(lambda: served.relay.checks > 10 * module.END_CHECKS, "checks")
        assert len(served.relay.connections) == 1
    until(lambda: not served.relay.connections, "it has ended")


def test_messages_without_an_end_cost_those_that_hold_most(
    sockets: Sockets, served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 1_000_000)
    part = zmtp.frame(bytes(300_000), zmtp.MORE)
    endless = [zmtp.connect(served.port) for _ in range(6)]
    for peer in endless:
        peer.setblocking(False)
        with suppress(BlockingIOError):
            peer.send(part)
    good = sockets.new(zmq.DEALER, served.endpoint)

    def some_are_cut() -> bool:
        good.send(bytes(100_000))
        assert len(good.recv()) == 100_000
        return bool(served.counters.counts.get("cut_off"))

    until(some_are_cut, "those with a message without an end are cut off")
    until(lambda: served.relay.held <= 1_000_000, lambda: f"less is held: {served.relay.held:,}")
    for peer in endless:
        peer.close()


def test_tiny_frames_count_with_their_memory(
    sockets: Sockets, served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each peer sends less than is always read, but a frame of two bytes takes 64 in memory."""
    monkeypatch.setattr(module, "HELD_BYTES", 1_000_000)
    peers = [zmtp.connect(served.port) for _ in range(20)]
    for peer in peers:
        peer.sendall(zmtp.frame(b"", zmtp.MORE) * 4_000)
    until(lambda: served.counters.counts.get("cut_off"), "some are cut off")
    until(lambda: served.relay.held <= 1_000_000, lambda: f"less is held: {served.relay.held:,}")
    still_answers(served, sockets)
    for peer in peers:
        peer.close()


def test_a_message_of_very_many_frames_costs_its_connection(sockets: Sockets, served: EchoRouter) -> None:
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"x", zmtp.MORE) * module.MAX_FRAMES)
        with suppress(ConnectionError):
            assert peer.recv(100) == b""
    assert served.counters.counts == {"cut_off": 1}
    still_answers(served, sockets)


@pytest.mark.parametrize("piece", [1, 7, 1_000])
def test_frames_are_counted_however_they_come(served: EchoRouter, piece: int) -> None:
    received: list[bytes] = []
    served.on_request = lambda peer, message: received.append(message)
    body = zmtp.frame(b"", zmtp.MORE) * 2 + zmtp.frame(bytes(300))  # in it what would be frames
    words = (zmtp.frame(b"", zmtp.MORE) + zmtp.frame(body)) * 100
    with zmtp.connect(served.port) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, 3_000, piece):
            peer.sendall(words[at : at + piece])
        peer.sendall(words[at + piece :])
        until(lambda: len(received) == 100, lambda: f"100 messages: {len(received)}")
        assert set(received) == {body}
        peer.sendall(zmtp.long_message(module.MAX_FRAMES))
        until(lambda: served.counters.counts.get("bad_frames"), "a message is refused")
        peer.sendall(zmtp.long_message(module.MAX_FRAMES + 1))
        until(lambda: served.counters.counts.get("cut_off"), "the next one is too long")
        assert served.counters.counts == {"bad_frames": 1, "cut_off": 1}


@pytest.mark.long
def test_peers_that_break_the_protocol_end_no_other_connection(served: EchoRouter) -> None:
    """libzmq keeps their endpoints, with pointers to sessions that it frees, and uses again for later connections."""
    answered: list[bytes] = []

    def come_and_go(sent: bytes) -> None:
        while len(answered) < 3_000:
            peers = [zmtp.connect(served.port) for _ in range(8)]
            for peer in peers:
                peer.sendall(sent)
            for peer in peers:
                with peer, suppress(ConnectionResetError):
                    if (reply := peer.recv(100)) or sent == GOOD:
                        answered.append(reply)

    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(come_and_go, sent) for sent in [GOOD] * 2 + [b"\xff" * 20] * 3]
    for end in ends:
        end.result()
    assert set(answered) == {GOOD}


def test_connections_that_end_before_libzmq_has_connected_leave_nothing(sockets: Sockets, served: EchoRouter) -> None:
    """The peers are there before the loop turns: one turn accepts all of them, and each makes room for the next."""
    served.relay.most = 8
    peers: list[socket.socket] = []

    def connect_at_once() -> None:
        peers.extend(socket.create_connection(("127.0.0.1", served.port)) for _ in range(module.ACCEPTS))

    served.loop.call_soon_threadsafe(connect_at_once)
    until(lambda: served.counters.counts.get("connection_refused") == module.ACCEPTS - 4, "four are left")
    for peer in peers:
        peer.close()
    until(lambda: not served.relay.connections, "all connections are forgotten")
    still_answers(served, sockets)


class WaitingConnection(RelayedConnection):
    """Holds a part of a message, and records whether it is cut off."""

    def __init__(self, relay: Relay, name: str) -> None:
        self._relay, self.name, self.id = relay, name, name.encode()
        self.held, self.since, self.ended = module.SMALL_BYTES + 1, 0, False
        relay.connections[self.id] = self
        relay.waiting[self] = None

    def review(self) -> None:
        pass

    def end(self, *, reset: bool = False) -> None:
        self.ended = True

    def completes(self) -> None:
        self.since = self._relay.checks
        self._relay.resume(self)


async def test_a_connection_that_waits_is_stalled_only_if_it_is_the_first_and_completes_nothing() -> None:
    with zmq.Context() as context:
        relay = Relay(context, Counters())
        relay.loop = asyncio.get_running_loop()
        relay.held = module.HELD_BYTES + 1
        good = WaitingConnection(relay, "good")
        for _ in range(10):
            relay._check()
            good.completes()
        other = WaitingConnection(relay, "other")
        good.completes()
        assert list(relay.waiting) == [other, good], "it waits for its turn"
        for _ in range(3):
            relay._check()
            good.completes()
        assert (good.ended, other.ended) == (False, False)
        other.held += 1
        relay._check()
        assert (good.ended, other.ended) == (False, True)
        relay.connections.clear()
        await relay.closed(0)
        relay.close()


def test_heartbeats_of_an_idle_peer_are_not_held_for_messages(served: EchoRouter) -> None:
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"hello"))
        assert peer.recv(100) == zmtp.frame(b"hello")
        before = served.relay.held
        for _ in range(100):
            peer.sendall(zmtp.PING)
            assert peer.recv(100)
        assert served.relay.held <= before


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_reply_to_a_peer_that_reads_is_dropped(served: EchoRouter) -> None:
    """5,000 waits of one connection that end together, with more bytes than its share, and a reader that is slow."""
    held: list[Peer] = []
    served.relay.max_reply_bytes = module.SHARES * 100_000
    served.on_request = lambda peer, message: held.append(peer)
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"wait") * 5_000)
        until(lambda: len(held) == 5_000, "the requests")

        def end_all() -> None:
            for number, sender in enumerate(held):
                served.router.reply(sender, b"%0200d" % number)

        served.loop.call_soon_threadsafe(end_all)
        received = bytearray()
        while len(received) < 5_000 * 202:
            received += peer.recv(10_000)
        assert received == b"".join(zmtp.frame(b"%0200d" % number) for number in range(5_000))
    assert served.counters.counts == {}
    until(lambda: served.relay.unread == 0, lambda: f"unread: {served.relay.unread}")


@pytest.mark.parametrize("reads", [False, True], ids=["nothing", "a byte now and then"])
def test_a_peer_that_does_not_read_is_cut_off(served: EchoRouter, monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    monkeypatch.setattr(module, "SLOW_CHECKS", 3)
    served.on_request = lambda peer, message: served.router.reply(peer, bytes(5_000_000))
    with zmtp.connect(served.port) as peer:
        peer.sendall(zmtp.frame(b"get"))

        def is_cut_off() -> bool:
            if reads:
                with suppress(OSError):
                    peer.recv(1)
            return bool(served.counters.counts.get("cut_off"))

        until(is_cut_off, "it is cut off")
    until(lambda: served.relay.unread == 0 and not served.relay.connections, "nothing is left of it")


def test_a_peer_that_leaves_its_share_unread_is_overfull_and_the_others_are_not(
    sockets: Sockets, served: EchoRouter
) -> None:
    served.relay.max_reply_bytes = module.SHARES * 1_000_000
    peers: list[Peer] = []

    def answer(peer: Peer, message: bytes) -> None:
        peers.append(peer)
        served.router.reply(peer, bytes(5_000_000))

    served.on_request = answer
    with zmtp.connect(served.port) as reader, zmtp.connect(served.port) as other:
        reader.sendall(zmtp.frame(b"get"))
        until(lambda: peers and served.router.overfull(peers[0]), "its reply")
        other.sendall(zmtp.frame(b"get"))
        received = 0
        while received < 5_000_009:
            received += len(other.recv(1_000_000))
        until(lambda: not served.router.overfull(peers[1]), "it has room again")
        assert served.router.overfull(peers[0])


def test_if_all_replies_are_too_many_those_of_the_largest_group_are_refused(served: EchoRouter) -> None:
    relay = served.relay
    relay.max_reply_bytes = 1_000
    relay.unread = 1_001
    relay.unread_by_name.update({"many": 900, "few": 101})
    many, few = (SimpleNamespace(name=name, unread=0) for name in ("many", "few"))
    assert relay.overfull(many)  # type: ignore[arg-type]
    assert not relay.overfull(few)  # type: ignore[arg-type]


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def useful(served: EchoRouter) -> socket.socket:
    peer = zmtp.connect(served.port)
    peer.sendall(zmtp.frame(b"hello"))
    assert peer.recv(100) == zmtp.frame(b"hello")
    return peer


def test_at_the_limit_the_oldest_connection_without_a_message_makes_room(served: EchoRouter) -> None:
    served.relay.most = 8
    with ExitStack() as stack:
        first = stack.enter_context(useful(served))
        idle = [stack.enter_context(zmtp.connect(served.port)) for _ in range(3)]
        stack.enter_context(useful(served))
        with suppress(ConnectionError):
            assert idle[0].recv(100) == b""
        first.sendall(zmtp.frame(b"hello"))
        assert first.recv(100) == zmtp.frame(b"hello")
    assert served.counters.counts == {"connection_refused": 1}


def test_one_address_gets_half_of_the_connections(served: EchoRouter) -> None:
    served.relay.most = 8
    with ExitStack() as stack:
        peers = [stack.enter_context(useful(served)) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", served.port)) as refused, pytest.raises(ConnectionError):
            zmtp.shaken(refused)
        assert served.counters.counts == {"connection_refused": 1}
        peers[0].close()
        until(lambda: len(served.relay.connections) == 3, "it is forgotten")
        stack.enter_context(useful(served))
    until(lambda: not served.relay.connections, "all are forgotten")
    assert not served.relay._numbers
    assert not served.relay.useless


def test_with_no_descriptor_left_the_listener_rests_and_comes_back(
    served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_S", 0.2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as peer:
        peer.settimeout(PATIENCE_MS / 1000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors()[-1] + 1, limits[1]))
        taken: list[int] = []
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            peer.connect(("127.0.0.1", served.port))
            until(lambda: served.counters.counts.get("connection_refused"), "nothing can be accepted")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        zmtp.shaken(peer)
