from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import RedisServer
from tests.worker.rig import WorkerHarness


@pytest.fixture
def rig(tmp_path: Path, server: RedisServer) -> Iterator[WorkerHarness]:
    """No worker yet, and a namespace of its own."""
    made = WorkerHarness(tmp_path, server)
    yield made
    made.close()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that a test may stop, fill or lose; it keeps what it was told."""
    with RedisServer(appendonly="yes", appendfsync="always") as running:
        yield running


@pytest.fixture
def own_rig(tmp_path: Path, own_server: RedisServer) -> Iterator[WorkerHarness]:
    made = WorkerHarness(tmp_path, own_server)
    yield made
    made.close()
