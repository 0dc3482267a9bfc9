"""A broker that answers as a test says: what a real one does too seldom to be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import zmq

from kingtask import wire

Requests = list[dict[str, Any]]


class ScriptedBroker:
    """`answer` gets the requests that have come and gives what is sent now; it is asked again after each request."""

    def __init__(self, answer: Callable[[Requests], list[dict[str, Any]]]) -> None:
        self._answer = answer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = f"127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.requests: Requests = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._end.is_set():
            if self._socket.poll(20):
                sender, message = self._socket.recv_multipart()
                self.requests.append(wire.decode(message))
                for reply in self._answer(self.requests):
                    self._socket.send_multipart([sender, wire.pack({"v": 1, **reply})])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close(0)
        self._context.term()
