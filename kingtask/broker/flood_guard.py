"""Bounds the memory held by connections that never finish a message, and cuts connections off.

libzmq keeps the frames of a message until the last one has arrived. It bounds the size of a frame but not their number
(one peer made the broker hold 300 MB in 300 frames of 1 MiB), nor the metadata of a handshake, and no socket option
shows either. So while this process is large, the guard compares for each connection the bytes that libzmq has read with
those it had read at the last complete message. If all the rest together is over HELD_BYTES, it cuts off the
connections with the most. A well-behaved client that loses its connection here sends its large request again.

libzmq names the descriptor by which a frame came. The number may belong to another connection by the time it is used;
the inode behind it identifies the connection as long as it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import zmq

from kingtask.broker import counters
from kingtask.broker.counters import Counters

BASE_BYTES = 256 * 1024 * 1024
"""Memory of a broker, beside its requests, at which connections are examined; 10,000 idle ones take 50 MB."""
HELD_BYTES = 16 * 1024 * 1024
"""Unfinished messages of all connections, as sent: four of the longest. In memory a tiny frame takes 64 bytes."""
EVERY_S = 0.25
NEAR_S = 0.05
"""The pause once half of the limit is reached: a local peer sends a gigabyte a second. One poll takes 10 µs."""
AT_ONCE = 500
"""Connections examined by one poll, for some 10 µs each."""
TCP_INFO_BYTES = 136
RECEIVED_AT = 128
"""tcpi_bytes_received in struct tcp_info (linux/tcp.h)."""

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h."""
_RETURN_0 = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_DROP_ALL = struct.pack("HP", 1, ctypes.addressof(_RETURN_0))
"""A socket filter (linux/filter.h) of one instruction, which keeps 0 bytes of each segment."""
_RESET = struct.pack("ii", 1, 0)
"""Linger for 0 s: libzmq's close resets the connection, since the filter drops the peer's answer to a FIN."""

_NULL = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
_RESERVED = os.dup(_NULL)
"""A descriptor reserved for `held_open`: peers can use up all free ones."""


@dataclass(slots=True, eq=False)
class _Sender:
    fd: int
    inode: int
    completed_at: int
    """Bytes that libzmq had read from this connection at its last complete message."""
    held: int = 0


