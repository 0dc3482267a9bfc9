"""ZMTP by hand (RFC 23, rfc.zeromq.org/spec/23): what libzmq would never send."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31
"""Of version 3.0, without security."""
VERSION_2 = b"\xff" + b"\0" * 7 + b"\x01\x7f" + b"\x01" + b"\x05" + b"\0\0"
"""Greeting of a DEALER of ZMTP 2.0, and its empty identity."""
VERSION_1 = b"\x01\0"
"""A peer of ZMTP 1.0 begins with its identity, here an empty one."""

MORE, LONG, COMMAND = 1, 2, 4

RESET = struct.pack("ii", 1, 0)
"""Of SO_LINGER: close resets the connection."""
ENDS = ("close", "reset", "half-close")


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def ready(kind: str = "DEALER", identity: bytes = b"") -> bytes:
    def named(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value

    return frame(b"\x05READY" + named(b"Socket-Type", kind.encode()) + named(b"Identity", identity), COMMAND)


def connect(port: int, kind: str = "DEALER", timeout_s: float = 20.0, identity: bytes = b"") -> socket.socket:
    """A connection to 127.0.0.1 that has shaken hands."""
    return shaken(socket.create_connection(("127.0.0.1", port), timeout=timeout_s), kind, identity)


def shaken(made: socket.socket, kind: str = "DEALER", identity: bytes = b"") -> socket.socket:
    """Shake hands on this connection and return it. Raises OSError, and then the connection is closed."""
    try:
        made.sendall(GREETING + ready(kind, identity))
        received = b""
        while len(received) < len(GREETING) + 2 or len(received) < len(GREETING) + 2 + received[len(GREETING) + 1]:
            piece = made.recv(4096)
            if not piece:
                raise ConnectionError("closed during the handshake")
            received += piece
    except OSError:
        made.close()
        raise
    return made


def end(made: socket.socket, how: str) -> None:
    """End a connection in one of the ENDS; after a half-close it can still be read."""
    with suppress(OSError):
        if how == "half-close":
            made.shutdown(socket.SHUT_WR)
            return
        if how == "reset":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    made.close()


PING = frame(b"\4PING\0\0", COMMAND)


def full_queue(word: bytes = b"x") -> bytes:
    """More messages than libzmq takes in before they are read, and PINGs among and behind them."""
    return frame(word) * 300 + PING + (frame(word) * 50 + PING) * 100


def long_message(frames: int) -> bytes:
    """One message of so many frames."""
    return frame(b"x", MORE) * (frames - 1) + frame(b"x")
