"""What all tests share: one private server for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import RedisServer


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """A running server without persistence. Each test keeps to a namespace of its own."""
    with RedisServer() as running:
        yield running
