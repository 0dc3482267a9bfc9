"""The blocking shell of the core: one connection at a time, used by one thread at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from threading import Event, Lock

import zmq

from kingtask.client.call import Call, SendOnly
from kingtask.client.connection import CoreConnection
from kingtask.client.dealer import Context, Dealer
from kingtask.clock import monotonic_s
from kingtask.curve import ClientKeys
from kingtask.errors import ClientClosed, NoAnswer

QUICK_S = 0.1
"""Nearly every reply comes within this time, and a plain receive is the cheapest way to wait. It is short because only
the monitor shows a lost connection."""

LONGEST_POLL_S = 3600.0


class Channel(CoreConnection):
    """Calls go in by `exchange`, which blocks. `closing` is set before the context is terminated."""

    def __init__(
        self,
        context: Context,
        endpoints: Sequence[str],
        closing: Event,
        *,
        first: int = 0,
        keys: ClientKeys | None = None,
    ) -> None:
        super().__init__(context, endpoints, keys, first=first)
        self._closing = closing
        self._finished: list[Call] = []
        self._in_use = Lock()
        self._orphaned = False

    @property
    def idle(self) -> bool:
        """True if no call is in progress."""
        return not self._core.pending and not self._finished

    @property
    def index(self) -> int:
        """Index of the address in use."""
        return self._core.index

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
        core = self._core
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


def _closed() -> NoAnswer:
    return NoAnswer("the client was closed while it waited for an answer; it is unknown whether anything was stored")
