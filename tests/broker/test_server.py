"""A broker put together: real sockets, a Redis that is not there."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq

from kingtask import log as logs
from kingtask import protocol
from kingtask.broker.server import Broker
from kingtask.config import BrokerConfig
from kingtask.errors import ConfigurationError
from tests.broker.conftest import Sockets
from tests.processes import descriptors
from tests.servers import free_port


def configured(**more: Any) -> BrokerConfig:
    fields = {"addr": (f"127.0.0.1:{free_port()}",), "wakeup": (f"127.0.0.1:{free_port()}",)}
    return BrokerConfig(**{**fields, "redis": f"redis://127.0.0.1:{free_port()}", **more})


class Started:
    def __init__(self, config: BrokerConfig) -> None:
        self.config = config
        self.reread = config
        self.broker = Broker(config, lambda: self.reread)

    async def ask(self, sockets: Sockets, op: str, **fields: Any) -> dict[str, Any]:
        """The reply to a request of a new client."""

        def asked() -> dict[str, Any]:
            dealer = sockets.new(zmq.DEALER, self.config.endpoints[0])
            dealer.send(protocol.encode_request(1, op, fields))
            return protocol.decode_reply(dealer.recv())

        return await asyncio.to_thread(asked)


@pytest.fixture
async def started() -> AsyncIterator[Started]:
    made = Started(configured(metrics_addr=f"127.0.0.1:{free_port()}"))
    await made.broker.start()
    yield made
    await made.broker.stop()


@pytest.fixture(autouse=True)
def as_before() -> Any:
    """A reload sets up logging."""
    root, levels = logging.getLogger(), logging.getLogger("kingtask").level
    yield
    while logs._installed:
        root.removeHandler(logs._installed.pop())
    logging.getLogger("kingtask").setLevel(levels)


async def test_a_broker_without_redis_answers_pings_and_refuses_the_rest(started: Started, sockets: Sockets) -> None:
    pong = await started.ask(sockets, "ping")
    assert (pong["broker"], pong["ready"]) == (started.broker.name, False)
    refused = await started.ask(sockets, "submit", task={"name": "a"})
    assert refused["error"]["code"] == "unavailable"
    assert started.broker.status().startswith("0 requests in progress, 0 clients waiting; Redis is unreachable")
    assert started.broker.alive


async def test_its_scrape_shows_the_request_and_its_readiness_the_reason(started: Started, sockets: Sockets) -> None:
    await started.ask(sockets, "get", id="6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11")
    host, port = started.config.metrics_addr.split(":")  # type: ignore[union-attr]

    async def fetched(path: str) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        return text

    text = await fetched("/metrics")
    assert 'kingtask_broker_refusals_total{code="unavailable"} 1' in text
    assert 'kingtask_redis_up{purpose="submit"} 0' in text
    assert "kingtask_queues_told 0" in text
    ready = await fetched("/readyz")
    assert "503" in ready.splitlines()[0]
    assert "redis (submit): " in ready


async def test_a_reload_changes_the_live_keys(started: Started, sockets: Sockets) -> None:
    broker = started.broker
    broker.reload.start(lambda: None, lambda: None)
    started.reread = msgspec.structs.replace(started.config, max_pending=1, max_lost=9, lease=7.0)
    broker.reload.ask()
    assert broker.reload.done == 1
    assert (broker._dispatcher._config.max_pending, broker._config.max_pending) == (1, 1)
    assert broker._ticker._policy.max_lost == broker._batcher._policy.max_lost == 9
    assert broker._config.lease == started.config.lease, "it takes effect with a restart"


async def test_the_heartbeat_has_the_facts_of_this_broker(started: Started) -> None:
    facts = json.loads(started.broker._heartbeat())
    assert (facts["host"], facts["addr"]) == (socket.gethostname(), list(started.config.addr))
    assert (facts["ack"], facts["clock_offset_s"]) == (None, None)


@pytest.mark.parametrize("taken", ["addr", "wakeup"])
async def test_an_address_in_use_is_refused_and_leaves_no_socket(taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = configured(**{taken: (f"127.0.0.1:{other.getsockname()[1]}",)})
        before = descriptors()
        with pytest.raises(ConfigurationError, match=f"{taken}: cannot listen on"):
            Broker(config, lambda: config)
        assert descriptors() == before


async def test_publications_of_redis_reach_wakeups_and_ticker(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, calls = started.broker, []
    monkeypatch.setattr(broker._wakeups, "ready", lambda *call: calls.append(call))
    monkeypatch.setattr(broker._wakeups, "cancel", lambda *call: calls.append(call))
    broker._published_ready("mail 3")
    broker._published_cancel("w.1 an-id")
    assert calls == [("mail", 3), ("w.1", "an-id")]
