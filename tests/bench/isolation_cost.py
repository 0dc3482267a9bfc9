"""What isolation costs an attempt: the same tasks through workers that differ by it, in turns.

    python -m tests.bench.isolation_cost [--tasks 200] [--rounds 5]

Root only. One attempt at a time, of a static program that does nothing. Read the ratios; the times are the machine's.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from kingtask.task import TaskSpec
from tests.servers import RedisServer
from tests.worker.open_rig import open_rig, someone
from tests.worker.rig import WorkerHarness, WorkerProcess

MIB = 1_048_576
LIMITS = {"memory": 256 * MIB, "open_files": 64, "processes": 64, "core": 0}
TICKS = 100
"""Of CPU time in a second (proc_pid_stat(5))."""


def variants(rig: WorkerHarness) -> dict[str, dict[str, Any]]:
    private = {"private_dir": str(rig.directory / "dirs")}
    found: dict[str, dict[str, Any]] = {
        "nothing": {},
        "umask, nice": {"umask": "027", "nice": 1},
        "private_dir": private,
        "limits": {"limits": {**LIMITS, "processes": None}},
        "run_as": {"run_as": someone()},
        "run_as, limits": {"run_as": someone(), "limits": LIMITS},
        "run_as, limits, private_dir": {"run_as": someone(), "limits": LIMITS, **private},
    }
    if (bwrap := shutil.which("bwrap")) is not None:
        words = "--ro-bind / / --dev /dev --proc /proc --unshare-all --die-with-parent --"
        found["run_as, bwrap"] = {"run_as": someone(), "launcher": [bwrap, *words.split()]}
    return found


def cpu_s(worker: WorkerProcess) -> float:
    """Of the worker's own process."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with RedisServer() as server, open_rig(server) as rig:
        source = "int main(void) { return 0; }"
        command = ["cc", "-O2", "-static", "-x", "c", "-", "-o", str(rig.bin / "nothing")]
        subprocess.run(command, input=source, text=True, check=True)
        workers = {}
        for number, (name, config) in enumerate(variants(rig).items()):
            workers[name] = f"q{number}", rig.start(queues=f"q{number}", concurrency=1, **config)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for _ in range(options.rounds):
            for name, (queue, worker) in workers.items():
                began_s, cpu_before_s = time.monotonic(), cpu_s(worker)
                ids = rig.put_all([TaskSpec(name="nothing", queue=queue)] * options.tasks)
                last = [rig.result(one) for one in ids]
                assert all(result.success for result in last), name
                took = (time.monotonic() - began_s, cpu_s(worker) - cpu_before_s)
                spent[name].append((took[0] * 1000 / options.tasks, took[1] * 1000 / options.tasks))
    floor = statistics.median(wall for wall, _ in spent["nothing"])
    print(f"{'worker.yaml':30}{'ms an attempt':>15}{'ratio':>8}{'worker CPU ms':>15}")
    for name, times in spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:30}{wall:15.2f}{wall / floor:8.2f}{cpu:15.2f}")


if __name__ == "__main__":
    main()
