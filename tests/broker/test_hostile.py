"""The sockets against those who mean harm: bytes that are no ZMTP, floods, storms, readers that do not read."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
import zmq

from kingtask import protocol, topics
from kingtask.broker import broker_socket, relay, router
from kingtask.broker.auth import Peer
from kingtask.broker.counters import Counters
from kingtask.broker.relay import Relay
from kingtask.broker.wakeups import Wakeups
from kingtask.client.dealer import OPTIONS as OF_CLIENTS
from kingtask.worker.subscriber import SOCKET_OPTIONS as OF_WORKERS
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS, EchoRouter, Sockets, stop
from tests.processes import descriptors, until
from tests.servers import free_port

PATIENCE_S = PATIENCE_MS / 1000


def until_closed(connections: dict[str, socket.socket]) -> None:
    """Wait until the other side has ended all of them; what it still says is thrown away."""
    open_ = {connection.fileno(): name for name, connection in connections.items()}
    deadline = time.monotonic() + PATIENCE_S
    while open_:
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"still open: {sorted(open_.values())}"
        for fd in select.select(list(open_), [], [], left_s)[0]:
            try:
                ended = not os.read(fd, 65_536)
            except ConnectionError:
                ended = True
            if ended:
                del open_[fd]


@contextmanager
def raw(port: int, messages: dict[str, bytes]) -> Iterator[dict[str, socket.socket]]:
    """A connection for each, on which the bytes were sent."""
    with ExitStack() as stack:
        made = {}
        for name, message in messages.items():
            made[name] = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
            with suppress(ConnectionError):  # refused before it was all there
                made[name].sendall(message)
        yield made


SHAKEN = zmtp.GREETING + zmtp.ready()
PING = protocol.encode_request(1, "ping", {})

NO_ZMTP = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 512,
    "RESP": b"*1\r\n$4\r\nPING\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": b"\0" * 100_000,
    "ones": b"\xff" * 100_000,
    "ZMTP 1": zmtp.VERSION_1 + zmtp.frame(PING)[1:],
    "ZMTP 2": zmtp.VERSION_2 + zmtp.frame(PING),
    **{f"greeting cut at {n}": SHAKEN[:n] for n in range(1, len(SHAKEN))},
    **{kind: zmtp.GREETING + zmtp.ready(kind) for kind in ("PUB", "SUB", "PUSH", "PULL", "REP", "PAIR", "TEAPOT")},
    "no READY": zmtp.GREETING + zmtp.frame(PING),
}


def test_what_is_no_zmtp_reaches_nobody_and_is_closed(sockets: Sockets, served: EchoRouter) -> None:
    """Silence, other protocols, old framing, a greeting cut at each byte, kinds that do not fit, endless frames."""
    received = []
    served.on_request = lambda peer, message: (received.append(message), served.answer(peer, message))  # type: ignore[func-returns-value]
    with raw(served.port, NO_ZMTP) as connections:
        dealer = sockets.new(zmq.DEALER, served.endpoint)
        dealer.send(b"still here")
        assert dealer.recv() == b"still here"
        until_closed(connections)
    assert received == [b"still here"]


@pytest.mark.parametrize("size", [router.MAX_FRAME_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_a_frame_that_is_far_too_long_is_not_waited_for(served: EchoRouter, size: int) -> None:
    with zmtp.connect(served.port) as silent, zmtp.connect(served.port) as connection:
        connection.sendall(b"\x02" + size.to_bytes(8, "big"))
        until_closed({"": connection})
        silent.setblocking(False)
        assert not ended(silent), "it was the heartbeat that ended both"


def test_random_bytes_are_closed_and_no_message(sockets: Sockets, served: EchoRouter) -> None:
    received: list[bytes] = []
    served.on_request = lambda peer, message: received.append(message)
    sizes = [50_000] * 30 + [1_000_000]
    with raw(served.port, {str(n): os.urandom(size) for n, size in enumerate(sizes)}) as connections:
        until_closed(connections)
    assert received == []


def test_an_endless_message_is_read_in_pieces_and_refused_once(
    sockets: Sockets, served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_FRAMES", 1_000_000)  # as with CURVE
    frames, turns = 50_000, 0
    drained = served.on_drained

    def count() -> None:
        nonlocal turns
        turns += 1
        drained()

    served.on_drained = count
    sender, other = sockets.new(zmq.DEALER, served.endpoint), sockets.new(zmq.DEALER, served.endpoint)
    sender.send_multipart([b"x"] * frames, copy=False)
    other.send(b"still here")
    assert other.recv() == b"still here"
    reply = protocol.decode_reply(sender.recv())
    assert reply["error"]["code"] == "bad_frames"
    assert f"got {frames:,}" in reply["error"]["message"]
    assert served.counters.counts == {"bad_frames": 1}
    assert turns >= frames // router.DRAIN_FRAMES


def test_who_floods_and_does_not_read_hinders_nobody(
    sockets: Sockets, served: EchoRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read itself while its share of replies is unread, and is cut off."""
    monkeypatch.setattr(relay, "SLOW_CHECKS", 2)
    served.relay.max_reply_bytes = relay.SHARES * 500_000
    with zmtp.connect(served.port) as flood:
        flood.setblocking(False)
        pings = zmtp.frame(os.urandom(200)) * 500
        other = sockets.new(zmq.DEALER, served.endpoint)
        most = 0
        while not served.counters.counts.get("cut_off"):
            push(flood, pings)
            other.send(b"still here")
            assert other.recv() == b"still here"
            most = max(most, served.relay.unread)
        assert 500_000 < most < 2_000_000
        until(lambda: served.relay.unread == 0, "nothing is unread any more")


