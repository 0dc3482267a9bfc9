"""Connections that end at any point: the broker's process stays the same, over every socket, with keys and without."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml
import zmq

from kingtask import Client, protocol
from tests import zmtp
from tests.integration.keyed import Keyed
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, until

CONNECTIONS = 20
"""Of each end."""


def tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(PATIENCE_S)
    made.connect(path)
    return made


def end_in_every_way(connect: Callable[[], socket.socket], kind: str, messages: bytes) -> None:
    with ExitStack() as stack:
        for number in range(CONNECTIONS * len(zmtp.ENDS)):
            made = stack.enter_context(zmtp.shaken(connect(), kind))
            made.setblocking(False)
            with suppress(BlockingIOError):
                made.send(messages)
            zmtp.end(made, zmtp.ENDS[number % len(zmtp.ENDS)])


def same_process_serves(broker: Daemon, pid: int, client: Client) -> None:
    assert client.submit("ledger").cancel() == "cancelled"
    assert (broker.pid, broker.process and broker.process.poll()) == (pid, None)


@pytest.mark.parametrize(
    "place", ["addr over TCP", "addr over a unix socket", "wakeup over TCP", "wakeup over a unix socket"]
)
def test_no_end_of_a_connection_ends_a_broker(rig: StackHarness, place: str) -> None:
    key, over = place.split(maxsplit=1)
    if over == "over TCP":
        broker = rig.start_broker()
    else:
        path = str(rig.directory / "socket")
        broker = rig.start_broker(addr=f"ipc://{path}", wakeup=f"ipc://{path}.wakeup")
    address = broker.config[key]
    pid, client = broker.pid, rig.client()
    messages = (zmtp.full_queue(), zmtp.long_message(5_000)) if key == "addr" else (zmtp.full_queue(b"\1i"),)
    for each in messages:
        end_in_every_way(
            lambda: tcp(address) if over == "over TCP" else unix(address.removeprefix("ipc://")),
            "DEALER" if key == "addr" else "SUB",
            each,
        )
        same_process_serves(broker, pid, client)


class UnderUmask(StackHarness):
    """Its daemons have the umask of the packaged unit."""

    def dress(self, daemon: Daemon) -> None:
        daemon.prefix = ["sh", "-c", 'umask 0117; exec "$@"', "sh"]


def test_under_the_umask_of_the_unit_user_and_group_reach_the_sockets() -> None:
    """And nobody else; the private connection to libzmq works, too."""
    with UnderUmask() as rig:
        path = rig.directory / "socket"
        broker = rig.start_broker(addr=f"ipc://{path}", wakeup=f"ipc://{path}.wakeup")
        for each in (path, Path(f"{path}.wakeup")):
            assert stat.S_IMODE(each.stat().st_mode) == 0o660
        rig.start_worker(period=3600).until_logged("wakeup=connected")
        assert rig.client().submit("ledger", env=rig.env).wait(PATIENCE_S).success
        assert broker.stop() == 0
        assert not path.exists()


# ── with keys ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keyed() -> Iterator[Keyed]:
    with Keyed() as rig:
        rig.admit(rig.pair("dashboard"))
        yield rig


def hostile(keyed: Keyed, context: zmq.Context[zmq.Socket[bytes]], broker: Daemon, name: str) -> zmq.Socket[bytes]:
    """A client with a key; libzmq puts a PING between its messages each millisecond."""
    dealer = keyed.socket(zmq.DEALER, context, name)
    dealer.setsockopt(zmq.HEARTBEAT_IVL, 1)
    dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
    dealer.setsockopt(zmq.RCVHWM, 1)  # its end resets the connection, since replies are unread
    dealer.connect(broker.endpoint)
    return dealer


def flood(dealer: zmq.Socket[bytes]) -> None:
    with suppress(zmq.Again):
        for _ in range(5_000):
            if not dealer.poll(20, zmq.POLLOUT):  # 1,000 wait for a handshake that may fail
                return
            dealer.send(b"x", zmq.NOBLOCK)


def end_behind_messages_and_heartbeats(keyed: Keyed, broker: Daemon, name: str) -> None:
    with zmq.Context() as context:
        for _ in range(CONNECTIONS):
            with hostile(keyed, context, broker, name) as dealer:
                flood(dealer)


def test_a_client_with_a_key_that_may_do_little_ends_no_broker(keyed: Keyed) -> None:
    permissions = keyed.directory / "permissions.yaml"
    permissions.write_text(yaml.safe_dump({"clients": {"alice": {}, "dashboard": {"ops": ["stats"]}}}))
    broker = keyed.start_broker(permissions=str(permissions))
    pid, client = broker.pid, keyed.client()
    end_behind_messages_and_heartbeats(keyed, broker, "dashboard")
    same_process_serves(broker, pid, client)


def test_a_client_whose_key_was_revoked_ends_no_broker(keyed: Keyed) -> None:
    broker = keyed.start_broker()
    pid, client = broker.pid, keyed.client()
    with zmq.Context() as context, hostile(keyed, context, broker, "dashboard") as dealer:
        dealer.send(protocol.encode_request(1, "ping", {}))
        assert dealer.poll(int(1000 * PATIENCE_S))
        keyed.revoke("dashboard")
        os.kill(broker.pid, signal.SIGHUP)

        def is_cut_off() -> bool:
            flood(dealer)
            return "its key was revoked" in broker.text()

        until(is_cut_off, "it is cut off")
    end_behind_messages_and_heartbeats(keyed, broker, "dashboard")
    same_process_serves(broker, pid, client)
