"""A small HTTP server on the daemon's loop: /metrics, /healthz, /readyz, and nothing else.

    connected ──head complete──▶ asked ──text ready──▶ answered ──all sent──▶ closed
        └── REQUEST_S, MAX_HEAD_BYTES ──┴────────────────── REPLY_S ──────────┘

One request a connection. Whatever a peer does it holds one of CONNECTIONS places for some seconds, 4 KiB, and the text
that all share; no answer is waited for, and nothing it sends is looked at but the first line.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus

from prometheus_client.metrics_core import Metric

from kingtask.clock import monotonic_s
from kingtask.endpoint import Address
from kingtask.errors import ConfigurationError
from kingtask.event import Event
from kingtask.metrics.collector import CONTENT_TYPE, text_parts

log = logging.getLogger("kingtask.metrics")

MAX_HEAD_BYTES = 4_096
REQUEST_S = 5.0
"""For the whole head to come."""
REPLY_S = 10.0
"""For the reply to be taken, Prometheus's own patience; after it the connection is cut."""
CONNECTIONS = 16
"""At once: a few Prometheus servers, a load balancer's probe, somebody who looks."""
KEEP_S = 1.0
"""A text so young is told again instead of being made anew."""

PLAIN = "text/plain; charset=utf-8"
PATHS = "/metrics, /healthz, /readyz"

_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,2048}) HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")

Reply = tuple[HTTPStatus, str, bytes]
"""Status, type of content, and the content."""


class ScrapeServer:
    """`open` once, `close` at the end."""

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
        self._connections: set[_Connection] = set()
        self._waiting: list[Callable[[Reply], None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._text = b""
        self._text_s = 0.0
        self.turned_away = 0
        """Connections that found no place."""

    async def open(self) -> None:
        """Listen. Raises ConfigurationError."""
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            self._server = await loop.create_server(
                lambda: _Connection(self), address.host.strip("[]*") or None, address.port, backlog=CONNECTIONS
            )
        except OSError as error:
            raise ConfigurationError(f"metrics_addr: cannot listen on {address}: {_advice(error)}") from None
        log.info(Event("metrics=listening", address=address))
        if address.public:
            # Refused it would be where `insecure: true` is missing. But that says that everyone may run everything, and
            # whoever only wanted figures to be read would have to say so: then an `addr` is opened without a complaint.
            log.warning(
                Event(
                    "metrics=public",
                    "whoever reaches it can read names of queues, and how busy they are",
                    address=address,
                )
            )

    async def close(self) -> None:
        """Idempotent."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.cut()
        if self._writing is not None:
            self._writing.cancel()
        self._server = None

    # ── for connections ─────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, connection: _Connection) -> bool:
        if len(self._connections) >= CONNECTIONS or self._server is None:
            self.turned_away += 1
            return False
        self._connections.add(connection)
        return True

    def left(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def answer(self, method: str, path: str, reply: Callable[[Reply], None]) -> None:
        """`reply` is called once, possibly at once."""
        if method not in ("GET", "HEAD"):
            reply(_plain(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or HEAD"))
            return
        match path.partition("?")[0]:
            case "/metrics":
                self._tell(reply)
            case "/healthz":  # whoever reads this has seen the loop turn
                reply(_plain(HTTPStatus.OK, "ok"))
            case "/readyz":
                trouble = self._not_ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if trouble else HTTPStatus.OK
                reply(_plain(status, "\n".join(trouble) or "ok"))
            case _:
                reply(_plain(HTTPStatus.NOT_FOUND, f"expected one of {PATHS}"))

    def _tell(self, reply: Callable[[Reply], None]) -> None:
        if self._text and monotonic_s() - self._text_s < KEEP_S:
            reply((HTTPStatus.OK, CONTENT_TYPE, self._text))
            return
        self._waiting.append(reply)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """The text for all who wait; the loop does something else between its parts."""
        try:
            parts = []
            for part in text_parts(await self._collect()):
                parts.append(part)
                await asyncio.sleep(0)
        except Exception as error:
            log.exception(Event("metrics=failed"))
            answer = _plain(HTTPStatus.INTERNAL_SERVER_ERROR, f"the log says why: {type(error).__name__}")
        else:
            self._text, self._text_s = b"".join(parts), monotonic_s()
            answer = (HTTPStatus.OK, CONTENT_TYPE, self._text)
        self._writing = None
        waiting, self._waiting = self._waiting, []
        for reply in waiting:
            reply(answer)


class _Connection(asyncio.Protocol):
    def __init__(self, endpoint: ScrapeServer) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._asked = False
        self._bare = False
        self._deadline: asyncio.TimerHandle | None = None

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._endpoint.admit(self):
            transport.abort()
            return
        self._transport = transport
        self._deadline = asyncio.get_running_loop().call_later(REQUEST_S, self.cut)

    def data_received(self, data: bytes) -> None:
        if self._asked or self._transport is None:
            return
        self._head += data[: MAX_HEAD_BYTES + 1]
        end = _END.search(self._head)
        if end is None and len(self._head) <= MAX_HEAD_BYTES:
            return
        self._asked = True
        self._transport.pause_reading()  # what else it has to say stays in the kernel
        assert self._deadline is not None
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(REPLY_S, self.cut)
        line = _LINE.match(self._head)
        if end is None:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._reply(_plain(too_large, f"expected at most {MAX_HEAD_BYTES:,} bytes of request"))
        elif line is None:
            self._reply(_plain(HTTPStatus.BAD_REQUEST, f"expected GET of one of {PATHS}, in HTTP/1.1"))
        else:
            method = line[1].decode()
            self._bare = method == "HEAD"
            self._endpoint.answer(method, line[2].decode(), self._reply)

    def eof_received(self) -> bool:
        """True: it may have said all, and still wait for the answer."""
        return self._asked

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._endpoint.left(self)

    def _reply(self, reply: Reply) -> None:
        if self._transport is None:  # gone meanwhile
            return
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
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + (b"" if self._bare else body))
        self._transport.close()  # once all of it is sent, or the deadline has come


def _plain(status: HTTPStatus, text: str) -> Reply:
    return status, PLAIN, f"{text}\n".encode(errors="replace")


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
