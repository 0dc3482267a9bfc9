"""Ending a connection of libzmq's: without ending the process, and for good."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from kingtask.broker.descriptors import cut_off
from tests import zmtp
from tests.broker.conftest import PATIENCE_MS

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
def test_a_connection_with_a_ping_behind_a_full_queue_is_ended_and_not_the_process(
    transport: str, tmp_path: Path
) -> None:
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
def test_a_peer_that_goes_on_sending_is_not_read_and_sees_the_end(transport: str, tmp_path: Path) -> None:
    alone(cut_off_while_the_peer_sends, transport, tmp_path)
