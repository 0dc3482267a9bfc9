from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.systemd import image, source
from tests.systemd.container import Container
from tests.systemd.image import Unable


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Booted, with nothing of ours installed."""
    try:
        image.check()
        root = image.image()
        (python,) = (path.name.removeprefix("python") for path in (root / "usr/bin").glob("python3.[0-9]*[0-9]"))
        shared = tmp_path_factory.mktemp("source")
        source.gather(shared, python)
        source.compile_programs(shared / "programs")
        booting = Container(root, shared)
        booting.__enter__()
    except Unable as missing:
        if os.environ.get("KINGTASK_REQUIRE_SYSTEMD") == "1":
            raise
        pytest.skip(str(missing))
    try:
        yield booting
    finally:
        booting.__exit__(None, None, None)


@pytest.fixture(scope="session")
def host(container: Container) -> Container:
    """Installed as deploy/README.md says."""
    for block in source.page_blocks("Install"):
        container.run(block)
    return container
