"""Acknowledged single submits a second of one pipelining client, beside a bare ROUTER/DEALER echo in the same run.

    python -m tests.bench.submit_rate [--rounds 5] [--submits 20000] [--ack stored|fsync]

Both sides use the same client loop and the same message bytes; rounds alternate, the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import uuid

import zmq

from kingtask import protocol
from tests.integration.rig import Rig
from tests.servers import free_port

IN_FLIGHT = 500


def echo(port: int) -> None:
    """A ROUTER that sends back what it gets, with nothing in between."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(f"tcp://127.0.0.1:{port}")
    while True:
        socket.send_multipart(socket.recv_multipart())


def pipelined(endpoint: str, messages: list[bytes]) -> float:
    """Send all, at most IN_FLIGHT without a reply; replies a second."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        sent = received = 0
        start = time.perf_counter()
        while received < len(messages):
            while sent < len(messages) and sent - received < IN_FLIGHT:
                socket.send(messages[sent])
                sent += 1
            socket.recv()
            received += 1
            try:
                while True:
                    socket.recv(zmq.NOBLOCK)
                    received += 1
            except zmq.Again:
                pass
        return received / (time.perf_counter() - start)


def submits(n: int) -> list[bytes]:
    return [
        protocol.encode_request(
            i,
            "submit",
            {"task": {"id": str(uuid.uuid4()), "name": "example", "args": ["12", "45"], "retry": [5, 8, 9]}},
        )
        for i in range(n)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--submits", type=int, default=20_000)
    parser.add_argument("--ack", choices=("stored", "fsync"), default="stored")
    options = parser.parse_args()
    fsync = "always" if options.ack == "fsync" else "everysec"
    port = free_port()
    bare = multiprocessing.Process(target=echo, args=(port,), daemon=True)
    bare.start()
    rates: dict[str, list[float]] = {"echo": [], "kingtask": []}
    with Rig(appendonly="yes", appendfsync=fsync) as rig:
        broker = rig.start_broker(ack=options.ack)
        for _ in range(options.rounds):
            messages = submits(options.submits)
            rates["echo"].append(pipelined(f"tcp://127.0.0.1:{port}", messages))
            rates["kingtask"].append(pipelined(broker.endpoint, messages))
    bare.terminate()
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        print(f"{name:9} {medians[name]:9,.0f} /s  ({min(found):,.0f} - {max(found):,.0f})")
    print(f"ratio     {medians['kingtask'] / medians['echo']:9.2f}  (ack {options.ack}, appendfsync {fsync})")


if __name__ == "__main__":
    main()
