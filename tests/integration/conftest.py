from __future__ import annotations

from collections.abc import Iterator

import pytest

from kingtask import Client
from tests.integration.rig import StackHarness


@pytest.fixture
def rig() -> Iterator[StackHarness]:
    with StackHarness() as started:
        yield started


@pytest.fixture
def client(rig: StackHarness) -> Client:
    """One broker and one worker with four slots, and a client."""
    rig.start_broker()
    rig.start_worker()
    return rig.client()
