"""What libFuzzer calls, millions of times: a process of its own, as it ends that when it has found something.

python -m tests.fuzz.target decoder|router CORPUS -max_total_time=60 …
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kingtask.protocol", "kingtask.task", "kingtask.wire", "kingtask.validation"]):
    from kingtask import protocol, task, validation  # noqa: F401

import zmq

from tests.fuzz.decoding import decide

CHECK_EVERY = 256
"""Messages between two looks at the broker, which is asked for a sign of life behind them."""
PATIENCE_MS = 20_000
MAX_FRAMES = 6
BEHIND_OTHERS, CUT_UP = 0xE0, 0xF0
MAX_GROWTH_KB = 32 * 1024
SETTLED = 20_000
"""Messages in which the broker's buffers and caches fill."""


class FuzzedBroker:
    """A broker that gets every input as a message, from one client that must see it answered or dropped."""

    def __init__(self, endpoint: str, pid: int, told: Path) -> None:
        """`told` is the file in which it says how far it has come."""
        self._pid = pid
        self._told = told
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._sent = self._marks = self._settled_kb = 0
        self._answers: Counter[str] = Counter()

    def take(self, data: bytes) -> None:
        decide(data[1:])
        # The first byte says how many frames it has: mostly the message alone, else cut up, or behind empty ones.
        kind, message = data[0] if data else 0, data[1:]
        count = 2 + kind % MAX_FRAMES
        size = -(-len(message) // count)
        frames = [message]
        if kind >= CUT_UP:
            frames = [message[i * size : (i + 1) * size] for i in range(count)]
        elif kind >= BEHIND_OTHERS:
            frames = [b""] * (count - 1) + [message]
        self._socket.send_multipart(frames)
        self._sent += 1
        if self._sent % CHECK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        self._marks += 1
        mark = f"mark {self._marks}"
        self._socket.send(protocol.encode_request(mark, "ping", {}))
        while True:
            assert self._socket.poll(PATIENCE_MS), f"no sign of life after {self._sent:,} messages"
            reply = protocol.decode_reply(self._socket.recv_multipart()[-1])
            if reply["rid"] == mark:
                break
            self._answers["ok" if reply["ok"] else reply["error"]["code"]] += 1
        status = Path(f"/proc/{self._pid}/status").read_text()
        rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        if self._sent <= SETTLED:
            self._settled_kb = max(self._settled_kb, rss_kb)
        assert rss_kb <= self._settled_kb + MAX_GROWTH_KB, f"{self._settled_kb} KB, then {rss_kb} KB"
        answers = ", ".join(f"{code} {n:,}" for code, n in self._answers.most_common())
        self._told.write_text(
            f"{self._sent:,} messages; broker {rss_kb:,} KB, {self._settled_kb:,} before; {answers}\n"
        )


def main(what: str, arguments: list[str]) -> None:
    take: Callable[[bytes], object] = decide
    if what == "router":
        take = FuzzedBroker(
            os.environ["FUZZED_BROKER"], int(os.environ["FUZZED_PID"]), Path(os.environ["FUZZED_TOLD"])
        ).take

    def act(data: bytes) -> None:
        take(data)

    atheris.Setup([sys.argv[0], *arguments], act)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