def test_many_flooding_peers_are_served_in_turn_with_the_others(sockets: Sockets, served: EchoRouter) -> None:
    floods = [sockets.new(zmq.DEALER, served.endpoint) for _ in range(5)]
    good = sockets.new(zmq.DEALER, served.endpoint)
    for number in range(50):
        for flood in floods:
            for _ in range(200):
                flood.send(b"x" * 100, zmq.NOBLOCK)
        good.send(str(number).encode())
        assert good.recv() == str(number).encode()
        for flood in floods:
            while flood.poll(0):
                flood.recv()


def test_who_takes_the_name_of_another_gets_none_of_its_replies(sockets: Sockets, served: EchoRouter) -> None:
    """What a client claims as its routing id has no effect."""
    held: list[Peer] = []
    served.on_request = lambda peer, message: held.append(peer) if message == b"hold" else served.answer(peer, message)
    first, second = sockets.new(zmq.DEALER), sockets.new(zmq.DEALER)
    for dealer in (first, second):
        dealer.routing_id = b"victim"
    first.connect(served.endpoint)
    first.send(b"hold")
    until(lambda: held, "its request")
    second.connect(served.endpoint)
    second.send(b"mine")
    for _ in range(100):
        first.send(b"still here")
        assert first.recv() == b"still here"
    served.loop.call_soon_threadsafe(served.router.reply, held[0], b"for the first")
    assert first.recv() == b"for the first"
    assert second.recv() == b"mine"
    assert not second.poll(0)


def test_no_heartbeats_of_our_own() -> None:
    """Libzmq would end the process at one that falls due on an ended connection behind a full queue."""
    assert zmq.HEARTBEAT_IVL not in broker_socket.SOCKET_OPTIONS


def test_who_falls_silent_after_a_heartbeat_with_a_time_to_live_is_let_go(served: EchoRouter) -> None:
    """A stopped client is not noticed otherwise: its kernel goes on acknowledging."""
    ping = zmtp.frame(b"\4PING" + (5).to_bytes(2, "big"), zmtp.COMMAND)  # tenths of a second
    with zmtp.connect(served.port) as stopped, zmtp.connect(served.port) as without:
        stopped.sendall(ping)
        until_closed({"": stopped})
        without.setblocking(False)
        assert not ended(without)
    for options in (OF_CLIENTS, OF_WORKERS):
        assert options[zmq.HEARTBEAT_IVL] < options[zmq.HEARTBEAT_TTL] <= 5_000, "ours send theirs"


