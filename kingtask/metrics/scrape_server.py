"""A small HTTP server on the daemon's loop: /metrics, /healthz and /readyz.

    connected ──head complete──▶ requested ──text ready──▶ answered ──all sent──▶ closed
        └── REQUEST_S, MAX_HEAD_BYTES ──┴────────────────── REPLY_S ───────────────┘

One request per connection; only its first line and its Host are parsed. A peer can hold one of CONNECTIONS places for
REQUEST_S and REPLY_S, a few times MAX_HEAD_BYTES, and a reference to the text that all share. If no place is free, a
new connection ends another one: of the address with the most, one without a complete head, else one with a reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client.metrics_core import Metric

from kingtask.clock import monotonic_s
from kingtask.endpoint import Address
from kingtask.errors import ConfigurationError
from kingtask.event import Event
from kingtask.metrics.collector import CONTENT_TYPE, text_parts

log = logging.getLogger("kingtask.metrics")

MAX_HEAD_BYTES = 4_096
REQUEST_S = 5.0
"""For the whole head to arrive."""
REPLY_S = 10.0
"""For the peer to read the reply: Prometheus's own timeout. After it the connection is aborted."""
CONNECTIONS = 64
"""At once."""
BACKLOG = 16
"""Accepted in one turn of the loop; a connection that is read within three turns keeps its place in any flood."""
TURN_S = 0.002
"""A text is formatted for so long, then the loop runs. Part by part, of 267, a text took a flooded broker 10 s."""
KEEP_S = 1.0
"""Scrapes share a text of at most this age."""

PATHS = "/metrics, /healthz, /readyz"

_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,2048}) HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")

_HOSTS = rb"[0-9.]+|\[[0-9a-f:.]+\]|[a-z0-9_-]*|(?:[a-z0-9.-]+\.)?localhost(?:\.localdomain)?"
"""Addresses and local names. A web page may let its own name, which has a dot, lead to this server (DNS rebinding)."""
_WAITING, _NEW, _ANSWERED, _READING = range(4)

Reply = tuple[HTTPStatus, str, bytes]
"""Status, type of content, content."""


class _Connection(NamedTuple):
    peer: str
    transport: asyncio.WriteTransport
    state: int = _NEW


