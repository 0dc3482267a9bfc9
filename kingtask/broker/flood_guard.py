"""Connections whose messages do not come to their end: what they make this process hold is bounded.

libzmq keeps the frames of a message until its last one is there. It bounds each frame, but not how many there are (one
peer had the broker hold 300 MB in 300 frames of 1 MiB), and bounds what a connection says of itself in its handshake
no better. None of that comes up here. So when this process has grown large, what each connection has sent since a
message of its last came up is counted, and where it is too much in all, those that sent the most are cut off. A client
in good order that is met by this was sending a large request, and sends it again.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.broker.descriptors import cut_off, held, is_still

BASE_BYTES = 256 * 1024 * 1024
"""What a broker may take, beside requests under way, before connections are looked at; 10,000 idle ones take 50 MB."""
HELD_BYTES = 16 * 1024 * 1024
"""Of unfinished messages in all, as sent: four of the longest. Frames of a few bytes take 64 each in memory."""
EVERY_S = 0.25
NEAR_S = 0.05
"""From half of the limit on: a peer on this host sends a gigabyte a second. To look takes 10 µs."""
LOOKED_AT = 500
"""Connections at a time, for some 10 µs each."""
TCP_INFO_BYTES = 136
RECEIVED_AT = 128
"""tcpi_bytes_received in struct tcp_info (linux/tcp.h)."""


@dataclass(slots=True, eq=False)
class _Sender:
    fd: int
    inode: int
    heard_at: int
    """Bytes that libzmq had read of it when a message of it came up."""
    held: int = 0


class PartialMessageGuard:
    """`limit_bytes`: what this process may take before connections are looked at. TCP only: others are of this host."""

    def __init__(self, endpoints: Sequence[str], limit_bytes: int, counters: Counters) -> None:
        self._ports = {int(end.rpartition(":")[2]) for end in endpoints if end.startswith("tcp://")}
        self._limit_bytes = limit_bytes
        self._counters = counters
        self.wary = False
        """`heard` is to be called for each message."""
        self._heard: set[int] = set()
        self._senders: dict[int, _Sender] = {}
        self._left: Iterator[int] = iter(())
        self._seen: set[int] = set()
        self._first_pass = True
        self._has_cut = False
        self._timer: asyncio.TimerHandle | None = None
        self._statm = -1
        """/proc/self/statm, kept open: peers can use up all descriptors."""

    def start(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._look_later()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.close(self._statm)

    def heard(self, frame: zmq.Frame) -> None:
        """A message has come up, of which this is a frame."""
        try:
            self._heard.add(int(frame.get("__fd")))
        except zmq.ZMQError:  # its connection has ended
            return

    def _look_later(self, pause_s: float = EVERY_S) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._look)

    def _look(self) -> None:
        pause_s = EVERY_S
        try:
            resident = int(os.pread(self._statm, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
            if resident > self._limit_bytes / 2:
                pause_s = NEAR_S
            large = resident > self._limit_bytes
            if not large:
                self._forget()
            elif not self.wary:
                self.wary = True
                self._begin()
            if large:
                self._count()
        finally:
            self._look_later(pause_s)

    def _forget(self) -> None:
        self.wary, self._first_pass = False, True
        self._heard.clear()
        self._senders.clear()

    def _begin(self) -> None:
        try:
            self._left = iter([int(name) for name in os.listdir("/proc/self/fd")])  # noqa: PTH208
        except OSError:  # none is free: all numbers are in use
            self._left = iter(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        self._seen = set()

    def _count(self) -> None:
        """Look at the next few connections; when it was all of them, cut off those that hold too much."""
        for _ in range(LOOKED_AT):
            fd = next(self._left, -1)
            if fd < 0:
                break
            self._count_one(fd)
        else:
            return
        self._senders = {inode: sender for inode, sender in self._senders.items() if inode in self._seen}
        if self._has_cut:
            self._has_cut = False
            _trim()
        self._cut()
        self._first_pass = False
        self._begin()

    def _count_one(self, fd: int) -> None:
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                return
            with held(fd, status.st_ino) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                    return
                if connection.getsockname()[1] not in self._ports:
                    return
                taken = _taken(connection)
        except OSError:  # it ends at this moment
            return
        sender = self._senders.get(status.st_ino)
        if sender is None:
            # Of one that was there before nobody knows how much of what it sent came up.
            sender = _Sender(fd, status.st_ino, taken if self._first_pass else 0)
            self._senders[sender.inode] = sender
        self._seen.add(sender.inode)
        if fd in self._heard:
            self._heard.discard(fd)
            sender.heard_at = taken
        sender.held = taken - sender.heard_at

    def _cut(self) -> None:
        too_much = sum(sender.held for sender in self._senders.values()) - HELD_BYTES
        if too_much <= 0:
            return
        for sender in sorted(self._senders.values(), key=lambda sender: sender.held, reverse=True):
            if is_still(sender.fd, sender.inode):
                cut_off(sender.fd, sender.inode)
                self._has_cut = True
                self._counters.count(counters.CUT_OFF, f"{sender.held:,} bytes of a message without an end")
            del self._senders[sender.inode]
            too_much -= sender.held
            if too_much <= 0:
                return


def _taken(connection: socket.socket) -> int:
    """How many bytes libzmq has read of it: what the kernel received, less what still waits there."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    if len(told) < TCP_INFO_BYTES:  # Linux before 4.1, or the listening one
        return 0
    (received,) = struct.unpack_from("Q", told, RECEIVED_AT)
    (waiting,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))
    return int(received) - int(waiting)


def _trim() -> None:
    """Give back what was freed: the C library would keep it, and this process would stay large."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
