"""The blocking shell of the core: a channel for each thread that uses the client now, from the pool of the client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from threading import Event, Lock, RLock

import zmq

from kingtask.client.call import Call, SendOnly
from kingtask.client.connection import CoreConnection
from kingtask.client.dealer import Context, Dealer, disown_after_fork
from kingtask.clock import monotonic_s
from kingtask.curve import ClientKeys
from kingtask.errors import ClientClosed, NoAnswer

QUICK_S = 0.1
"""Nearly every reply comes within this time, and a plain receive is the cheapest way to wait. It is short because only
the monitor shows a lost connection."""

LONGEST_POLL_S = 3600.0

MAX_IDLE = 16
"""Connections kept while no thread uses them; each costs a few descriptors and a heartbeat a second."""

MAX_SOCKETS = 16_384
"""A channel takes three sockets of ZeroMQ (with its monitor), and threads may be many; the default is 1,023."""


class Channel(CoreConnection):
    """One connection at a time, used by one thread at a time; `exchange` blocks.

    `closing` is set before the context is terminated.
    """

    def __init__(
        self, context: Context, endpoints: Sequence[str], closing: Event, keys: ClientKeys | None, *, first: int
    ) -> None:
        super().__init__(context, endpoints, keys, first=first)
        self._closing = closing
        self._finished: list[Call] = []
        self._in_use = Lock()
        self._orphaned = False

    @property
    def idle(self) -> bool:
        """True if no call is in progress."""
        return not self.core.pending and not self._finished

    def exchange(self, calls: Sequence[Call]) -> list[Call]:
        """Start calls; block until at least one call in progress is done; return all calls that are done.

        With `SendOnly` it blocks only until these are sent. It returns at once if no call is in progress. Raises
        NoAnswer if the client is closed meanwhile, ClientClosed in a forked child.
        """
        try:
            with self._in_use:
                try:
                    return self._exchange(calls)
                except zmq.ContextTerminated:
                    self._close_dealer()
                    raise _closed() from None
        finally:
            if self._closing.is_set():  # Client.close leaves channels in use to their threads
                self.close()

    def close(self) -> None:
        """Close the socket, unless a thread is inside `exchange`, which closes it then. Idempotent."""
        if self._in_use.acquire(blocking=False):
            try:
                self._close_dealer()
            finally:
                self._in_use.release()

    def disown(self) -> Dealer | None:
        """In a forked child: give up this channel, and return the parent's connection untouched."""
        self._orphaned = True
        self._in_use = Lock()
        dealer, self._dealer = self._dealer, None
        return dealer

    def _exchange(self, calls: Sequence[Call]) -> list[Call]:
        if self._orphaned:
            raise ClientClosed("this iteration began in the parent process; begin a new one")
        core = self.core
        now = monotonic_s()
        for call in calls:
            if not core.start(call, now):
                self._finished.append(call)
        quick = True
        while core.pending and not self._finished:
            blocked = self._send(now)
            if not blocked and isinstance(calls, SendOnly):
                while self._dealer is not None and (frame := self._dealer.receive()) is not None:
                    self._received(frame, monotonic_s())
                break
            left_s = core.next_at() - now
            if left_s <= 0:
                self._finished += core.tick(now)
                continue
            frame = self._receive(left_s, quick=quick, blocked=blocked)
            now = monotonic_s()
            quick = frame is not None
            if frame is not None:
                self._received(frame, now)
        finished, self._finished = self._finished, []
        return finished

    def _settle(self, calls: Iterable[Call]) -> None:
        self._finished += calls

    def _on_connecting(self, dealer: Dealer) -> None:
        dealer.socket.setsockopt(zmq.RCVTIMEO, int(QUICK_S * 1000))

    def _receive(self, within_s: float, *, quick: bool, blocked: bool) -> bytes | None:
        """Return a message that arrives within that time, or None, possibly earlier after another event."""
        dealer = self._dealer
        if dealer is None:
            if self._closing.wait(min(within_s, LONGEST_POLL_S)):
                raise _closed()
            return None
        if quick and not blocked and within_s > QUICK_S:
            try:
                return dealer.socket.recv()
            except zmq.Again:
                return None
        events = zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN
        timeout_ms = ceil(min(within_s, LONGEST_POLL_S) * 1000)
        zmq.zmq_poll([(dealer.socket, events), (dealer.monitor, zmq.POLLIN)], timeout_ms)
        frame = dealer.receive()
        if frame is None:
            self._note(dealer.news())
        return frame


class Pool:
    """`take` a channel, use it from one thread at a time, `give` it back. Thread-safe, and usable after a fork."""

    def __init__(self, endpoints: Sequence[str], keys: ClientKeys | None) -> None:
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
                channel = Channel(self._context, self._endpoints, self._closing, self._keys, first=self._first)
            self._taken.add(channel)
            return channel

    def give(self, channel: Channel) -> None:
        """Take back a channel. A channel with calls in progress is closed, since nobody waits for them."""
        with self._lock:
            if channel not in self._taken:  # taken before a fork
                return
            self._taken.remove(channel)
            self._first = channel.core.index
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


def _closed() -> NoAnswer:
    return NoAnswer("the client was closed while it waited for an answer; it is unknown whether anything was stored")
