"""Connections of libzmq's as descriptors of this process: which one it is, and ending it from outside.

libzmq says of a frame by which descriptor it came. A number may be another connection's by the time it is used, the
inode behind it may not while it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h."""
_RETURN_0 = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_DROP_ALL = struct.pack("HP", 1, ctypes.addressof(_RETURN_0))
"""A socket filter (linux/filter.h) of one instruction, which keeps 0 bytes of each segment."""
_RESET = struct.pack("ii", 1, 0)
"""Linger for 0 s: libzmq's close resets the connection, since the filter drops the peer's answer to a FIN."""

_NULL = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
_OURS = os.dup(_NULL)
"""A number that is kept for `held`: peers can use up all that are free."""


def is_still(fd: int, inode: int) -> bool:
    """True if this descriptor is that connection."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


@contextlib.contextmanager
def held(fd: int, inode: int) -> Iterator[socket.socket]:
    """Keep a connection of libzmq's open meanwhile; works without a free descriptor, too. Raises OSError if it is gone.

    Not reentrant, and for one thread.
    """
    os.dup2(fd, _OURS, inheritable=False)
    try:
        if not is_still(_OURS, inode):
            raise OSError(errno.EBADF, "its number is another's")
        connection = socket.socket(fileno=_OURS)
        try:
            yield connection
        finally:
            connection.detach()
    finally:
        os.dup2(_NULL, _OURS, inheritable=False)


def cut_off(fd: int, inode: int) -> None:
    """End a connection of libzmq's, which then sees its end. Nothing happens if it is gone and its number another's.

    Only reading is shut down. With both directions shut the descriptor reports a hang-up, and libzmq 4.3.5 aborts the
    process if its queue of messages was full and a PING stands behind them (stream_engine_base.cpp, `!_io_error`).
    """
    with contextlib.suppress(OSError), held(fd, inode) as connection:
        connection.shutdown(socket.SHUT_RD)
        # TCP would still take in what the peer sends, and libzmq reads its end only when nothing is left.
        connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _DROP_ALL)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        while connection.recv(65_536, socket.MSG_DONTWAIT):  # at most the kernel's buffer
            pass