class PartialMessageGuard:
    """Examines TCP connections while this process is over `limit_bytes`; other peers are local processes."""

    def __init__(self, endpoints: Sequence[str], limit_bytes: int, counters: Counters) -> None:
        self._ports = {int(end.rpartition(":")[2]) for end in endpoints if end.startswith("tcp://")}
        self._limit_bytes = limit_bytes
        self._counters = counters
        self.watching = False
        """Call `completed` for each message."""
        self._completed: set[int] = set()
        self._senders: dict[int, _Sender] = {}
        self._left: Iterator[int] | None = None
        """Descriptors of this pass that are not examined yet; None between two passes."""
        self._seen: set[int] = set()
        self._first_pass = True
        self._has_cut = False
        self._timer: asyncio.TimerHandle | None = None
        self._statm = -1
        """/proc/self/statm, kept open: peers can use up all descriptors."""

    def start(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._poll_later(EVERY_S)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            os.close(self._statm)

    def completed(self, frame: zmq.Frame) -> None:
        """Note that a message with this frame was received whole."""
        with contextlib.suppress(zmq.ZMQError):  # its connection has ended
            self._completed.add(int(frame.get("__fd")))

    def _poll_later(self, pause_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._poll)

    def _poll(self) -> None:
        pause_s = EVERY_S
        try:
            resident = int(os.pread(self._statm, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
            if resident > self._limit_bytes / 2:
                pause_s = NEAR_S
            self.watching = resident > self._limit_bytes
            if self.watching:
                self._examine()
            else:
                self._left, self._first_pass = None, True
                self._completed.clear()
                self._senders.clear()
        finally:
            self._poll_later(pause_s)

    def _examine(self) -> None:
        """Examine the next connections. At the end of a pass, cut off those that hold too much."""
        if self._left is None:
            self._left, self._seen = _descriptors(), set()
        fds = list(islice(self._left, AT_ONCE))
        for fd in fds:
            self._examine_one(fd)
        if len(fds) == AT_ONCE:
            return
        self._senders = {inode: sender for inode, sender in self._senders.items() if inode in self._seen}
        if self._has_cut:
            self._has_cut = False
            _trim()
        self._cut()
        self._left, self._first_pass = None, False

    def _examine_one(self, fd: int) -> None:
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                return
            with held_open(fd, status.st_ino) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                    return
                if connection.getsockname()[1] not in self._ports:
                    return
                read = _bytes_read(connection)
        except OSError:  # the connection has just ended
            return
        sender = self._senders.get(status.st_ino)
        if sender is None:
            # How much of an older connection's bytes belongs to complete messages is unknown.
            sender = _Sender(fd, status.st_ino, read if self._first_pass else 0)
            self._senders[sender.inode] = sender
        self._seen.add(sender.inode)
        if fd in self._completed:
            self._completed.discard(fd)
            sender.completed_at = read
        sender.held = read - sender.completed_at

    def _cut(self) -> None:
        excess = sum(sender.held for sender in self._senders.values()) - HELD_BYTES
        by_held = sorted(self._senders.values(), key=lambda sender: sender.held) if excess > 0 else []
        while by_held and excess > 0:
            sender = by_held.pop()
            if is_still(sender.fd, sender.inode):
                cut_off(sender.fd, sender.inode)
                self._has_cut = True
                self._counters.count(counters.CUT_OFF, f"{sender.held:,} bytes of a message without an end")
            del self._senders[sender.inode]
            excess -= sender.held


def _descriptors() -> Iterator[int]:
    try:
        return iter([int(name) for name in os.listdir("/proc/self/fd")])  # noqa: PTH208
    except OSError:  # no descriptor is free, so every number is in use
        return iter(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def _bytes_read(connection: socket.socket) -> int:
    """Return how many bytes libzmq has read: those that the kernel received, less those still in its buffer."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    if len(info) < TCP_INFO_BYTES:  # Linux before 4.1, or a listening socket
        return 0
    (received,) = struct.unpack_from("Q", info, RECEIVED_AT)
    (waiting,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4))
    return int(received) - int(waiting)


def _trim() -> None:
    """Return freed memory to the kernel: the C library would keep it, and this process would stay large."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


# ── one connection ───────────────────────────────────────────────────────────────────────────────────────────────────


def is_still(fd: int, inode: int) -> bool:
    """True if this descriptor still is that connection."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


@contextlib.contextmanager
def held_open(fd: int, inode: int) -> Iterator[socket.socket]:
    """Keep a connection of libzmq open meanwhile, even if no descriptor is free. Raises OSError if it has ended.

    Not reentrant, and for one thread.
    """
    os.dup2(fd, _RESERVED, inheritable=False)
    try:
        if not is_still(_RESERVED, inode):
            raise OSError(errno.EBADF, "the descriptor belongs to another connection")
        connection = socket.socket(fileno=_RESERVED)
        try:
            yield connection
        finally:
            connection.detach()
    finally:
        os.dup2(_NULL, _RESERVED, inheritable=False)


def cut_off(fd: int, inode: int) -> None:
    """End a connection of libzmq, which then sees its end. Do nothing if the descriptor is another connection's.

    Only reading is shut down. With both directions shut the descriptor reports a hang-up, and libzmq 4.3.5 aborts the
    process if its queue of messages was full and a PING stands behind them (stream_engine_base.cpp, `!_io_error`).
    """
    with contextlib.suppress(OSError), held_open(fd, inode) as connection:
        connection.shutdown(socket.SHUT_RD)
        # TCP would still accept what the peer sends, and libzmq reads the end only when nothing is left before it.
        connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _DROP_ALL)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        while connection.recv(65_536, socket.MSG_DONTWAIT):  # at most the kernel's buffer
            pass
