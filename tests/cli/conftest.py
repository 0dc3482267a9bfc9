"""One `kingtask dev` for all tests of the commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.tree import Dev


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("dev") / "data") as running:
        yield running
        assert running.stop() == 0
