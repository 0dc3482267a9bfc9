"""What the gate has to see before it lets anybody in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kingtask import curve
from kingtask.broker.auth import CurveAuth
from kingtask.broker.counters import Counters
from kingtask.errors import ConfigurationError
from tests.servers import free_port


@pytest.fixture(params=[zmq.ROUTER, zmq.XPUB], ids=["ROUTER", "XPUB"])
def socket(request: pytest.FixtureRequest) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(request.param) as made:
        made.linger = 0
        yield made


def gate_for(socket: zmq.Socket[bytes], directory: Path) -> CurveAuth:
    _, secret = curve.write_pair(directory, "broker", replace=False)
    (directory / "clients").mkdir()
    gate = CurveAuth(socket.context, secret, directory / "clients", Counters())
    gate.guard(socket)
    return gate


async def test_it_opens_where_a_stranger_was_turned_away(socket: zmq.Socket[bytes], tmp_path: Path):
    gate = gate_for(socket, tmp_path)
    try:
        socket.bind(f"tcp://127.0.0.1:{free_port()}")
        await gate.open()
    finally:
        gate.stop()


async def test_it_stays_closed_where_a_stranger_got_in_at_either_socket(socket: zmq.Socket[bytes], tmp_path: Path):
    gate = gate_for(socket, tmp_path)
    gate._authenticator.allow_any = True
    try:
        socket.bind(f"tcp://127.0.0.1:{free_port()}")
        with pytest.raises(ConfigurationError, match="a client with an unknown key was let in"):
            await gate.open()
    finally:
        gate.stop()
