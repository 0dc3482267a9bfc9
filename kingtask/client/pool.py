"""The channels of one blocking client: one for each thread that uses the client now, kept for the next thread."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event, RLock

import zmq

from kingtask.client.channel import Channel
from kingtask.client.dealer import Context, disown_after_fork
from kingtask.curve import ClientKeys
from kingtask.errors import ClientClosed

MAX_IDLE = 16
"""Connections kept while no thread uses them; each costs a few descriptors and a heartbeat a second."""

MAX_SOCKETS = 16_384
"""A channel takes three sockets of ZeroMQ (with its monitor), and threads may be many; the default is 1,023."""


class Pool:
    """`take` a channel, use it from one thread at a time, `give` it back. Thread-safe, and usable after a fork."""

    def __init__(self, endpoints: Sequence[str], keys: ClientKeys | None = None) -> None:
        self._endpoints = tuple(endpoints)
        self._keys = keys
        self._first = 0
        """Index of the address that answered last."""
        self._lock = RLock()  # the garbage collector may give a channel back at any moment
        self._closing = Event()
        self._context: Context | None = None
        self._idle: list[Channel] = []
        self._taken: set[Channel] = set()
        disown_after_fork(self)

    def take(self) -> Channel:
        """Return a channel for the calling thread. Raises ClientClosed."""
        with self._lock:
            if self._closing.is_set():
                raise ClientClosed("the client is closed")
            if self._idle:
                channel = self._idle.pop()  # the last one used: the others may grow old
            else:
                if self._context is None:
                    self._context = zmq.Context()
                    self._context.setsockopt(zmq.MAX_SOCKETS, MAX_SOCKETS)
                channel = Channel(self._context, self._endpoints, self._closing, first=self._first, keys=self._keys)
            self._taken.add(channel)
            return channel

    def give(self, channel: Channel) -> None:
        """Take back a channel. A channel with calls in progress is closed, since nobody waits for them."""
        with self._lock:
            if channel not in self._taken:  # taken before a fork
                return
            self._taken.remove(channel)
            self._first = channel.index
            if channel.idle and len(self._idle) < MAX_IDLE and not self._closing.is_set():
                self._idle.append(channel)
                return
        channel.close()

    def close(self) -> None:
        """Close all; calls in progress in other threads end with NoAnswer. Block until they have. Idempotent."""
        with self._lock:
            self._closing.set()
            channels = [*self._idle, *self._taken]
            self._idle.clear()
            context, self._context = self._context, None
        for channel in channels:
            channel.close()
        if context is not None:
            context.term()

    def disown(self) -> list[object]:
        """In a forked child: start empty, and return the parent's channels and context untouched."""
        parents: list[object] = [self._context]
        parents += [channel.disown() for channel in (*self._idle, *self._taken)]
        closed = self._closing.is_set()
        self._lock, self._closing = RLock(), Event()  # another thread may have held the parent's
        if closed:
            self._closing.set()
        self._context = None
        self._idle = []
        self._taken = set()
        return parents
