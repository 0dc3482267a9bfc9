"""Abuse of one broker: malformed messages, garbage on its ports, storms of subscriptions, readers that do not read.

    python -m tests.faults.siege --messages 1000000 --bytes 1000000000 --words 1000000 --seconds 20

Meanwhile a client in good order pings it twenty times a second. Prints what was sent and what came of it; ends with 1
if the broker's process is not the same at the end, a ping took more than a second, its memory grew by more than 32 MB
after the first tenth of each part, or a message got no answer.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from kingtask import protocol, topics
from tests import zmtp
from tests.faults import garbage
from tests.integration.rig import Daemon, StackHarness
from tests.processes import alive

PING_EVERY_S = 0.05
PATIENCE_MS = 30_000
MAX_PING_S = 1.0
MAX_GROWTH_KB = 32 * 1024
IN_FLIGHT = 400
CONNECTIONS = 64
STOPPED = 50
PIECE = 65_536
NAMES = ("p50", "p99", "max")
WAKEUPS_A_SECOND = 500


def _piece(noise: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(noise) - PIECE)
    return noise[at : at + PIECE]


def _close(selector: selectors.BaseSelector) -> None:
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()


@dataclass
class Part:
    """One kind of abuse: what was sent, and how the broker fared meanwhile."""

    name: str
    sent: int = 0
    connections: int = 0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    unanswered: int = 0
    pings_s: list[float] = field(default_factory=list)
    rss_kb: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth_kb(self) -> int:
        """Beyond the first tenth, in which buffers and caches fill."""
        settled = max(1, len(self.rss_kb) // 10)
        return max(self.rss_kb[settled:], default=0) - max(self.rss_kb[:settled])

    def faults(self) -> list[str]:
        found = []
        if not self.pings_s or max(self.pings_s) > MAX_PING_S:
            found.append("a ping took too long")
        if self.growth_kb > MAX_GROWTH_KB:
            found.append("memory grew")
        if self.unanswered:
            found.append(f"{self.unanswered} messages were not answered")
        return found

    def __str__(self) -> str:
        pings = sorted(self.pings_s) or [float("nan")]
        told = pings[len(pings) // 2], pings[len(pings) * 99 // 100], pings[-1]
        first, most, last = (kb // 1024 for kb in (self.rss_kb[0], max(self.rss_kb), self.rss_kb[-1]))
        lines = [
            f"{self.name}: {self.sent:,} sent on {self.connections:,} connections in {self.seconds:.1f} s",
            f"  pings {len(pings)}: "
            + ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in zip(NAMES, told, strict=True)),
            f"  RSS in MB: first {first}, max {most}, last {last}; {self.growth_kb / 1024:.1f} after the first tenth",
        ]
        if self.answers:
            lines.append("  " + ", ".join(f"{code} {n:,}" for code, n in self.answers.most_common()))
        return "\n".join(lines)


class Siege:
    """One broker and a client that pings it."""

    def __init__(self, rig: StackHarness, broker: Daemon, seed: int) -> None:
        self._rig = rig
        self._endpoint = broker.endpoint
        self._port = int(broker.config["addr"].rpartition(":")[2])
        self._wakeup_port = int(broker.config["wakeup"].rpartition(":")[2])
        self._pid = broker.pid
        self._chance = random.Random(seed)

    @contextmanager
    def _part(self, name: str) -> Iterator[Part]:
        part = Part(name)
        over = threading.Event()
        pinging = threading.Thread(target=self._ping, args=(part, over))
        started_s = time.monotonic()
        pinging.start()
        try:
            yield part
        finally:
            over.set()
            pinging.join()
            part.seconds = time.monotonic() - started_s

    def _ping(self, part: Part, over: threading.Event) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        client = context.socket(zmq.DEALER)
        client.linger = 0
        client.connect(self._endpoint)
        for rid in itertools.count():
            part.rss_kb.append(self._rss_kb())
            sent_s = time.monotonic()
            client.send(protocol.encode_request(rid, "ping", {}))
            if client.poll(PATIENCE_MS):
                client.recv()
            part.pings_s.append(time.monotonic() - sent_s)
            if over.wait(PING_EVERY_S):
                break
        client.close()
        context.term()

    def _rss_kb(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * 4

    def messages(self, number: int) -> Part:
        """So many malformed messages, each of which is to be answered."""
        pool = list(itertools.islice(garbage.messages(self._chance), min(number, 50_000)))
        with self._part("messages") as part:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            dealers = []
            for _ in range(4):
                dealers.append(context.socket(zmq.DEALER))
                dealers[-1].linger = 0
                dealers[-1].connect(self._endpoint)
            part.connections = len(dealers)
            left = number
            while left and self.survived:
                for dealer in dealers:
                    burst = min(left, IN_FLIGHT)
                    for frames in self._chance.choices(pool, k=burst):
                        dealer.send_multipart(frames)
                    left -= burst
                    part.sent += burst
                    for _ in range(burst):
                        if not dealer.poll(PATIENCE_MS):
                            part.unanswered += burst
                            break
                        reply = protocol.decode_reply(dealer.recv_multipart()[-1])
                        part.answers["ok" if reply["ok"] else reply["error"]["code"]] += 1
            for dealer in dealers:
                dealer.close()
            context.term()
        part.unanswered = part.sent - part.answers.total()
        return part

    def garbage(self, number: int) -> Part:
        """So many bytes of garbage on raw connections to the port of the clients."""
        openings = garbage.openings(self._chance)
        noise = self._chance.randbytes(1 << 20)

        def opened() -> tuple[socket.socket, bytes]:
            if self._chance.random() < 0.3:
                made = zmtp.connect(self._port)
                return made, garbage.after_handshake(self._chance)
            return socket.create_connection(("127.0.0.1", self._port)), next(openings)

        with self._part("garbage") as part:
            self._pour(part, number, opened, noise)
        return part

    def words(self, number: int) -> Part:
        """So many words on the wakeup socket, 1,000 a connection and some 50 bytes each."""
        bursts = garbage.words(self._chance)

        def opened() -> tuple[socket.socket, bytes]:
            return zmtp.connect(self._wakeup_port, "SUB"), next(bursts)

        with self._part("words") as part:
            self._pour(part, number * 50, opened, b"")
        return part

    def _pour(self, part: Part, number: int, opened: Callable[[], tuple[socket.socket, bytes]], noise: bytes) -> None:
        """Keep CONNECTIONS open, send each its opening and then noise until it is closed or has nothing more to say."""
        with selectors.DefaultSelector() as selector, ExitStack() as stack:
            stack.callback(lambda: _close(selector))
            quiet: collections.deque[socket.socket] = collections.deque()
            while part.sent < number and self.survived:
                while len(selector.get_map()) < CONNECTIONS and self.survived:
                    with suppress(ConnectionError, TimeoutError):
                        made, opening = opened()
                        part.connections += 1
                        made.setblocking(False)
                        selector.register(made, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(opening))
                for key, events in selector.select(1.0):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    try:
                        if events & selectors.EVENT_READ and not connection.recv(65_536):
                            raise ConnectionError  # noqa: TRY301  (its end and its reset are one)
                        left = key.data
                        if events & selectors.EVENT_WRITE:
                            sent = connection.send(left or _piece(noise, self._chance))
                            part.sent += sent
                            left = left[sent:] if left else left
                        if not left and (not noise or self._chance.random() < 0.2):
                            # It goes silent: the broker is to end it.
                            selector.modify(connection, selectors.EVENT_READ, left)
                            quiet.append(connection)
                        else:
                            selector.modify(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, left)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        selector.unregister(connection)
                        connection.close()
                if len(quiet) >= CONNECTIONS // 2:
                    for connection in quiet:
                        if connection.fileno() >= 0:
                            selector.unregister(connection)
                            connection.close()
                    quiet.clear()

    def stopped(self, seconds: float) -> Part:
        """Subscribers that never read, but answer heartbeats, at WAKEUPS_A_SECOND."""
        subscribed = zmtp.frame(b"\1" + topics.ready_topic("default"))
        pong = zmtp.frame(b"\4PONG", zmtp.COMMAND)
        with self._part("stopped subscribers") as part, self._rig.client() as client, ExitStack() as stack:
            stuck = []
            for _ in range(STOPPED):
                stuck.append(stack.enter_context(zmtp.connect(self._wakeup_port, "SUB")))
                stuck[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stuck[-1].sendall(subscribed)
            part.connections = STOPPED
            began_s = time.monotonic()
            while (passed_s := time.monotonic() - began_s) < seconds:
                if part.sent < passed_s * WAKEUPS_A_SECOND:
                    client.submit("example")
                    part.sent += 1
                else:
                    time.sleep(0.001)
                if part.sent % WAKEUPS_A_SECOND == 0:
                    for connection in stuck:
                        with suppress(OSError):
                            connection.send(pong)
        return part

    @property
    def survived(self) -> bool:
        return alive(self._pid)


def siege(messages: int, size: int, words: int, seconds: float, seed: int = 1) -> tuple[list[Part], list[str]]:
    """All parts, and what was wrong."""
    with StackHarness() as rig:
        broker = rig.start_broker()
        attack = Siege(rig, broker, seed)
        acts: list[tuple[Callable[[Any], Part], float]] = [
            (attack.messages, messages),
            (attack.garbage, size),
            (attack.words, words),
            (attack.stopped, seconds),
        ]
        parts = []
        for act, amount in acts:
            if amount and attack.survived:
                parts.append(act(amount))
                print(parts[-1], flush=True)
        faults = [f"{part.name}: {fault}" for part in parts for fault in part.faults()]
        if not attack.survived:
            return parts, [*faults, "the broker's process ended: " + broker.text()[-2000:]]
        refused = rig.client().stats()["brokers"][0]["refused"]
        print("refused, as stats tells:", ", ".join(f"{kind} {n:,}" for kind, n in sorted(refused.items())))
        print(f"log of the broker: {len(broker.text().splitlines())} lines")
        return parts, faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.siege", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=100_000_000)
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of stopped subscribers")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    _, faults = siege(options.messages, options.bytes, options.words, options.seconds, options.seed)
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
