"""A rig whose brokers ask for keys: who has one, who has not, and what goes over the wire."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, Self

import zmq

from kingtask import curve
from tests.integration.rig import Daemon, StackHarness


class Keyed(StackHarness):
    """`alice` and `worker` may come in; `broker` is the brokers' pair."""

    def __init__(self, **redis_options: Any) -> None:
        super().__init__(**redis_options)
        self.authorized = self.directory / "authorized"
        self.authorized.mkdir()
        self.private = self.directory / "keys"
        self.private.mkdir()
        self.pair("broker")
        for name in ("alice", "worker"):
            self.admit(self.pair(name))
        self.keys = self.keys_of("alice")

    def pair(self, name: str) -> str:
        curve.write_pair(self.private, name, replace=False)
        return name

    def admit(self, name: str) -> None:
        """From the next reload on."""
        (self.authorized / f"{name}.key").write_bytes((self.private / f"{name}.key").read_bytes())

    def revoke(self, name: str) -> None:
        """Likewise."""
        (self.authorized / f"{name}.key").unlink()

    def keys_of(self, name: str, server: str = "broker") -> dict[str, Any]:
        """Options of a client."""
        return {"curve_key": self.private / f"{name}.key_secret", "server_key": self.private / f"{server}.key"}

    def start_broker(self, **config: Any) -> Daemon:
        curve = {
            "secret_key_file": str(self.private / "broker.key_secret"),
            "authorized_clients": str(self.authorized),
        }
        return super().start_broker(**{"curve": curve, **config})

    def start_worker(self, *, name: str = "worker", **config: Any) -> Daemon:
        curve = {
            "secret_key_file": str(self.private / f"{name}.key_secret"),
            "server_key_file": str(self.private / "broker.key"),
        }
        return super().start_worker(**{"curve": curve, **config})

    def socket(self, kind: int, context: zmq.Context[zmq.Socket[bytes]], name: str | None) -> zmq.Socket[bytes]:
        """A bare one with the keys of `name`, or with none."""
        made = context.socket(kind)
        made.linger = 0
        if name is not None:
            keys = self.keys_of(name)
            curve.read_client(keys["curve_key"], keys["server_key"]).put_on(made)
        return made


class RecordingProxy:
    """A TCP proxy in a thread that keeps all that passes: one `up` and one `down` for each connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.up: list[bytearray] = []
        self.down: list[bytearray] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exception: object) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        up, down = bytearray(), bytearray()
        self.up.append(up)
        self.down.append(down)
        try:
            with suppress(asyncio.CancelledError):  # the end of the recorder
                await asyncio.gather(_copy(reader, far_writer, up), _copy(far_reader, writer, down))
        finally:
            for end in (writer, far_writer):
                end.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with suppress(OSError):
        while part := await reader.read(65_536):
            kept += part
            writer.write(part)
            await writer.drain()
    writer.close()