class ScrapeServer:
    """Call `open` and `close` once each."""

    def __init__(
        self, address: Address, collect: Callable[[], Awaitable[Iterable[Metric]]], not_ready: Callable[[], list[str]]
    ) -> None:
        """`collect` must return within a few seconds. `not_ready` returns the reasons for not being ready, in lines.

        The host `*` stands for all addresses of this machine.
        """
        self._address = address
        self._collect = collect
        self._not_ready = not_ready
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        names = [re.escape(name.lower().encode()) for name in (address.host, socket.gethostname())]
        self._hosts = re.compile(rb"(?:%b)\.?(?::[0-9]*)?" % b"|".join((_HOSTS, *names)))
        self._text: asyncio.Task[Reply] | None = None
        self._text_s = 0.0
        """When the last text was complete. A failed one is not kept."""

    async def open(self) -> None:
        """Listen. Raises ConfigurationError."""
        address = self._address
        try:
            self._server = await asyncio.start_server(
                self._serve, address.host.strip("[]*") or None, address.port, limit=MAX_HEAD_BYTES, backlog=BACKLOG
            )
        except OSError as error:
            raise ConfigurationError(f"metrics_addr: cannot listen on {address}: {_advice(error)}") from None
        for listener in self._server.sockets:  # connections inherit it; else asyncio reads 256 KiB at once
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_HEAD_BYTES)
        log.info(Event("metrics=listening", address=address))
        if address.public:
            # Not an error without `insecure: true`: that key would also open `addr` without a complaint.
            log.warning(Event("metrics=public", "every host that reaches it can read names of queues", address=address))

    async def close(self) -> None:
        """Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        tasks = [*self._connections, *([self._text] if self._text else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._server is None:
            writer.transport.abort()
            return
        connection = _Connection(str(writer.get_extra_info("peername", ("",))[0]), writer.transport)
        self._connections[task] = connection
        if len(self._connections) > CONNECTIONS:
            self._end_one()
        try:
            with contextlib.suppress(OSError):  # also TimeoutError
                self._connections[task] = connection._replace(state=_READING)
                async with asyncio.timeout(REQUEST_S):
                    head = await _read_head(reader)
                async with asyncio.timeout(REPLY_S):
                    if head:
                        self._connections[task] = connection._replace(state=_WAITING)
                        writer.write(_packed(await self._reply(head), bare=head.startswith(b"HEAD ")))
                    self._connections[task] = connection._replace(state=_ANSWERED)
                    writer.close()
                    await writer.wait_closed()  # until all is sent
        finally:
            writer.transport.abort()
            self._connections.pop(task, None)

    def _end_one(self) -> None:
        taken = Counter(connection.peer for connection in self._connections.values())
        task, connection = max(self._connections.items(), key=lambda item: (taken[item[1].peer], item[1].state))
        del self._connections[task]  # of several it is the oldest
        connection.transport.abort()

    async def _reply(self, head: bytes) -> Reply:
        line = _LINE.match(head)
        if len(head) > MAX_HEAD_BYTES:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            return _plain(too_large, f"expected at most {MAX_HEAD_BYTES:,} bytes of request")
        if line is None:
            return _plain(HTTPStatus.BAD_REQUEST, f"expected GET of one of {PATHS}, in HTTP/1.1")
        if line[1] not in (b"GET", b"HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD")
        hosts = [text[5:].strip() for text in head.lower().split(b"\n") if text.startswith(b"host:")]
        if not all(map(self._hosts.fullmatch, hosts)):
            return _plain(HTTPStatus.MISDIRECTED_REQUEST, "expected as Host an address, or the host of metrics_addr")
        match line[2].partition(b"?")[0]:
            case b"/metrics":
                if self._text is None or (self._text.done() and monotonic_s() - self._text_s >= KEEP_S):
                    self._text = asyncio.create_task(self._write_text())
                return await asyncio.shield(self._text)
            case b"/healthz":  # a reply shows that the loop runs
                return _plain(HTTPStatus.OK, "ok")
            case b"/readyz":
                reasons = self._not_ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                return _plain(status, "\n".join(reasons) or "ok")
            case _:
                return _plain(HTTPStatus.NOT_FOUND, f"expected one of {PATHS}")

    async def _write_text(self) -> Reply:
        """Format the text for all scrapes of a second. The loop runs every TURN_S, between two parts."""
        parts, began_s = [], monotonic_s()
        try:
            for part in text_parts(await self._collect()):
                parts.append(part)
                if monotonic_s() - began_s >= TURN_S:
                    await asyncio.sleep(0)
                    began_s = monotonic_s()
        except Exception as error:
            log.exception(Event("metrics=failed"))
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"the log says why: {type(error).__name__}")
        self._text_s = monotonic_s()
        return HTTPStatus.OK, CONTENT_TYPE, b"".join(parts)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Return the request up to its empty line, more than MAX_HEAD_BYTES, or nothing if the peer stopped before."""
    head = b""
    while (end := _END.search(head)) is None and len(head) <= MAX_HEAD_BYTES:
        part = await reader.read(MAX_HEAD_BYTES)
        if not part:
            return b""
        head += part
    return head if end is None else head[: end.end()]


def _packed(reply: Reply, *, bare: bool) -> bytes:
    status, kind, body = reply
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if bare else body)


def _plain(status: HTTPStatus, text: str) -> Reply:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode(errors="replace")


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "it is in use; choose another port (broker and worker of one host need one each)"
        case errno.EACCES:
            return "permission denied; choose a port above 1023"
        case errno.EADDRNOTAVAIL:
            return "this host has no such address"
        case _:
            return error.strerror or str(error)
