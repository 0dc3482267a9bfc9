"""CURVE: a broker opens only after it saw both kinds of socket refuse an unknown key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kingtask import curve
from kingtask.broker.auth import AuthenticatedPeer, CurveAuth
from kingtask.broker.counters import Counters
from kingtask.errors import ConfigurationError
from tests.servers import free_port


@pytest.fixture(params=[zmq.ROUTER, zmq.XPUB], ids=["ROUTER", "XPUB"])
def socket(request: pytest.FixtureRequest) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(request.param) as made:
        made.linger = 0
        yield made


def auth_for(socket: zmq.Socket[bytes], directory: Path) -> CurveAuth:
    _, secret = curve.write_pair(directory, "broker", replace=False)
    (directory / "clients").mkdir()
    auth = CurveAuth(socket.context, secret, directory / "clients", Counters())
    auth.secure(socket)
    return auth


async def test_curve_opens_once_an_unknown_key_is_refused(socket: zmq.Socket[bytes], tmp_path: Path):
    auth = auth_for(socket, tmp_path)
    try:
        socket.bind(f"tcp://127.0.0.1:{free_port()}")
        await auth.open()
    finally:
        auth.stop()


async def test_curve_does_not_open_if_an_unknown_key_is_accepted(socket: zmq.Socket[bytes], tmp_path: Path):
    auth = auth_for(socket, tmp_path)
    auth._authenticator.allow_any = True
    try:
        socket.bind(f"tcp://127.0.0.1:{free_port()}")
        with pytest.raises(ConfigurationError, match="a client with an unknown key was let in"):
            await auth.open()
    finally:
        auth.stop()


def test_a_peer_knows_its_client_and_whether_its_key_was_revoked(socket: zmq.Socket[bytes], tmp_path: Path) -> None:
    auth = auth_for(socket, tmp_path)
    try:
        auth.reload({"key": "alice"})
        peer = AuthenticatedPeer((b"id", b""), auth, "key")
        assert (peer, peer.client, peer.revoked) == ((b"id", b""), "alice", False)
        auth.reload({})
        assert peer.revoked
        assert AuthenticatedPeer((b"id",), auth, "key").client is None
    finally:
        auth.stop()


def test_a_reload_logs_added_and_revoked_keys(
    socket: zmq.Socket[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kingtask.broker")
    auth = auth_for(socket, tmp_path)
    try:
        curve.write_pair(tmp_path / "clients", "alice", replace=False)
        auth.reload(auth.read())
        auth.reload({})
    finally:
        auth.stop()
    assert caplog.messages == ["key=added client=alice", "key=revoked client=alice"]
