"""What many scheduled tasks cost the broker, and how soon a restarted broker fires on time.

python -m tests.bench.schedule_memory [--tasks 100000]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from kingtask import TaskSpec
from tests.integration.rig import Rig

ON_TIME_S = 0.05
"""A start no later than this after its instant counts as on time (machines are noisy)."""


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    options = parser.parse_args()
    with Rig(appendfsync="everysec") as rig:
        rig.executable("clock", "#!/bin/sh\ndate +%s.%N\n")
        broker = rig.start_broker(ack="stored")
        rig.start_worker()
        client = rig.client(timeout=60)
        for outcome in client.submit_many(TaskSpec(name="clock") for _ in range(1_000)):
            outcome.task.wait(60)  # so that what the first requests allocate is not counted
        used = rig.redis.client().info("memory")["used_memory"]
        before = rss_mb(broker.pid)
        due = time.time() + 3600
        start = time.perf_counter()
        specs = (
            TaskSpec(name="clock", args=("12", "45"), retry=(5, 8, 9), start_at=due + i / 1000)
            for i in range(options.tasks)
        )
        for _ in client.submit_many(specs):
            pass
        taken = time.perf_counter() - start
        growth = rss_mb(broker.pid) - before
        stored = (rig.redis.client().info("memory")["used_memory"] - used) / options.tasks
        print(f"scheduled {options.tasks:,} at {options.tasks / taken:,.0f} /s, {stored:.0f} bytes each in Redis")
        print(f"broker RSS {before:.1f} MB, grew by {growth:.1f} MB")

        base = time.time() + 1
        soon = [client.submit("clock", at=base + i / 20) for i in range(100)]
        broker.kill()
        broker.start()
        started = time.time()
        late = [float(task.result(60)) - (base + i / 20) for i, task in enumerate(soon)]
        after = [base + i / 20 - started for i in range(100)]
        on_time = [when for when, by in zip(after, late, strict=True) if 0 <= by <= ON_TIME_S and when > 0]
        print(f"restarted broker: first on-time start {min(on_time):.2f} s after it answered its first ping;")
        latest_ms = 1000 * max(by for when, by in zip(after, late, strict=True) if when > 1)
        earliest_ms = 1000 * min(late)
        print(f"due after 1 s: the latest was {latest_ms:.1f} ms late; the earliest of all {earliest_ms:.1f} ms")


if __name__ == "__main__":
    main()
