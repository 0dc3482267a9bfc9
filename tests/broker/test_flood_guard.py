"""The guard of the broker's memory goes on, whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import zmq

from kingtask.broker import flood_guard
from kingtask.broker.counters import Counters
from kingtask.broker.flood_guard import PartialMessageGuard
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS
from tests.processes import descriptors


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PartialMessageGuard, socket.socket]]:
    """A guard that finds the process too large, and a peer that is to be cut off for a message of 1 MB."""
    monkeypatch.setattr(flood_guard, "HELD_BYTES", 1_000_000)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with zmtp.connect(port) as peer:
            peer.setblocking(False)
            guard = PartialMessageGuard((f"tcp://127.0.0.1:{port}",), 0, Counters())
            yield guard, peer
            guard.stop()


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 10, limits[1]))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


async def until_cut_off(peer: socket.socket) -> None:
    loop, frame = asyncio.get_running_loop(), zmtp.frame(bytes(1_000), zmtp.MORE)
    async with asyncio.timeout(PATIENCE_MS / 1000):
        with suppress(ConnectionError):
            while True:
                await loop.sock_sendall(peer, frame)
                await asyncio.sleep(0)


async def test_it_goes_on_where_no_descriptor_is_free(guarded: tuple[PartialMessageGuard, socket.socket]) -> None:
    guard, peer = guarded
    guard.start()
    with no_free_descriptor():
        await until_cut_off(peer)


async def test_it_goes_on_after_an_error(
    guarded: tuple[PartialMessageGuard, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, peer = guarded
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    count = guard._count

    def count_from_the_second_time() -> None:
        monkeypatch.setattr(guard, "_count", count)
        raise OSError

    monkeypatch.setattr(guard, "_count", count_from_the_second_time)
    guard.start()
    await until_cut_off(peer)
    assert len(errors) == 1
