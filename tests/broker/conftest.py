"""A RouterSocket on a loop of its own, and clients for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import zmq

from kingtask.broker.auth import Peer
from kingtask.broker.broker_socket import BrokerSocket
from kingtask.broker.counters import Counters
from kingtask.broker.relay import Relay
from kingtask.broker.router import RouterSocket
from tests.servers import free_port

PATIENCE_MS = 20_000


async def stop(socket: BrokerSocket, relay: Relay, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Stop a socket and its relay as a broker does."""
    relay.stop()
    socket.stop()
    await relay.closed(PATIENCE_MS / 1000)
    context.term()
    relay.close()


class EchoRouter:
    """A RouterSocket that echoes each message, on a loop in a thread of its own; tests may replace both callbacks."""

    def __init__(self) -> None:
        self.port = free_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.counters = Counters()
        self.relay = Relay(self.context, self.counters)
        self.router = RouterSocket(self.context, self.relay, (self.endpoint,), self.counters)
        self.on_request: Callable[[Peer, bytes], object] = self.answer
        self.on_drained: Callable[[], None] = lambda: None
        self.loop = asyncio.new_event_loop()
        self.errors: list[dict[str, Any]] = []
        """Of callbacks of the loop."""
        self.loop.set_exception_handler(lambda _, error: self.errors.append(error))
        self.thread = threading.Thread(target=self.run, daemon=True)

    def answer(self, peer: Peer, message: bytes) -> None:
        self.router.reply(peer, message)

    def _request(self, peer: Peer, message: bytes) -> None:
        self.on_request(peer, message)

    def _drained(self) -> None:
        self.on_drained()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(partial(self.router.start, self._request, self._drained))
        self.loop.call_soon(self.relay.start)
        self.loop.run_forever()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(stop(self.router, self.relay, self.context), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        registered = list(self.loop._selector.get_map())  # type: ignore[attr-defined]
        self.loop.close()
        assert self.errors == []
        assert len(registered) == 1, "the loop's own descriptor, and none of a connection that has ended"


@pytest.fixture
def served() -> Iterator[EchoRouter]:
    serving = EchoRouter()
    serving.thread.start()
    yield serving
    serving.stop()


class Sockets:
    """Clients of one test, closed at its end."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def new(self, kind: int, endpoint: str | None = None) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.linger = 0
        made.rcvtimeo = PATIENCE_MS
        self._made.append(made)
        if endpoint:
            made.connect(endpoint)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()
        self._context.term()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()
