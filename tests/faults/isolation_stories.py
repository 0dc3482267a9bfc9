"""Stories about executables that mean harm, run as users of their own and within limits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import redis

from tests.faults.layout import Skipped
from tests.faults.limit_stories import own_user
from tests.faults.play import Steps
from tests.faults.stage import FaultTestbed
from tests.faults.worker_stories import LATER_S, ended, peak, until_ended
from tests.worker import intruder

MEMORY_BYTES = 256 * 2**20
PROCESSES = 64
FIRST_UID = 60_000


def users(stage: FaultTestbed) -> None:
    """Workers run attempts as users of their own, one for each slot, within limits. Before Redis is started."""
    if os.geteuid() != 0:
        raise Skipped("only root may run programs as another user")
    if shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        raise Skipped("setpriv and prlimit (util-linux) are not installed")
    stage.directory.chmod(0o755)
    stage.histories.chmod(0o711)
    stage.ledger.chmod(0o666)
    first = FIRST_UID + os.getpid() % 500 * 10
    layout = stage.layout
    uids = [str(first + number) for number in range(layout.slots)]
    isolation = {
        "run_as": {"user": uids, "group": uids[0]},
        "limits": {"memory": MEMORY_BYTES, "processes": PROCESSES, "core": 0},
    }
    stage.layout = replace(layout, worker={**layout.worker, **isolation})


def users_and_a_password(stage: FaultTestbed) -> None:
    users(stage)
    own_user(stage)


def fork_bomb(stage: FaultTestbed, random: Random) -> Steps:
    """Processes without end, as many as a user may have: tasks beside them run as if nothing was."""
    bombs = [stage.submit("bomb", time_limit_s=2.0) for _ in range(2)]
    with stage.fault("two fork bombs"):
        beside = [stage.submit("forks", "10") for _ in range(20)]
        yield from until_ended(stage, beside, 60)
        yield from until_ended(stage, bombs, 30)
    for one in beside:
        stage.expect(ended(stage, one).success, f"beside a fork bomb a task failed: {ended(stage, one).attempts}")
    for one in bombs:
        result = ended(stage, one)
        attempt = result.attempts[-1]
        stage.expect(not result.success, "a fork bomb succeeded")
        took_s = attempt.ended_at - attempt.started_at
        stage.expect(took_s < 3.5 + LATER_S, f"limit 2 s and grace 1 s came to {took_s:.2f} s for a fork bomb")


def memory_hog(stage: FaultTestbed, random: Random) -> Steps:
    """Memory without measure: the attempt is told what it hit, and the worker stays as it is."""
    worker = stage.name(stage.workers[0])
    first = stage.submit("hog")
    yield from until_ended(stage, [first], 60)
    before = peak(stage, worker)
    hogs = [first, *(stage.submit("hog") for _ in range(4))]
    yield from until_ended(stage, hogs, 60)
    for one in hogs:
        attempt = ended(stage, one).attempts[-1]
        told = (attempt.reason, "limits.memory" in attempt.message)
        stage.expect(told == ("out_of_memory", True), f"a memory hog was told {attempt.reason!r}, {attempt.message!r}")
    grown = peak(stage, worker) - before
    stage.expect(grown < 16 * 2**20, f"{worker} grew by {grown / 2**20:.0f} MiB beside memory hogs")


def intrusion(stage: FaultTestbed, random: Random) -> Steps:
    """A program reads, writes, traces and ends what it must not: all is denied."""
    stage.executable("intruder", f"{intruder.SHEBANG}\n{Path(intruder.__file__).read_text()}")
    files = [*(str(worker.path) for worker in stage.workers), str(stage.directory / "password")]
    for worker in stage.workers:
        worker.path.chmod(0o640)
    host, _, port = stage.redis.url.rpartition(":")
    facts = {
        "read": files,
        "write": [str(stage.bin_path), str(stage.directory)],
        "change": [str(stage.bin_path / "intruder"), *files],
        "redis": {"host": host, "port": int(port)},
    }
    pids = {worker.pid for worker in stage.workers}
    with closed_to_strangers(stage):
        tasks = [stage.submit("intruder", json.dumps(facts)) for _ in range(4)]
        yield from until_ended(stage, tasks, 60)
    for one in tasks:
        result = ended(stage, one)
        stage.expect(result.success, f"the intruder did not come to its end: {result.attempts}")
        outcomes: dict[str, str] = json.loads(result.stdout or "{}")
        done = {name: told for name, told in outcomes.items() if told != "denied"}
        stage.expect(len(outcomes) >= 20 and not done, f"of {len(outcomes)} attempts these were not denied: {done}")
    stage.expect({worker.pid for worker in stage.workers} == pids, "a worker is another process")


@contextmanager
def closed_to_strangers(stage: FaultTestbed) -> Iterator[None]:
    """Redis asks everybody for a password meanwhile, but for connections that are there."""
    host, _, port = stage.redis.url.rpartition(":")
    with redis.Redis(host, int(port), single_connection_client=True) as server:
        server.ping()
        server.execute_command("ACL", "SETUSER", "default", "resetpass", ">nobody knows")
        try:
            yield
        finally:
            server.execute_command("ACL", "SETUSER", "default", "nopass")
