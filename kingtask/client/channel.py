"""The blocking shell of the core: one connection at a time, used by one thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from random import random
from threading import Event, Lock
from typing import TYPE_CHECKING

import zmq

from kingtask.client.call import Call, SendOnly, no_access
from kingtask.client.core import Core
from kingtask.client.dealer import Context, Dealer, News
from kingtask.clock import monotonic_s
from kingtask.errors import ClientClosed, NoAnswer

if TYPE_CHECKING:
    from kingtask.curve import ClientKeys

QUICK_S = 0.1
"""Nearly every reply comes within this, and one plain receive is the cheapest way to wait for it. No longer, because a
lost connection shows only on the monitor."""

LONGEST_POLL_S = 3600.0


class Channel:
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
        self._context = context
        self._keys = keys
        self._core = Core(endpoints, random, first=first)
        self._closing = closing
        self._dealer: Dealer | None = None
        self._finished: list[Call] = []
        self._in_use = Lock()
        self._orphaned = False

    @property
    def idle(self) -> bool:
        """Nothing is under way on it."""
        return not self._core.pending and not self._finished

    @property
    def index(self) -> int:
        """Index of the address in use."""
        return self._core.index

    def exchange(self, calls: Sequence[Call]) -> list[Call]:
        """Start calls; block until at least one of those under way is done; return all that are.

        If they are `SendOnly`, no longer than until they are sent; and nothing, if nothing is under way. Raises
        NoAnswer if the client is closed meanwhile, ClientClosed in a child of the process that began.
        """
        try:
            with self._in_use:
                try:
                    return self._exchange(calls)
                except zmq.ContextTerminated:
                    self._close_dealer()
                    raise _closed() from None
        finally:
            if self._closing.is_set():  # whoever closes the client leaves to us what is in use at that moment
                self.close()

    def close(self) -> None:
        """Close its socket, unless a thread is inside `exchange`, which then does. Idempotent."""
        if self._in_use.acquire(blocking=False):
            try:
                self._close_dealer()
            finally:
                self._in_use.release()

    def disown(self) -> Dealer | None:
        """In the child after a fork: this channel is the parent's, and so is its connection, returned untouched."""
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
                self._take_in()
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
        return self._take_finished()

    def _take_finished(self) -> list[Call]:
        finished, self._finished = self._finished, []
        return finished

    def _take_in(self) -> None:
        """What has arrived; what becomes of the connection is seen by whoever waits."""
        while self._dealer is not None and (frame := self._dealer.receive()) is not None:
            self._received(frame, monotonic_s())

    def _received(self, frame: bytes, now: float) -> None:
        done = self._core.received(frame, now)
        if done is not None:
            self._finished.append(done)

    def _send(self, now: float) -> bool:
        """Connect if it is time to, send what can be sent; return True if something has to wait."""
        core = self._core
        if core.closed:
            self._close_dealer()
            if core.wants_connection(now):
                self._connect(now)
        while (call := core.next_to_send()) is not None:
            if self._dealer is None or not self._dealer.send(call.message):
                return True
            core.sent(now)
        return False

    def _connect(self, now: float) -> None:
        self._core.opened(now)
        try:
            self._dealer = Dealer(self._context, self._core.endpoint, self._keys)
            self._dealer.socket.setsockopt(zmq.RCVTIMEO, int(QUICK_S * 1000))
        except zmq.ZMQError as error:
            if self._closing.is_set():
                raise _closed() from None
            self._core.broken(now, why=f"no socket for a connection: {error}")

    def _receive(self, within_s: float, *, quick: bool, blocked: bool) -> bytes | None:
        """A message that arrives within that time, or None, which may be earlier if anything else happened."""
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

    def _note(self, news: News | None) -> None:
        if news is News.UP:
            self._core.up()
        elif news is News.BROKEN:
            self._core.broken(monotonic_s())
        elif news is not None:
            certain = news is News.REFUSED
            why = no_access(self._core.endpoint, keyed=self._keys is not None, certain=certain)
            self._finished += self._core.denied(monotonic_s(), why, certain=certain)

    def _close_dealer(self) -> None:
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None


def _closed() -> NoAnswer:
    return NoAnswer("the client was closed while it waited for an answer; whether anything was stored is not known")
