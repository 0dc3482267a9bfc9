"""A DEALER socket and the messages that kingtask's wire takes: what a client in any language would do."""

from __future__ import annotations

import socket
import time
import uuid

import zmq

from kingtask import protocol
from tests.bench.adapters.base import ARGV

IN_FLIGHT = 500

TASK = {"name": "probe", "args": ARGV[1:], "retry": [5, 8, 9]}
"""Two short arguments and a retry list."""


def submits(n: int) -> list[bytes]:
    """Messages that submit one task each."""
    return [protocol.encode_request(i, "submit", {"task": {"id": str(uuid.uuid4()), **TASK}}) for i in range(n)]


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def connect(endpoint: str) -> zmq.Socket[bytes]:
    """A DEALER whose server may still be starting; a send then waits."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.rcvtimeo = 30_000
    dealer.connect(endpoint)
    return dealer


def pipelined(endpoint: str, messages: list[bytes]) -> float:
    """Send all, at most IN_FLIGHT without a reply; seconds from the first to the last reply."""
    with connect(endpoint) as dealer:
        sent = received = 0
        start = time.perf_counter()
        while received < len(messages):
            while sent < len(messages) and sent - received < IN_FLIGHT:
                dealer.send(messages[sent])
                sent += 1
            dealer.recv()
            received += 1
            try:
                while True:
                    dealer.recv(zmq.NOBLOCK)
                    received += 1
            except zmq.Again:
                pass
        return time.perf_counter() - start
