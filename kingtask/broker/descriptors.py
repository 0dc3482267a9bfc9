"""Connections of libzmq's as descriptors of this process: which one it is, and ending it from outside.

libzmq says of a frame by which descriptor it came. A number may be another connection's by the time it is used, the
inode behind it may not while it lives.
"""

from __future__ import annotations

import contextlib
import os
import socket


def is_still(fd: int, inode: int) -> bool:
    """True if this descriptor is that connection."""
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False


def cut_off(fd: int, inode: int) -> None:
    """End a connection of libzmq's, which then sees its end. Nothing happens if it is gone and its number another's."""
    with contextlib.suppress(OSError):
        ours = os.dup(fd)
        if not is_still(ours, inode):
            os.close(ours)
            return
        with socket.socket(fileno=ours) as connection:
            connection.shutdown(socket.SHUT_RDWR)
            for _ in range(100):  # what has come already would still be read
                if not connection.recv(65_536, socket.MSG_DONTWAIT):
                    return
