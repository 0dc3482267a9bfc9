from __future__ import annotations

from pathlib import Path

import pytest

from kingtask import Client
from kingtask import endpoint as address
from kingtask.endpoint import endpoint, endpoints
from kingtask.errors import ConfigurationError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("127.0.0.1:9595", "tcp://127.0.0.1:9595"),
        ("tcp://127.0.0.1:9595", "tcp://127.0.0.1:9595"),
        ("broker-1.example.org", "tcp://broker-1.example.org:9595"),
        ("my_broker:1", "tcp://my_broker:1"),
        ("broker.example.org.:9595", "tcp://broker.example.org.:9595"),  # a name with its root
        ("broker_:1", "tcp://broker_:1"),
        (" localhost:09595 ", "tcp://localhost:9595"),
        ("[::1]:9595", "tcp://[::1]:9595"),
        ("[fe80::1%eth0]", "tcp://[fe80::1%eth0]:9595"),
        ("ipc:///run/kingtask/broker", "ipc:///run/kingtask/broker"),
        ("ipc://@abstract", "ipc://@abstract"),
    ],
)
def test_the_forms_of_an_address(given, meant):
    assert endpoint(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        ":9595",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:9595x",
        "::1",
        "http://host:9595",
        "udp://host:9595",
        "inproc://x",
        "tcp://*:9595",
        "host:1:2",
        "a b:1",
        "tcp://a;tcp://b",
        "ipc://",
        "ipc:///" + "x" * 107,
        "host\0:1",
        7,
        None,
    ],
)
def test_what_is_no_address_is_named(given):
    with pytest.raises(ConfigurationError, match="expected host:port") as raised:
        endpoint(given)
    assert repr(given) in str(raised.value)


def test_several_addresses_keep_their_order_and_each_counts_once():
    assert endpoints(["b:1", "a:2", "tcp://b:1"]) == ("tcp://b:1", "tcp://a:2")


def test_no_address_is_an_error():
    with pytest.raises(ConfigurationError, match="at least one"):
        endpoints([])


def test_the_default_is_where_a_broker_listens_by_default():
    assert endpoint(address.DEFAULT) == address.DEFAULT == "tcp://127.0.0.1:9595"


def test_a_client_refuses_a_bad_address_at_once():
    with pytest.raises(ConfigurationError):
        Client(["127.0.0.1:9595", "nonsense://"])


def test_without_an_address_the_environment_names_the_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a worker runs reaches the brokers of its task."""
    monkeypatch.setenv("KINGTASK_BROKER", "a:1, b:2")
    assert endpoints(None) == ("tcp://a:1", "tcp://b:2")


def test_without_anything_the_packaged_brokers_socket_is_the_only_one_where_its_directory_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The socket may be away: others may listen on the port meanwhile."""
    monkeypatch.delenv("KINGTASK_BROKER", raising=False)
    monkeypatch.setattr(address, "SOCKET", f"{tmp_path}/kingtask/broker.sock")
    assert endpoints(None) == ("tcp://127.0.0.1:9595",)
    (tmp_path / "kingtask").mkdir()
    assert endpoints(None) == (f"ipc://{tmp_path}/kingtask/broker.sock",)
    (tmp_path / "kingtask" / "broker.sock").touch()
    assert endpoints(None) == (f"ipc://{tmp_path}/kingtask/broker.sock",)


@pytest.mark.parametrize("given", ["broker.example.org.:9595", "broker_:9595", "localhost.:9595"])
def test_a_daemon_takes_the_same_host_names_as_a_client(given):
    assert address.parse(given).endpoint == endpoint(given)
