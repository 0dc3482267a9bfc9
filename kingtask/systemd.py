"""Notify systemd about a daemon: ready, status, reloading, stopping, and a loop that is alive.

The protocol is sd_notify(3): lines of NAME=value in a datagram to the socket in NOTIFY_SOCKET. Without that variable
nothing is sent and nothing is scheduled. Only a timer of the loop feeds the watchdog, and only while the daemon's
periodic work is done. An unreachable Redis does not stop that work.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, MutableMapping
from typing import Self

from kingtask.clock import US_PER_S, monotonic_s, monotonic_us
from kingtask.event import Event

log = logging.getLogger("kingtask.systemd")

STATUS_S = 5.0
"""Shortest time between two status lines, since each is a message to process 1."""
FEEDS = 2
"""Watchdog messages per period, as sd_watchdog_enabled(3) recommends."""
EXTENSIONS = 4
"""Ticks by which a stopping daemon extends its timeout each time, since a tick may be late."""


class Notifier:
    """Belongs to the loop's thread; no method blocks or raises."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`address`: a path or, behind @, a name in the abstract namespace (unix(7)). 0: there is no watchdog."""
        self._watchdog_s = watchdog_s
        self._every_s = min(STATUS_S, watchdog_s / FEEDS) if watchdog_s else STATUS_S
        self._socket: socket.socket | None = None
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        elif address:
            log.warning(Event("notify=failed", "expected a path, or a name behind @", address=address))
        self._unsent: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._last_status = ""
        self._status_s = 0.0
        self._status: Callable[[], str] = str
        self._alive: Callable[[], bool] = bool

    @classmethod
    def of(cls, environment: MutableMapping[str, str], pid: int) -> Self:
        """Make the notifier that the environment of process `pid` asks for, and remove its variables.

        WATCHDOG_PID may name another process for the watchdog.
        """
        address, period_us, owner = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        meant = period_us.isdecimal() and owner in ("", str(pid))
        return cls(address, int(period_us) / US_PER_S if meant else 0.0)

    def start(self, *, status: Callable[[], str], alive: Callable[[], bool]) -> None:
        """Report that the daemon is ready; from now on send its status, and feed the watchdog while it is `alive`."""
        self._status, self._alive = status, alive
        if self._socket is not None:
            self._send("READY=1")
            self._tick()

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_us()}")

    def reloaded(self) -> None:
        self._status_s = 0.0
        self._send("READY=1", *self._new_status())

    def stopping(self) -> None:
        """Report the stop; from now on ask for more time while the loop runs. Idempotent."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", *self._more_time())

    def close(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._tick)
        lines = self._new_status()
        if self._stopping:
            lines += self._more_time()
        elif self._watchdog_s:
            if self._alive():
                lines.append("WATCHDOG=1")
            else:
                log.error(Event("watchdog=withheld", "the loop runs, but its periodic work does not"))
        self._send(*lines if not self._unsent else ())

    def _new_status(self) -> list[str]:
        now_s = monotonic_s()
        if now_s - self._status_s < STATUS_S and self._status_s:
            return []
        status = " ".join(self._status().splitlines())
        if status == self._last_status:
            return []
        self._last_status, self._status_s = status, now_s
        return [f"STATUS={status}"]

    def _more_time(self) -> list[str]:
        return [f"EXTEND_TIMEOUT_USEC={round(EXTENSIONS * self._every_s * US_PER_S)}"]

    def _send(self, *lines: str) -> None:
        """Send lines; those that find no room go with the next message."""
        if self._socket is None or not (lines or self._unsent):
            return
        self._unsent += lines
        try:
            self._socket.sendto("\n".join(self._unsent).encode(errors="replace"), self._address)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning(Event("notify=failed", error=str(error)))
        self._unsent = []
