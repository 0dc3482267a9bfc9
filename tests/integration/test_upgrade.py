"""Two releases on one database: brokers first, since only they load the functions of their release.

The second release is this one with another function library. tests/systemd upgrades by the blocks of deploy/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kingtask import __version__
from kingtask.failpoint import VARIABLE
from kingtask.store.library import Library, shipped
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, until

NEXT = Library(shipped().template + "\n-- the next release\n")


@pytest.fixture
def release(tmp_path: Path) -> dict[str, str]:
    """The environment of a daemon of the next release."""
    path = tmp_path / "next.lua"
    path.write_text(NEXT.template)
    return {VARIABLE: f"library={path}"}


def upgrade(daemon: Daemon, release: dict[str, str], *, ready: bool = True) -> None:
    daemon.stop()
    daemon.environment = release
    daemon.start(ready=ready)


def loaded(rig: StackHarness) -> set[str]:
    return {row[1].decode() for row in rig.redis.client().function_list()}


def test_a_worker_that_is_upgraded_before_the_brokers_waits(rig: StackHarness, release: dict[str, str]) -> None:
    broker, former, worker = rig.start_broker(), rig.start_worker(), rig.start_worker(queues="next")
    client = rig.client()
    upgrade(worker, release, ready=False)
    log = worker.until_logged("library=missing")
    needed = f"Redis lacks the functions of kingtask {__version__} ({NEXT.name}), which a broker of that release loads"
    assert needed in log
    assert loaded(rig) == {shipped().name}, "a worker loads nothing"
    waiting = client.submit("ledger", queue="next", env=rig.env)

    def unfit() -> list[dict[str, object]]:
        return [peer for peer in client.stats()["workers"] if f".{worker.pid}." in peer["name"]]

    until(lambda: unfit() and unfit()[0]["unfit"] == needed, "stats says why it waits")
    assert unfit()[0]["queues"] == []
    (queue,) = [queue for queue in client.stats()["queues"] if queue["name"] == "next"]
    assert not queue["served"]
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success, "others go on"
    assert client.get(waiting.id).state == "ready"
    upgrade(broker, release)
    assert waiting.wait(PATIENCE_S).success
    until(lambda: unfit()[0]["unfit"] == "", "stats says that it works")
    assert worker.process is not None
    assert worker.process.poll() is None
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success, "so does the worker of the former release"
    assert former.stop() == 0
    assert loaded(rig) == {shipped().name, NEXT.name}


def test_brokers_first_and_no_worker_waits(rig: StackHarness, release: dict[str, str]) -> None:
    broker, worker = rig.start_broker(), rig.start_worker()
    client = rig.client()
    running = client.submit("ledger", ["1"], env=rig.env)
    until(lambda: client.get(running.id).state == "running", "it runs")
    upgrade(broker, release)
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    upgrade(worker, release)
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert running.wait(PATIENCE_S).attempt == 1
    upgrade(broker, {})  # and back
    upgrade(worker, {})
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert "library=missing" not in worker.text()
