"""A selector whose waits end on the microsecond, for a loop whose timers are what the broker is for.

That of asyncio waits in whole milliseconds, rounded up, and the kernel may end an epoll_wait(2) later by a thousandth
of the wait. Together they made a tick 1.2 ms late at the median, of 5 ms until its program ran. A timer of
timerfd_create(2) has neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import selectors
from typing import Any

_CLOCK_MONOTONIC = 1  # clock_gettime(2)
_LIBC = ctypes.CDLL(None, use_errno=True)  # os.timerfd_create is there since Python 3.13


class _Timer(ctypes.Structure):
    """struct itimerspec: again after, first after; both in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class TimerfdSelector(selectors.EpollSelector):
    """As EpollSelector, but `select` waits no longer than it is told. Raises OSError where the kernel has no timer."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = _LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            super().close()
            raise OSError(ctypes.get_errno(), f"timerfd_create: {os.strerror(ctypes.get_errno())}")
        self.register(self._timer, selectors.EVENT_READ, (None, None))

    @classmethod
    def loop(cls) -> asyncio.AbstractEventLoop:
        """A new event loop with one of these."""
        return asyncio.SelectorEventLoop(cls())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        if timeout is not None and timeout > 0:
            seconds, ns = divmod(max(1, round(timeout * 1e9)), 1_000_000_000)  # 0 would stop it
            _LIBC.timerfd_settime(self._timer, 0, ctypes.byref(_Timer(0, 0, seconds, ns)), None)
        ready = super().select(timeout)
        if any(key.fd == self._timer for key, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._timer, 8)
            ready = [event for event in ready if event[0].fd != self._timer]
        return ready

    def close(self) -> None:
        super().close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1
