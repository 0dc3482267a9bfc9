"""What a broker refuses for now is "come back later" (4) for a script, not "never" (6)."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from tests.cli.tree import KINGTASK, environment, kingtask
from tests.integration.rig import StackHarness
from tests.processes import until

ROOM = 2
"""What a queue holds here."""


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as started:
        started.start_broker(max_queue_length=ROOM)
        yield started


@pytest.fixture
def broker(rig: StackHarness) -> str:
    address: str = rig.daemons[0].config["addr"]
    return address


@pytest.fixture
def full(broker: str) -> str:
    """A queue with no room left; there is no worker."""
    queue = f"q{uuid.uuid4().hex[:8]}"
    for _ in range(ROOM):
        assert kingtask("submit", "--queue", queue, "example", broker=broker).returncode == 0
    return queue


def test_a_full_queue_is_a_reason_to_come_back(broker, full):
    done = kingtask("submit", "--timeout", "0.3", "--queue", full, "example", broker=broker)
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"full" in done.stderr
    assert b"--id" not in done.stderr  # nothing is stored, so there is nothing to confirm


def test_a_line_for_a_full_queue_does_not_hinder_those_after_it(broker, full):
    process = subprocess.Popen(
        [*KINGTASK, "submit", "--timeout", "0.3", "--from", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(broker),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        found = []
        for queue in (full, f"{full}-2"):
            process.stdin.write(json.dumps({"name": "example", "queue": queue}).encode() + b"\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.stderr.read() == b""
    assert (process.returncode, [each["outcome"] for each in found]) == (4, ["error", "created"])
    assert (found[0]["error"]["code"], found[0]["error"]["stored"]) == ("busy", "no")


def test_a_broker_without_its_redis_is_a_reason_to_come_back():
    with StackHarness() as rig:
        broker = rig.start_broker()
        rig.redis.kill()
        until(lambda: not rig.client().ping()["ready"], "the broker knows that Redis is away")
        for words in (["submit", "example"], ["list"], ["get", str(uuid.uuid4())]):
            done = kingtask(words[0], "--timeout", "0.3", *words[1:], broker=broker.config["addr"])
            assert (done.returncode, done.stdout) == (4, b"")
            assert b"Redis" in done.stderr
