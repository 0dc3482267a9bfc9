"""Floor: a bare ROUTER that sends back what a DEALER sent, the same bytes as kingtask's; one hop of the two.

Its server is this module run as a program.
"""

from __future__ import annotations

import sys

import zmq

from tests.bench.adapters import base, dealer


class Echo(base.ContestantAdapter):
    config = f"ROUTER/DEALER on loopback, {dealer.IN_FLIGHT} in flight when pipelined; nothing is stored"
    packages = ("pyzmq",)

    def __init__(self) -> None:
        self._endpoint = dealer.free_endpoint()

    def servers(self) -> list[list[str]]:
        return [[sys.executable, "-m", "tests.bench.adapters.echo", self._endpoint]]

    def open(self) -> None:
        self._dealer = dealer.connect(self._endpoint)
        self.prepare = staticmethod(lambda _: dealer.submits(1)[0])

    def submit(self, message: bytes) -> None:
        self._dealer.send(message)
        self._dealer.recv()

    def pipelined(self, n: int) -> float:
        return dealer.pipelined(self._endpoint, dealer.submits(n))


adapter = Echo


def serve(endpoint: str) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    while True:
        socket.send_multipart(socket.recv_multipart())


if __name__ == "__main__":
    serve(sys.argv[1])
