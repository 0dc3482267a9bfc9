"""CURVE: a broker opens only after it saw both kinds of socket refuse an unknown key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.utils.z85

from kingtask import curve
from kingtask.broker import auth as module
from kingtask.broker.auth import AuthenticatedPeer, CurveAuth
from kingtask.broker.broker_socket import BrokerSocket
from kingtask.broker.counters import Counters
from kingtask.broker.relay import Relay
from kingtask.broker.router import RouterSocket
from kingtask.broker.wakeups import Wakeups
from kingtask.config.permissions_file import PermissionsFile, Rule
from kingtask.errors import ConfigurationError
from tests.broker.conftest import stop


class Secured:
    """One socket with CURVE, which is not open yet."""

    def __init__(self, kind: type[RouterSocket | Wakeups], directory: Path) -> None:
        _, secret = curve.write_pair(directory, "broker", replace=False)
        (directory / "clients").mkdir()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.auth = CurveAuth(secret, directory / "clients", Counters())
        self.relay = Relay(self.context, Counters(), self.auth)
        self.socket: BrokerSocket = kind(self.context, self.relay, (f"ipc://{directory}/socket",), Counters())


@pytest.fixture(params=[RouterSocket, Wakeups])
async def secured(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Secured]:
    made = Secured(request.param, tmp_path)
    yield made
    made.auth.stop()
    await stop(made.socket, made.relay, made.context)


async def test_curve_opens_once_an_unknown_key_is_refused(secured: Secured) -> None:
    await secured.auth.open(secured.relay.own_endpoints())


async def test_curve_does_not_open_if_an_unknown_key_is_accepted(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secured.auth, "key_of", lambda key, *, worker: "any")
    with pytest.raises(ConfigurationError, match="a client with an unknown key was let in"):
        await secured.auth.open(secured.relay.own_endpoints())


async def test_curve_does_not_open_without_an_answer(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SELF_TEST_MS", 10)
    with pytest.raises(ConfigurationError, match="an unknown key was not refused within"):
        await secured.auth.open([("ipc://@nobody-listens-here", zmq.ROUTER)])


@pytest.mark.parametrize("default", [None, Rule(worker=True)])
async def test_with_permissions_the_wakeup_socket_admits_only_keys_of_workers(
    default: Rule | None, secured: Secured
) -> None:
    pairs = {name: zmq.curve_keypair()[0] for name in ("worker", "client", "other")}
    keys = {public.decode(): name for name, public in pairs.items()}

    def admitted(*, worker: bool) -> set[str]:
        known = {secured.auth.key_of(zmq.utils.z85.decode(public), worker=worker) for public in pairs.values()}
        return {keys[key] for key in known if key is not None}

    secured.auth.reload(keys)
    assert admitted(worker=True) == admitted(worker=False) == set(pairs)
    secured.auth.reload(keys, PermissionsFile({"worker": Rule(ops=(), worker=True), "client": Rule()}, default))
    assert admitted(worker=False) == set(pairs)
    assert admitted(worker=True) == ({"worker"} if default is None else {"worker", "other"})


def test_a_peer_knows_its_client() -> None:
    peer = AuthenticatedPeer((b"id", b""), "alice")
    assert (peer, peer.client) == ((b"id", b""), "alice")


async def test_a_reload_logs_added_and_revoked_keys(
    secured: Secured, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kingtask.broker")
    curve.write_pair(tmp_path / "clients", "alice", replace=False)
    secured.auth.reload(secured.auth.read())
    secured.auth.reload({})
    assert caplog.messages == ["key=added client=alice", "key=revoked client=alice"]
