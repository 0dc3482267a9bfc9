"""A rig that other users may look into, for attempts that run as them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.worker.rig import WorkerHarness

FIRST_UID = 61_000
"""Of users that have no entry anywhere."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run programs as another user")


@contextmanager
def open_rig(server: RedisServer) -> Iterator[WorkerHarness]:
    # Directories of pytest are for their owner only; and a sandbox may have a /tmp of its own.
    directory = Path(tempfile.mkdtemp(prefix="kingtask-open-", dir="/var/tmp"))
    directory.chmod(0o755)
    (directory / "open").mkdir()
    (directory / "open").chmod(0o1777)  # for what programs tell the test
    (directory / "dirs").mkdir(mode=0o755)
    rig = WorkerHarness(directory, server)
    try:
        yield rig
    finally:
        rig.close()
        shutil.rmtree(directory)


def someone(number: int = 0) -> dict[str, Any]:
    """`run_as` for a user of the tests' own."""
    uid = str(FIRST_UID + os.getpid() % 2_000 * 10 + number)
    return {"user": uid, "group": uid}


def refused(rig: WorkerHarness, *command: str, **config: Any) -> str:
    """What a worker that does not start says."""
    with pytest.raises(AssertionError, match="the worker ended"):
        rig.start(*command, **config)
    return rig.workers[-1].log
