"""A core, and the connection that it currently uses: the part that the blocking and the asyncio shell share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import random

import zmq

from kingtask.client.call import Call, no_access
from kingtask.client.core import Core
from kingtask.client.dealer import Context, Dealer, News
from kingtask.clock import monotonic_s
from kingtask.curve import ClientKeys


class CoreConnection:
    """Carries out the wishes of a core: connects, sends, and reports events. A shell adds waiting and receiving."""

    def __init__(self, context: Context, endpoints: Sequence[str], keys: ClientKeys | None, *, first: int = 0) -> None:
        self._context = context
        self._keys = keys
        self.core = Core(endpoints, random, first=first)
        self._dealer: Dealer | None = None

    def _settle(self, calls: Iterable[Call]) -> None:
        """Hand over calls that are done."""
        raise NotImplementedError

    def _on_sent(self, call: Call) -> None:
        """Note that a call was sent."""

    def _on_connecting(self, dealer: Dealer) -> None:
        """Prepare a new connection."""

    def _send(self, now: float) -> bool:
        """Connect if it is time to, send what can be sent. Return True if a call has to wait for the connection."""
        core = self.core
        if core.closed:
            self._close_dealer()
            if core.wants_connection(now):
                self._connect(now)
        while (call := core.next_to_send()) is not None:
            if self._dealer is None or not self._dealer.send(call.message):
                return True
            core.sent(now)
            self._on_sent(call)
        return False

    def _connect(self, now: float) -> None:
        self.core.opened(now)
        try:
            self._dealer = Dealer(self._context, self.core.endpoint, self._keys)
        except zmq.ZMQError as error:
            self.core.broken(now, why=f"no socket for a connection: {error}")
        else:
            self._on_connecting(self._dealer)

    def _received(self, frame: bytes, now: float) -> None:
        done = self.core.received(frame, now)
        if done is not None:
            self._settle((done,))

    def _note(self, news: News | None) -> None:
        """Tell the core the latest event of the connection."""
        if news is News.UP:
            self.core.up()
        elif news is News.BROKEN:
            self.core.broken(monotonic_s())
        elif news is not None:
            certain = news is News.REFUSED
            why = no_access(self.core.endpoint, keyed=self._keys is not None, certain=certain)
            self._settle(self.core.denied(monotonic_s(), why, certain=certain))

    def _close_dealer(self) -> None:
        dealer, self._dealer = self._dealer, None
        if dealer is not None:
            dealer.close()
