"""A TCP proxy that spoils what passes through it, in a process of its own so that it never waits for the rig.

    python -m tests.faults.proxy    stdin: a line of JSON per order; stdout: a line per answer

Each link has a port of its own and forwards to one target. `up` is the way to the target, `down` the way back. A hole
is what a cut cable looks like: nothing is read, forwarded or closed, and what was sent arrives once it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from tests.servers import die_with_parent

CHUNK = 65_536
RST = struct.pack("ii", 1, 0)
"""SO_LINGER (socket(7)) of a socket whose close sends RST."""


class Way(msgspec.Struct, kw_only=True):
    """What happens to bytes that go one way; the default lets them pass."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    hole: bool = False
    slice: int = 0
    """Bytes a write; 0: as they come."""
    rate: float = 0.0
    """Bytes a second; 0: as fast as it goes."""
    corrupt: float = 0.0
    """Chance that one byte of a chunk is another."""
    reset_after: int = 0
    """RST each time so many bytes have passed on a connection."""


class Order(msgspec.Struct, kw_only=True):
    """`target` makes a link; `refuse` resets its connections and takes none."""

    link: str
    target: tuple[str, int] | None = None
    up: Way = msgspec.field(default_factory=Way)
    down: Way = msgspec.field(default_factory=Way)
    refuse: bool = False
    reset: bool = False
    """Reset the connections that there are."""


class _Link:
    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._changed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self.order = Order(link="")

    async def listen(self) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def obey(self, order: Order) -> None:
        self.order = order
        self._changed.set()
        self._changed = asyncio.Event()
        if order.refuse or order.reset:
            for writer in list(self._open):
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self.order.refuse:
                return
            while self.order.up.hole and self.order.down.hole:
                await self._changed.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._open.add(far_writer)
            try:
                ways = (self._pump("up", reader, far_writer), self._pump("down", far_reader, writer))
                tasks = [asyncio.create_task(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
            finally:
                self._open.discard(far_writer)
                _reset(far_writer)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            _reset(writer)

    async def _pump(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                way: Way = getattr(self.order, name)
                while way.hole:
                    await self._changed.wait()
                    way = getattr(self.order, name)
                if way.delay_s or way.jitter_s:
                    await asyncio.sleep(way.delay_s + random.uniform(0, way.jitter_s))
                if way.corrupt and random.random() < way.corrupt:
                    data = _spoil(data)
                for part in _parts(data, way.slice):
                    writer.write(part)
                    await writer.drain()
                    if way.rate:
                        await asyncio.sleep(len(part) / way.rate)
                passed += len(data)
                if way.reset_after and passed >= way.reset_after:
                    return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    writer.transport.abort()


def _spoil(data: bytes) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ random.randint(1, 255)]) + data[place + 1 :]


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data] if not size else [data[i : i + size] for i in range(0, len(data), size)]


async def _main() -> None:
    links: dict[str, _Link] = {}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        order = msgspec.json.decode(line, type=Order)
        answer = 0
        if order.target is not None:
            links[order.link] = _Link(order.target)
            answer = await links[order.link].listen()
        else:
            links[order.link].obey(order)
        print(answer, flush=True)


class Proxy:
    """The rig's end of it."""

    def __init__(self) -> None:
        self.links: dict[str, int] = {}
        """Name to port."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
        )

    def add(self, link: str, host: str, port: int) -> int:
        """Make a link; returns its port."""
        self.links[link] = self._tell({"link": link, "target": (host, port)})
        return self.links[link]

    def set(
        self,
        link: str,
        *,
        both: Mapping[str, Any] | None = None,
        up: Mapping[str, Any] | None = None,
        down: Mapping[str, Any] | None = None,
        **order: Any,
    ) -> None:
        """From now on; what is not named is as it should be."""
        ways = {"up": {**(both or {}), **(up or {})}, "down": {**(both or {}), **(down or {})}}
        self._tell({"link": link, **ways, **order})

    def mend(self, link: str) -> None:
        self.set(link)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _tell(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


if __name__ == "__main__":
    asyncio.run(_main())
