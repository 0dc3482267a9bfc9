"""The wakeup socket: what the brokers say without being asked. Hints only; `period` makes up for every lost one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

from kingtask import protocol
from kingtask.errors import ConfigurationError

SOCKET_OPTIONS: dict[int, int] = {
    zmq.HANDSHAKE_IVL: 3_000,  # ms
    zmq.HEARTBEAT_IVL: 1_000,  # ms; a stopped broker is noticed, and connected to again when it is back
    zmq.HEARTBEAT_TIMEOUT: 3_000,
    zmq.RECONNECT_IVL: 100,  # ms; doubled up to the next: a broker's restart costs little, its absence next to nothing
    zmq.RECONNECT_IVL_MAX: 2_000,
    zmq.RCVHWM: 1_000,  # hints; what is more is dropped, and one is as good as many
    zmq.MAXMSGSIZE: 512,
    zmq.IPV6: 1,
    zmq.LINGER: 0,
}
DRAIN_MESSAGES = 256
"""Read before the loop goes on with something else."""


class Subscriber:
    """A SUB socket connected to all brokers. `on_ready()` and `on_cancel(task id)` are called in the loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        queues: Sequence[str],
        worker: str,
        on_ready: Callable[[], None],
        on_cancel: Callable[[str], None],
    ) -> None:
        """Connect; raises ConfigurationError if an endpoint is none. Nothing is read before `start`."""
        self._on_ready = on_ready
        self._on_cancel = on_cancel
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in SOCKET_OPTIONS.items():
            self._socket.setsockopt(option, value)
        self._cancel_topic = protocol.cancel_topic(worker)
        for topic in (self._cancel_topic, *(protocol.ready_topic(queue) for queue in queues)):
            self._socket.subscribe(topic)
        for endpoint in endpoints:
            try:
                self._socket.connect(endpoint)
            except zmq.ZMQError as error:
                self.close()
                raise ConfigurationError(f"wakeup: cannot connect to {endpoint}: {error}") from None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._read()

    def close(self) -> None:
        """Idempotent."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close(0)
        self._context.term()

    def _read(self) -> None:
        # The descriptor is edge-triggered: read until there is nothing, or come back at once.
        ready = False
        for _ in range(DRAIN_MESSAGES):
            if self._socket.closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:  # nothing there
                break
            if len(frames) == 2 and frames[0] == self._cancel_topic:
                self._on_cancel(frames[1].decode("ascii", "replace"))
            else:
                ready = True
        else:
            assert self._loop is not None
            self._loop.call_soon(self._read)
        if ready:
            self._on_ready()
