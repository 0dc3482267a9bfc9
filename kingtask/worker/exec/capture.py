"""Keeps a bounded part of a program's output, the beginning and the end, and its true size."""

from __future__ import annotations

from kingtask.result import head_bytes


class Capture:
    """Keeps everything up to `limit` bytes; of more, a head and a tail of half the limit each.

    Holds at most 1.5 × `limit` bytes at any time.
    """

    __slots__ = ("_head", "_head_limit", "_limit", "_tail", "_tail_limit", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head_limit = head_bytes(limit)
        self._tail_limit = limit - head_bytes(limit)
        self._head = b""
        self._tail = bytearray()
        self.size = 0
        """Bytes written, kept or not."""

    def feed(self, data: bytes) -> None:
        if not self.size and len(data) <= self._head_limit:
            self._head = data  # the usual case: everything in one read
            self.size = len(data)
            return
        self.size += len(data)
        room = self._head_limit - len(self._head)
        if room:
            self._head += data[:room]
            data = data[room:]
        if len(data) >= self._tail_limit:
            data = data[len(data) - self._tail_limit :]
            self._tail.clear()
        self._tail += data
        # Half a limit of slack, so that moving the tail to the front is paid once per that many bytes.
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: len(self._tail) - self._tail_limit]

    def kept(self) -> bytes:
        """Head and tail joined; if `size` is larger, bytes between them are missing."""
        if len(self._tail) > self._tail_limit:
            del self._tail[: len(self._tail) - self._tail_limit]
        return self._head + self._tail if self._tail else self._head


def shorten(data: bytes, limit: int) -> bytes:
    """The part of `data` that a Capture with this limit keeps."""
    capture = Capture(limit)
    capture.feed(data)
    return capture.kept()
