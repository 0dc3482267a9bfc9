"""The rig itself: its proxy does what it is set to, and one short case is played and judged."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.__main__ import main
from tests.faults.cases import CASES
from tests.faults.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""

    def serve() -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy() as started:
        started.add("link", "127.0.0.1", echo)
        yield started


@pytest.fixture
def connection(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.links["link"]), 10) as connected:
        yield connected


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


@pytest.mark.parametrize("way", [{}, {"slice": 1}, {"delay_s": 0.05}, {"rate": 1e6}])
def test_what_is_slow_arrives_whole(proxy, connection, way):
    proxy.set("link", both=way)
    connection.sendall(b"0123456789")
    assert receive(connection, 10) == b"0123456789"


@pytest.mark.parametrize("way", ["up", "down", "both"])
def test_what_was_sent_into_a_hole_arrives_once_it_is_mended(proxy, connection, way):
    proxy.set("link", **{way: {"hole": True}})
    connection.sendall(b"lost?")
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    proxy.mend("link")
    connection.settimeout(10)
    assert receive(connection, 5) == b"lost?"


def test_a_spoilt_chunk_differs_in_one_byte(proxy, connection):
    proxy.set("link", up={"corrupt": 1.0})
    connection.sendall(bytes(100))
    assert sum(byte != 0 for byte in receive(connection, 100)) == 1


def test_a_connection_is_reset_after_so_many_bytes(proxy, connection):
    proxy.set("link", up={"reset_after": 1000})
    connection.sendall(bytes(2000))
    with pytest.raises(ConnectionResetError):
        receive(connection, 4000)


def test_a_refusing_link_resets_what_there_is(proxy, connection):
    connection.sendall(b"x")
    receive(connection, 1)
    proxy.set("link", refuse=True)
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_every_case_has_a_name_of_its_own():
    assert all(name == case.name for name, case in CASES.items())


def test_a_short_case_is_valid(capsys):
    """kill -9 of brokers: the same as in the matrix, in seconds."""
    status = main(["run", "F01", "--seconds", "2.5", "--seed", "7"])
    assert status == 0, capsys.readouterr().out
