from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.responder import Responder
from tests.client.shells import Shell


@pytest.fixture(params=["blocking", "asyncio"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Makes clients of one kind, then of the other."""
    made = Shell(request.param)
    yield made
    made.close()


@pytest.fixture
def broker() -> Iterator[Responder]:
    with Responder() as started:
        yield started


@pytest.fixture
def other() -> Iterator[Responder]:
    """A second broker."""
    with Responder() as started:
        yield started
