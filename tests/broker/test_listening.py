"""Listening sockets: forms of endpoints, modes, names of peers, private listeners."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kingtask.broker import listening
from kingtask.broker.listening import accept_own, close, endpoint_of, listen, listen_privately
from tests.broker.conftest import PATIENCE_MS
from tests.servers import free_port


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("127.1.2.3", "127.0.0.1"),
        ("::1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_are_grouped_by_who_may_have_them(address: str, name: str) -> None:
    assert listening.name_of(address) == name


CONNECT = """
import os, socket, sys
peers = [socket.socket(socket.AF_UNIX) for _ in range(100)]
for peer in peers:
    peer.setblocking(False)  # with no room it raises
    peer.connect(sys.argv[1].replace("ipc://@", "\\0"))
print(flush=True)
for peer in peers:
    peer.setblocking(True)
    assert peer.recv(1) == b""
"""


def test_a_private_listener_has_room_for_this_process_and_sends_all_others_away() -> None:
    """Every local user finds its name in /proc/net/unix."""
    listener = listen_privately()
    other = subprocess.Popen([sys.executable, "-c", CONNECT, endpoint_of(listener)], stdout=subprocess.PIPE)
    with listener, other:
        assert other.stdout is not None
        other.stdout.readline()
        with socket.socket(socket.AF_UNIX) as own:
            own.setblocking(False)  # as libzmq's, which would not try again
            own.connect(listener.getsockname())
            accepted = accept_own(listener)
            assert accepted is not None
            with accepted:
                accepted.send(b"x")
                assert own.recv(1) == b"x"
        assert accept_own(listener) is None
    assert other.returncode == 0


def test_nobody_can_take_the_name_of_the_next_private_listener() -> None:
    with listen_privately() as first, listen_privately() as second:
        names = [listener.getsockname().rpartition(b".")[2] for listener in (first, second)]
    assert [len(bytes.fromhex(name.decode())) for name in names] == [8, 8]
    assert names[0][:8] != names[1][:8], "it is random, and no number that counts up"


@pytest.mark.parametrize("mask", [0o117, 0o077, 0o000])
def test_a_unix_socket_has_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        listener = listen(f"ipc://{tmp_path}/socket")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o777 & ~mask
    close(listener)
    assert not (tmp_path / "socket").exists()


def test_the_socket_of_a_broker_that_was_killed_is_replaced(tmp_path: Path) -> None:
    listen(f"ipc://{tmp_path}/socket").close()
    close(listen(f"ipc://{tmp_path}/socket"))


@pytest.mark.parametrize(
    ("endpoint", "other"),
    [("tcp://*:{}", "127.0.0.1"), ("tcp://127.0.0.2:{}", "127.0.0.2"), ("tcp://lo:{}", "127.0.0.1")],
)
def test_the_forms_of_zeromq_are_listened_on(endpoint: str, other: str) -> None:
    port = free_port()
    with listen(endpoint.format(port)):
        socket.create_connection((other, port), timeout=PATIENCE_MS / 1000).close()


@pytest.mark.parametrize(("endpoint", "other"), [("tcp://[::1]:{}", "::1"), ("tcp://[::]:{}", "127.0.0.1")])
def test_an_ipv6_address_is_listened_on(endpoint: str, other: str) -> None:
    port = free_port()
    try:
        listener = listen(endpoint.format(port))
    except OSError as error:
        pytest.skip(f"this host has no IPv6: {error}")
    with listener:
        socket.create_connection((other, port), timeout=PATIENCE_MS / 1000).close()


def test_an_interface_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="No such device"):
        listen("tcp://nothing0:9595")


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("")
    with pytest.raises(OSError, match="exists"):
        listen(f"ipc://{tmp_path}/socket")
