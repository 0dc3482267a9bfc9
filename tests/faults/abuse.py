"""Peers that mean harm, each kind in a process of its own: `python -m tests.faults.abuse KIND ADDRESS SEED SECONDS`.

ADDRESS is `host:port` or `ipc:///path`; ids of tasks may follow. They do what they do until the time is over or SIGTERM
comes, whatever the broker thinks of it, and print how much it was.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from random import Random
from uuid import uuid4

import zmq

from kingtask import curve, protocol
from kingtask.topics import IDLE_TOPIC, ready_topic
from tests import zmtp
from tests.integration.keyed import RecordingProxy

PATIENCE_S = 5.0
REPLY_MS = 20_000
NOTHING_DONE = ("not_found", "permission_denied", "id_conflict", "rate_limited", "busy")
SUBMIT = protocol.encode_request(1, "submit", {"task": {"name": "work"}})


class AbuseTarget:
    def __init__(self, address: str, seed: str, seconds: float, ids: Sequence[str] = ()) -> None:
        self.endpoint = address if "://" in address else f"tcp://{address}"
        self.random = Random(seed)
        self.ends_s = time.monotonic() + seconds
        self.ids = ids

    def end(self) -> None:
        self.ends_s = 0.0

    def turns(self, pause_s: float = 0.0) -> Iterator[int]:
        number = 0
        while time.monotonic() < self.ends_s:
            yield number
            number += 1
            if pause_s:
                time.sleep(pause_s)

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def connect(self) -> socket.socket:
        scheme, _, place = self.endpoint.partition("://")
        if scheme == "tcp":
            return socket.create_connection((place.rpartition(":")[0], self.port), PATIENCE_S)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE_S)
        try:
            made.connect(place)
        except OSError:
            made.close()
            raise
        return made

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
        if "KINGTASK_CURVE_KEY" in os.environ:
            own_keys().put_on(made)
        made.connect(self.endpoint)
        return made


def own_keys() -> curve.ClientKeys:
    return curve.read_client(os.environ["KINGTASK_CURVE_KEY"], os.environ["KINGTASK_SERVER_KEY"])


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
            for _ in zip(range(2_000), target.turns(), strict=False):
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
    known = own_keys()
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
                    dealer.connect(target.endpoint)
                    with suppress(zmq.Again):  # it was turned away already
                        dealer.send(SUBMIT, zmq.NOBLOCK)
                    if monitor.poll(int(1000 * PATIENCE_S)):
                        (event,) = struct.unpack("=H", monitor.recv_multipart()[0][:2])
                        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                            raise RuntimeError(f"let in: {number % 3}")
    return number + 1


def replays(target: AbuseTarget) -> int:
    """What a client with a key said, again and again, whole and from some point on; fails if it is answered."""
    known = own_keys()
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


# ── in a siege ──────────────────────────────────────────────────────────────────────────────────────────────────────


def ends(target: AbuseTarget) -> int:
    """Connections that end in every way: behind a full queue, amid a message, with a routing id that is to come."""
    return _ends(target, "DEALER", (zmtp.full_queue(), zmtp.long_message(20_000)))


def ends_of_subscribers(target: AbuseTarget) -> int:
    return _ends(target, "SUB", (zmtp.full_queue(b"\1" + IDLE_TOPIC),))


def _ends(target: AbuseTarget, kind: str, messages: Sequence[bytes]) -> int:
    for number in target.turns(0.1):
        claimed = b"\0" + struct.pack(">I", 0x6B8B4567 + number) if number % 5 == 0 else b""
        with suppress(OSError), zmtp.shaken(target.connect(), kind, claimed) as connection:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.send(messages[number % len(messages)])
            zmtp.end(connection, zmtp.ENDS[number % len(zmtp.ENDS)])
    return number + 1


def ends_with_key(target: AbuseTarget) -> int:
    """The same of a client with a key; libzmq puts heartbeats between its messages."""
    for _ in target.turns(0.1):
        with ExitStack() as stack:
            dealer = target.dealer(stack)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, 1)
            with suppress(zmq.Again):
                for _ in range(1_000):
                    dealer.send(b"x")
            dealer.poll(20)
    return 1


def _kept(target: AbuseTarget, number: int, opened: Callable[[], socket.socket]) -> Iterator[list[socket.socket]]:
    """Turns with so many connections, which are not read. Those that the broker has ended are opened again."""
    kept: dict[int, socket.socket] = {}
    poller = select.poll()
    try:
        for _ in target.turns(0.1):
            for fd, _ in poller.poll(0):
                poller.unregister(fd)
                kept.pop(fd).close()
            for _ in zip(range(min(20, number - len(kept))), target.turns(), strict=False):
                with suppress(OSError):
                    made = opened()
                    made.setblocking(False)
                    poller.register(made, select.POLLRDHUP)
                    kept[made.fileno()] = made
            yield list(kept.values())
    finally:
        for connection in kept.values():
            connection.close()


def unread(target: AbuseTarget) -> int:
    """Four connections that ask for a large result 900 times, and read nothing, or a byte now and then."""
    fields = {"id": target.ids[0]}
    words = b"".join(zmtp.frame(protocol.encode_request(n, ("wait", "get")[n % 2], fields)) for n in range(900))
    sent = 0

    def opened() -> socket.socket:
        nonlocal sent
        made = target.connect()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        zmtp.shaken(made).sendall(words)
        sent += 900
        return made

    for connections in _kept(target, 4, opened):
        for connection in connections[::2]:
            with suppress(OSError):
                connection.recv(1)
    return sent


def hoard(target: AbuseTarget) -> int:
    """More connections than the broker gives to one address; every other one shakes hands."""
    made = 0

    def opened() -> socket.socket:
        nonlocal made
        made += 1
        connection = target.connect()
        return zmtp.shaken(connection) if made % 2 else connection

    for _ in _kept(target, 800, opened):
        pass
    return made


def scrapers(target: AbuseTarget) -> int:
    """Requests for metrics that come byte by byte."""
    made = 0

    def opened() -> socket.socket:
        nonlocal made
        made += 1
        connection = target.connect()
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        return connection

    for connections in _kept(target, 32, opened):
        for connection in connections:
            with suppress(OSError):
                connection.send(b"x")
    return made


def liars(target: AbuseTarget) -> int:
    """Subscribers that say to be idle and never claim; some say so at each hint, some give it back."""
    hints = 1
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        subscribers, poller = [], zmq.Poller()
        for _ in range(200):
            subscribers.append(stack.enter_context(context.socket(zmq.SUB)))
            subscribers[-1].linger = 0
            subscribers[-1].connect(target.endpoint)
            subscribers[-1].subscribe(ready_topic("default"))
            subscribers[-1].subscribe(IDLE_TOPIC)
            poller.register(subscribers[-1], zmq.POLLIN)
        for _ in target.turns():
            for subscriber, _ in poller.poll(100):
                subscriber.recv_multipart()
                hints += 1
                how = subscribers.index(subscriber) % 3
                if how == 2:
                    subscriber.unsubscribe(IDLE_TOPIC)
                if how:
                    subscriber.subscribe(IDLE_TOPIC)
    return hints


def _ask(dealer: zmq.Socket[bytes], requests: Sequence[bytes]) -> list[bytes]:
    """Send all, then read the replies. One is missing if this process reads too slowly, and is cut off."""
    for request in requests:
        dealer.send(request)
    replies: list[bytes] = []
    while len(replies) < len(requests) and dealer.poll(REPLY_MS):
        replies.append(dealer.recv())
    return replies


def statistics(target: AbuseTarget) -> int:
    """Two hundred requests for `stats` at once, each second."""
    with ExitStack() as stack:
        dealer = target.dealer(stack)
        return sum(len(_ask(dealer, [protocol.encode_request(1, "stats", {})] * 200)) for _ in target.turns(1.0))


def gets(target: AbuseTarget) -> int:
    """Two hundred requests for one large result at once, each second; the replies are read."""
    with ExitStack() as stack:
        dealer = target.dealer(stack)
        request = protocol.encode_request(1, "get", {"id": target.ids[0]})
        return sum(len(_ask(dealer, [request] * 200)) for _ in target.turns(1.0))


def meddlers(target: AbuseTarget) -> int:
    """A client acts on the tasks of another owner, and takes their ids; fails if anything comes of it."""
    with ExitStack() as stack:
        dealer = target.dealer(stack)
        requests = []
        for task_id in target.ids:
            by_id = {"id": task_id}
            requests += [protocol.encode_request(1, op, by_id) for op in ("get", "wait", "cancel", "forget")]
            requests.append(protocol.encode_request(1, "requeue", {**by_id, "new_id": str(uuid4())}))
            for queue in ("default", "hostile"):
                task = {"id": task_id, "name": "work", "queue": queue}
                requests.append(protocol.encode_request(1, "submit", {"task": task}))
        done = 0
        for _ in target.turns(0.1):
            for reply in map(protocol.decode_reply, _ask(dealer, requests)):
                if reply["ok"] or reply["error"]["code"] not in NOTHING_DONE:
                    raise RuntimeError(f"a foreign task: {reply}")
                done += 1
        return done


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
        ends,
        ends_of_subscribers,
        ends_with_key,
        unread,
        hoard,
        scrapers,
        liars,
        statistics,
        gets,
        meddlers,
    )
}

if __name__ == "__main__":
    kind, address, seed, seconds, *ids = sys.argv[1:]
    target = AbuseTarget(address, seed, float(seconds), ids)
    signal.signal(signal.SIGTERM, lambda number, frame: target.end())
    print("ready", flush=True)
    sys.stdin.readline()  # until it may begin, or at once without a stdin
    print(KINDS[kind](target))
