"""What the client for Perl has beside the matrix: its own look at the vectors, and an example that takes any task."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.rig import StackHarness
from tests.interop.languages import HERE, require
from tests.processes import PATIENCE_S

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

LIBRARIES = ("ZMQ::FFI", "Data::MessagePack")


@pytest.fixture(scope="module", autouse=True)
def perl() -> None:
    words = ["perl", *(f"-M{library}" for library in LIBRARIES), "-e", "1"]
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except FileNotFoundError:
        require("perl: it is not installed")
    else:
        require("" if done.returncode == 0 else f"perl: {' and '.join(LIBRARIES)} are not installed")


@pytest.fixture
def rig() -> Iterator[StackHarness]:
    with StackHarness() as rig:
        rig.executable("add", '#!/bin/sh\nexpr "$1" + "$2"\n')
        rig.start_broker()
        rig.start_worker()
        yield rig


def run(script: str, *arguments: str, brokers: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["perl", f"perl/{script}", *arguments],
        cwd=HERE,
        env={**os.environ, "KINGTASK_BROKER": brokers},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def test_it_agrees_with_the_vectors() -> None:
    done = run("vectors.pl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 not\n")


def test_its_example_runs_a_task(rig: StackHarness) -> None:
    done = run("example.pl", "add", "12", "45", brokers=rig.daemons[0].endpoint)
    assert (done.returncode, done.stdout) == (0, "succeeded: 57\n"), done.stderr
    done = run("example.pl", "../add", brokers=rig.daemons[0].endpoint)
    assert done.returncode != 0
    assert "task.name" in done.stderr
