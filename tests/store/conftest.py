"""A namespace for each test; what it leaves behind is checked and removed."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import TimedStore


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that a test may empty, fill and reconfigure."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def store(server: RedisServer) -> Iterator[TimedStore]:
    """An empty namespace and a clock that the test sets; the keyspace walk follows every test."""
    store = TimedStore(server.client(), uuid4().hex)
    yield store
    keyspace.check(keyspace.dump(store.client, store.keys))
    keyspace.remove(store.client, store.keys)
    store.client.close()
