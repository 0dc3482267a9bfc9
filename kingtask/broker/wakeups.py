"""The XPUB: hints to workers that a queue has something to claim or that a task is to be cancelled.

Only known topics can be subscribed to, so a peer cannot grow the subscription table at will. A wakeup that is lost
costs a worker's `period`, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import zmq

from kingtask import protocol
from kingtask.broker.edge import NOBLOCK, NOBLOCK_MORE, SOCKET_OPTIONS, bind
from kingtask.errors import ConfigurationError

MAX_TOPIC_BYTES = 256
MAX_TOPICS = 100_000


class Wakeups:
    """Owns the XPUB socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Sequence[str]) -> None:
        self._socket = context.socket(zmq.XPUB)
        for option, value in SOCKET_OPTIONS.items():
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_TOPIC_BYTES)
        self._socket.setsockopt(zmq.XPUB_MANUAL, 1)
        try:
            bind(self._socket, endpoints, "wakeup")
        except ConfigurationError:
            self._socket.close()
            raise
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._topics = 0
        self.refused_topics = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)
        self._read()

    def stop(self) -> None:
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close(0)

    def ready(self, queue: str, tasks: int) -> None:
        self._publish(protocol.ready_topic(queue), str(tasks).encode())

    def cancel(self, worker: str, task_id: str) -> None:
        self._publish(protocol.cancel_topic(worker), task_id.encode())

    def _publish(self, topic: bytes, body: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):  # a full pipe drops the hint; the worker polls
            self._socket.send(topic, NOBLOCK_MORE)
            self._socket.send(body, NOBLOCK)
        if self._loop is not None:
            self._loop.call_soon(self._read)  # the descriptor is edge-triggered

    def _read(self) -> None:
        """Take in subscriptions: one byte (1 on, 0 off), then the topic."""
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(NOBLOCK)
            except zmq.ZMQError:
                return
            message = frames[0]
            if len(frames) != 1 or not message or message[0] > 1:
                self.refused_topics += 1
            elif message[0] == 0:
                self._topics = max(0, self._topics - 1)
                self._socket.setsockopt(zmq.UNSUBSCRIBE, message[1:])
            elif protocol.is_topic(message[1:]) and self._topics < MAX_TOPICS:
                self._topics += 1
                self._socket.setsockopt(zmq.SUBSCRIBE, message[1:])
            else:
                self.refused_topics += 1
