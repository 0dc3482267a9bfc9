"""The guard of the broker's memory: it ends connections for good, and keeps polling whatever happens."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from kingtask.broker import flood_guard
from kingtask.broker.counters import Counters
from kingtask.broker.flood_guard import PartialMessageGuard, cut_off
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS
from tests.processes import descriptors

ROOT = Path(__file__).parents[2]
PING = zmtp.frame(b"\4PING\0\0", zmtp.COMMAND)


class Full:
    """A ROUTER with a peer that has sent more than the ROUTER takes in: libzmq has stopped its input."""

    def __init__(self, transport: str, directory: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self._context.socket(zmq.ROUTER)
        self.router.rcvhwm = 16
        self.router.linger = 0
        self.router.rcvtimeo = PATIENCE_MS
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        if transport == "tcp":
            self.peer = zmtp.connect(self.port)
        else:
            self.router.bind(f"ipc://{directory}/socket")
            unix = socket.socket(socket.AF_UNIX)
            unix.connect(f"{directory}/socket")
            self.peer = zmtp.shaken(unix)
        self.peer.settimeout(PATIENCE_MS / 1000)
        # Short enough for one segment, and for one read of libzmq's: the first message comes up once input has stopped.
        self.peer.sendall(zmtp.frame(b"x") * 100 + PING + zmtp.frame(b"x") * 99)
        self.router.recv()
        self.fd = int(self.router.recv(copy=False).get("__fd"))

    def cut_off(self) -> None:
        cut_off(self.fd, os.fstat(self.fd).st_ino)

    def read_all(self) -> None:
        for _ in range(198):
            self.router.recv()
            self.router.recv()

    def close(self) -> None:
        self.peer.close()
        self.router.close()
        self._context.term()


@contextmanager
def full(transport: str, directory: Path) -> Iterator[Full]:
    made = Full(transport, directory)
    yield made
    made.close()


def alone(story: Callable[[str, Path], None], transport: str, directory: Path) -> None:
    """Run a story in a process of its own, which libzmq may abort."""
    program = f"import pathlib, {__name__} as m; m.{story.__name__}({transport!r}, pathlib.Path({str(directory)!r}))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def cut_off_with_a_ping_behind_a_full_queue(transport: str, directory: Path) -> None:
    with full(transport, directory) as scene:
        scene.cut_off()
        zmtp.connect(scene.port).close()  # since then libzmq has seen what the other connection reports
        scene.read_all()
        with suppress(ConnectionResetError):
            while scene.peer.recv(1_000):
                pass


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_cut_off_with_a_ping_behind_a_full_queue_does_not_abort_the_process(transport: str, tmp_path: Path) -> None:
    alone(cut_off_with_a_ping_behind_a_full_queue, transport, tmp_path)


def cut_off_while_the_peer_sends(transport: str, directory: Path) -> None:
    with full(transport, directory) as scene:
        scene.peer.sendall(bytes(100_000))
        scene.cut_off()
        with suppress(BrokenPipeError):
            scene.peer.sendall(bytes(100_000))
        assert fcntl.ioctl(scene.fd, termios.FIONREAD, bytes(4)) == bytes(4), "something is left for libzmq to read"
        scene.read_all()
        with suppress(ConnectionError):  # not TimeoutError
            while True:
                scene.peer.sendall(bytes(100_000))


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_cut_off_drops_what_the_peer_still_sends(transport: str, tmp_path: Path) -> None:
    alone(cut_off_while_the_peer_sends, transport, tmp_path)


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


async def test_the_guard_cuts_off_without_a_free_descriptor(
    guarded: tuple[PartialMessageGuard, socket.socket],
) -> None:
    guard, peer = guarded
    guard.start()
    with no_free_descriptor():
        await until_cut_off(peer)


async def test_the_guard_polls_again_after_an_error(
    guarded: tuple[PartialMessageGuard, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, peer = guarded
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    examine = guard._examine

    def examine_from_the_second_time() -> None:
        monkeypatch.setattr(guard, "_examine", examine)
        raise OSError

    monkeypatch.setattr(guard, "_examine", examine_from_the_second_time)
    guard.start()
    await until_cut_off(peer)
    assert len(errors) == 1