def test_connections_that_come_and_go_leave_no_descriptor(served: EchoRouter) -> None:
    before = len(descriptors())
    for _ in range(300):
        zmtp.connect(served.port).close()
    until(lambda: len(descriptors()) <= before + 2, "the connections are closed here too")


# ── wakeups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class HostileWakeupsHarness:
    """A Wakeups in this loop."""

    def __init__(self) -> None:
        self.port = free_port()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.counters = Counters()
        self.relay = Relay(self.context, self.counters)
        self.wakeups = Wakeups(self.context, self.relay, (f"tcp://127.0.0.1:{self.port}",), self.counters)
        self.wakeups.start()
        self.relay.start()

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while not condition():
            assert asyncio.get_running_loop().time() < deadline
            self.wakeups.ready("default", 3)
            await asyncio.sleep(0.002)

    async def connect(self) -> socket.socket:
        made = await asyncio.to_thread(zmtp.connect, self.port, "SUB")
        made.setblocking(False)
        return made


def play(story: Callable[[HostileWakeupsHarness], Awaitable[None]]) -> None:
    async def told() -> None:
        scene = HostileWakeupsHarness()
        try:
            await story(scene)
        finally:
            await stop(scene.wakeups, scene.relay, scene.context)

    asyncio.run(told())


def ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(65_536)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def push(connection: socket.socket, words: bytes) -> bytes:
    """Send as much as goes; returns the rest."""
    try:
        return words[connection.send(words) :]
    except BlockingIOError:
        return words
    except ConnectionError:
        return b""


def word(topic: bytes, on: int = 1) -> bytes:
    return zmtp.frame(bytes([on]) + topic)


DEFAULT = topics.ready_topic("default")
STORMS = {
    "random topics": b"".join(word(os.urandom(60)) for _ in range(3_000)),
    "known topics": b"".join(word(topics.ready_topic(f"queue-{n}")) for n in range(3_000)),
    "on and off": (word(topics.IDLE_TOPIC) + word(topics.IDLE_TOPIC, 0)) * 20_000,
    "only off": word(DEFAULT, 0) * 3_000,
    "messages": zmtp.frame(b"hello") * 3_000,
    "a message of many frames": zmtp.frame(b"\1" + DEFAULT, zmtp.MORE) * 40_000 + word(DEFAULT),
    "a topic of 64 KB": word(b"x" * 65_536),
}


@pytest.mark.parametrize("storm", STORMS.values(), ids=STORMS)
def test_who_storms_the_wakeup_socket_is_cut_off_and_the_others_hear_on(sockets: Sockets, storm: bytes) -> None:
    async def story(scene: HostileWakeupsHarness) -> None:
        worker = sockets.new(zmq.SUB, f"tcp://127.0.0.1:{scene.port}")
        worker.subscribe(DEFAULT)
        worker.subscribe(topics.IDLE_TOPIC)
        await scene.until(lambda: worker.poll(0))
        with await scene.connect() as connection:
            left = storm

            def over() -> bool:
                nonlocal left
                left = push(connection, left)
                return ended(connection)

            await scene.until(over)
        worker.recv_multipart()
        worker.subscribe(topics.IDLE_TOPIC)
        await scene.until(lambda: worker.poll(0))
        assert worker.recv_multipart()[1] == DEFAULT

    play(story)


def test_the_table_of_connections_does_not_grow_with_those_that_left() -> None:
    async def story(scene: HostileWakeupsHarness) -> None:
        for number in range(1, 101):
            with await scene.connect() as connection:
                connection.sendall(word(b"nonsense"))
                await scene.until(partial(lambda n: scene.counters.counts.get("unknown_topic") == n, number))
        await scene.until(lambda: not scene.wakeups._peers)
        await scene.until(lambda: not scene.relay.connections)

    play(story)
