"""Listening sockets: forms of endpoints, modes, names of peers, private listeners."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from kingtask.broker import listening
from kingtask.broker.listening import close, listen
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
