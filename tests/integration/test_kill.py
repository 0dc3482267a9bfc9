"""kill -9 of the broker, the worker and Redis under load: nothing accepted is lost, nothing ends twice."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import suppress

import pytest

from kingtask import TaskSpec
from tests.integration.rig import StackHarness
from tests.processes import until

TASKS = 2_000
PENDING = 500


def test_kills_under_load_lose_nothing(rig: StackHarness) -> None:
    """Each is killed with at least 500 tasks pending and every slot busy, and started again."""
    broker = rig.start_broker(lease=3)
    worker = rig.start_worker(lease=3, renew=1)
    client = rig.client(timeout=60)
    specs = [TaskSpec(name="ledger", args=("0.01",), env=rig.env, retry=(0.2, 0.2, 0.2)) for _ in range(TASKS)]
    tasks = [outcome.task for outcome in client.submit_many(specs)]
    ids = {task.id for task in tasks}

    def busy_after(done: int) -> bool:
        """At least `done` have ended, PENDING or more have not, and all four slots run something."""
        started, ended = len(rig.executions()), len(rig.executions("end"))
        return ended >= done and TASKS - ended >= PENDING and started - ended >= 4

    until(lambda: busy_after(100), "broker's turn")
    broker.kill()
    broker.start()
    until(lambda: busy_after(400), "worker's turn")
    worker.kill()
    worker.start()
    until(lambda: busy_after(700), "Redis's turn")
    rig.redis.kill()
    rig.redis.start()

    outcomes = Counter(client.wait(task_id, 120).state for task_id in ids)
    assert outcomes == {"succeeded": TASKS}
    starts = Counter(task_id for task_id, _, _ in rig.executions())
    assert set(starts) == ids
    interrupted = sum(n - 1 for n in starts.values())
    assert interrupted <= 8, "only what was running when something died may have run again"
    assert sum(queue["totals"]["succeeded"] for queue in client.stats()["queues"]) == TASKS


@pytest.mark.parametrize("kind", ["broker", "worker"])
def test_signals_that_come_until_the_last_moment_change_nothing(rig: StackHarness, kind: str) -> None:
    """Of those that stop it; the exit says that it was stopped, not that it crashed."""
    rig.start_broker()
    if kind == "worker":
        rig.start_worker()
    daemon = rig.daemons[-1]
    process = daemon.process
    assert process is not None

    def gone() -> bool:
        with suppress(ProcessLookupError):
            daemon.signal(signal.SIGTERM)
        return process.poll() is not None

    until(gone, "its end")
    assert process.returncode == 0
