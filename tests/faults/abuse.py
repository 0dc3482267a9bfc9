"""Peers that mean harm, each kind in a process of its own: `python -m tests.faults.abuse KIND HOST:PORT SEED SECONDS`.

They do what they do until the time is over, whatever the broker thinks of it, and print how much it was.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from random import Random

import zmq

from kingtask import curve, protocol
from kingtask.topics import ready_topic
from tests import zmtp
from tests.integration.keyed import RecordingProxy

PATIENCE_S = 5.0
SUBMIT = protocol.encode_request(1, "submit", {"task": {"name": "work"}})


class AbuseTarget:
    def __init__(self, address: str, seed: str, seconds: float) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self.random = Random(seed)
        self.ends_s = time.monotonic() + seconds

    def turns(self) -> Iterator[int]:
        number = 0
        while time.monotonic() < self.ends_s:
            yield number
            number += 1

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), PATIENCE_S)

    def say(self, words: bytes) -> int:
        """On a connection of its own; returns how much was taken."""
        with suppress(OSError), self.connect() as connection:
            connection.settimeout(0.5)
            connection.sendall(words)
            return len(words)
        return 0

    def dealer(self, stack: ExitStack, kind: int = zmq.DEALER) -> zmq.Socket[bytes]:
        context = stack.enter_context(zmq.Context())
        made = stack.enter_context(context.socket(kind))
        made.linger, made.sndtimeo, made.rcvtimeo = 0, 500, 500
        made.connect(f"tcp://{self.host}:{self.port}")
        return made


SHAKEN = zmtp.GREETING + zmtp.ready()
OTHERS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 512,
    b"*1\r\n$4\r\nPING\r\n",
    bytes(1_000_000),
    b"\xff" * 1_000_000,
    zmtp.VERSION_1,
    zmtp.VERSION_2,
)


def garbage(target: AbuseTarget) -> int:
    """Other protocols, zeros, ones, noise, greetings cut anywhere, noise behind a good greeting."""
    sent = 0
    for number in target.turns():
        noise = target.random.randbytes(target.random.randint(1, 2_000_000))
        cut = SHAKEN[: target.random.randint(1, len(SHAKEN))]
        sent += target.say((OTHERS[number // 4 % len(OTHERS)], noise, cut, SHAKEN + noise)[number % 4])
    return sent


def lengths(target: AbuseTarget) -> int:
    """Frames that announce up to 2^64−1 bytes."""
    sent = 0
    for _ in target.turns():
        size = target.random.choice((2**20, 2**24, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)) - target.random.randint(
            0, 1
        )
        sent += target.say(SHAKEN + b"\x02" + struct.pack(">Q", size) + bytes(target.random.randint(0, 100_000)))
    return sent


def frames(target: AbuseTarget) -> int:
    """Messages of very many frames, of none, of delimiters only; delimiters too many or missing."""
    with ExitStack() as stack:
        dealer = target.dealer(stack)
        sent = 0
        ping = protocol.encode_request(1, "ping", {})
        shapes = ([b""], [b"", b""], [b"", ping, ping], [ping, b""], [b"", b"", ping], [b"x"] * 5, [b"x"] * 200_000)
        for number in target.turns():
            with suppress(zmq.Again):
                dealer.send_multipart(shapes[number % len(shapes)], copy=False)
                sent += len(shapes[number % len(shapes)])
            with suppress(zmq.Again):
                while dealer.poll(0):
                    dealer.recv_multipart()
        return sent


def churn(target: AbuseTarget) -> int:
    """Connections that come and go, with and without a greeting."""
    for number in target.turns():
        with suppress(OSError):
            connection = target.connect()
            if number % 2:
                connection.sendall(SHAKEN)
            connection.close()
    return number


def idle(target: AbuseTarget, count: int = 1_500) -> int:
    """Connections that say nothing and stay."""
    held: list[socket.socket] = []
    for _ in target.turns():
        if len(held) == count:
            time.sleep(0.1)
            continue
        with suppress(OSError):
            held.append(target.connect())
    return len(held)


def crowd(target: AbuseTarget) -> int:
    """Thousands of them."""
    return idle(target, 9_500)


def unterminated(target: AbuseTarget) -> int:
    """Messages without end: of parts of a megabyte, up to 2 GB, and of parts of a byte, up to 70 MB."""
    sent = 0
    for number in target.turns():
        part = zmtp.frame(bytes(2**20), zmtp.MORE) if number % 2 else zmtp.frame(b"x", zmtp.MORE) * 12_000
        with suppress(OSError), target.connect() as connection:
            connection.settimeout(PATIENCE_S)
            connection.sendall(SHAKEN)
            for _ in range(2_000):
                connection.sendall(part)
                sent += len(part)
    return sent


def deaf(target: AbuseTarget) -> int:
    """Requests without end from one that reads no reply."""
    sent = 0
    words = zmtp.frame(protocol.encode_request(1, "ping", {})) * 200
    for _ in target.turns():
        with suppress(OSError), target.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(SHAKEN)
            connection.settimeout(1.0)
            for _ in target.turns():
                connection.sendall(words)
                sent += 200
    return sent


def topics(target: AbuseTarget) -> int:
    """Subscriptions without end: random ones, big ones, on and off."""
    sent = 0
    for number in target.turns():
        topic = target.random.randbytes(65_536 if number % 50 == 0 else 40)
        words = b"".join(zmtp.frame(b"\x01" + topic + str(n).encode()) + zmtp.frame(b"\0" + topic) for n in range(50))
        sent += bool(target.say(zmtp.GREETING + zmtp.ready("SUB") + words)) * 100
    return sent


def stopped(target: AbuseTarget) -> int:
    """Fifty subscribers that hear everything and read nothing."""
    with ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(target.connect())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(zmtp.GREETING + zmtp.ready("SUB") + zmtp.frame(b"\x01" + ready_topic("default")))
        for _ in target.turns():
            time.sleep(0.1)
    return 50


def messages(target: AbuseTarget) -> int:
    """Whole messages that are wrong: noise, cut, bent, nested, of another version, with unknown fields."""
    with ExitStack() as stack:
        dealer = target.dealer(stack)
        good = protocol.encode_request(1, "submit", {"task": {"name": "work", "args": ["1", "2"], "retry": [1, 2]}})
        sent = 0
        for _ in target.turns():
            with suppress(zmq.Again):
                for _ in range(500):
                    dealer.send(_bent(good, target.random), zmq.NOBLOCK)
                    sent += 1
            with suppress(zmq.Again):
                while dealer.poll(0):
                    dealer.recv()
        return sent


def _bent(good: bytes, random: Random) -> bytes:
    """Never the good one."""
    match random.randrange(5):
        case 0:
            return os.urandom(random.randint(1, 200))
        case 1:
            return good[: random.randrange(1, len(good))]
        case 2:
            return b"\x91" * random.randint(9, 1000)
        case 3:
            return good.replace(b"submit", random.choice((b"SUBMIT", b"sub\xffit", b"exec!!")))
        case _:
            return good + random.randbytes(random.randint(1, 9))


def strangers(target: AbuseTarget) -> int:
    """Handshakes without a key, with one that nobody knows, and for another server; fails if one succeeds."""
    known = curve.read_client(os.environ["KINGTASK_CURVE_KEY"], os.environ["KINGTASK_SERVER_KEY"])
    with zmq.Context() as context:
        for number in target.turns():
            own, other = (
                curve.Pair(public=public, secret=secret)
                for public, secret in (zmq.curve_keypair(), zmq.curve_keypair())
            )
            keys = (
                None,
                curve.ClientKeys(own=own, server=known.server),
                curve.ClientKeys(own=known.own, server=other.public),
            )[number % 3]
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.setsockopt(zmq.RECONNECT_IVL, -1)
                if keys is not None:
                    keys.put_on(dealer)
                events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
                with dealer.get_monitor_socket(events, f"inproc://{number}") as monitor:
                    dealer.connect(f"tcp://{target.host}:{target.port}")
                    with suppress(zmq.Again):  # it was turned away already
                        dealer.send(SUBMIT, zmq.NOBLOCK)
                    if monitor.poll(int(1000 * PATIENCE_S)):
                        (event,) = struct.unpack("=H", monitor.recv_multipart()[0][:2])
                        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                            raise RuntimeError(f"let in: {number % 3}")
    return number + 1


def replays(target: AbuseTarget) -> int:
    """What a client with a key said, again and again, whole and from some point on; fails if it is answered."""
    known = curve.read_client(os.environ["KINGTASK_CURVE_KEY"], os.environ["KINGTASK_SERVER_KEY"])
    with ExitStack() as stack, RecordingProxy(target.port) as wire:
        context = stack.enter_context(zmq.Context())
        dealer = stack.enter_context(context.socket(zmq.DEALER))
        dealer.linger, dealer.rcvtimeo = 0, int(1000 * PATIENCE_S)
        known.put_on(dealer)
        dealer.connect(f"tcp://127.0.0.1:{wire.port}")
        dealer.send(protocol.encode_request(1, "ping", {}))
        dealer.recv()
        said, heard = bytes(wire.up[0]), len(wire.down[0])
    for number in target.turns():
        cut = said[: target.random.randint(65, len(said))] if number % 2 else said
        answered = 0
        with suppress(OSError), target.connect() as connection:
            connection.settimeout(PATIENCE_S)
            connection.sendall(cut)
            if cut == said:
                while part := connection.recv(65_536):
                    answered += len(part)
        if answered >= heard:
            raise RuntimeError(f"a replay was answered with {answered} bytes")
    return number + 1


KINDS: dict[str, Callable[[AbuseTarget], int]] = {
    each.__name__: each
    for each in (
        garbage,
        lengths,
        frames,
        churn,
        idle,
        crowd,
        unterminated,
        deaf,
        topics,
        stopped,
        messages,
        strangers,
        replays,
    )
}

if __name__ == "__main__":
    kind, address, seed, seconds = sys.argv[1:]
    print(KINDS[kind](AbuseTarget(address, seed, float(seconds))))
