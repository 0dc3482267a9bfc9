"""Programs that do too much, in one worker: gigabytes of output, and ten thousand attempts that each leave something.

    python -m tests.faults.excess --bytes 2000000000 --attempts 10000

Prints what each cost; ends with 1 if a size or an end of an output is wrong, the worker's memory grew, or a process,
a descriptor, a directory or a cgroup is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kingtask.result import Result
from kingtask.task import TaskSpec
from kingtask.worker.reap import cgroup
from tests.processes import descriptors, until
from tests.servers import RedisServer
from tests.worker.rig import WorkerHarness, WorkerProcess

KEPT_BYTES = 1_048_576
MAX_GROWTH_KB = 16 * 1024
"""Two outputs kept hold 3 MiB at most, their report another 2 and what Redis is sent another 2."""
PATIENCE_S = 1_200.0

WRITES = f"""#!{sys.executable} -IS
import os, sys
def write(fd, data):
    while data:
        data = data[os.write(fd, data):]
kind, left = sys.argv[1], int(sys.argv[2])
piece = {{"lines": b"x" * 79 + b"\\n", "zeros": bytes(80), "noise": bytes(range(240))}}.get(kind, b"x" * 80) * 800
fds = {{"stderr": [2], "both": [1, 2]}}.get(kind, [1])
for fd in fds:
    write(fd, b"begin")
while left > 0:
    for fd in fds:
        write(fd, piece[:left])
    left -= len(piece)
for fd in fds:
    write(fd, b"the end")
"""
KINDS = ("lines", "zeros", "noise", "one line", "stderr", "both")

LEAVES = {
    "brief": "echo $1",
    "failing": "echo no >&2; exit 1",
    "killed": "kill -9 $$",
    "daemon": "setsid sh -c 'sleep 300 &' </dev/null >/dev/null 2>&1",
    "holder": "sleep 300 & echo $1",
    "files": "mkdir -p a/b/c; echo x > a/b/c/d; chmod 0 a; mkfifo f",
}


def floods(rig: WorkerHarness, worker: WorkerProcess, size: int) -> Iterator[str]:
    """Each kind of output, of so many bytes; yields what was wrong."""
    rig.run("write", "both", str(4 * KEPT_BYTES))  # what is kept is allocated once
    for kind in KINDS:
        before_kb, started_s = peak_kb(worker), time.monotonic()
        result = ended(rig, rig.put("write", kind, str(size)))
        grown_kb = peak_kb(worker) - before_kb
        print(f"{kind}: {size:,} bytes in {time.monotonic() - started_s:.1f} s, worker +{grown_kb} KB", flush=True)
        if grown_kb > MAX_GROWTH_KB:
            yield f"{kind}: the worker's memory grew by {grown_kb} KB"
        outputs = {"stderr": [1], "both": [0, 1]}.get(kind, [0])
        for which, (kept, written) in enumerate(
            ((result.stdout, result.stdout_size), (result.stderr, result.stderr_size))
        ):
            if which not in outputs:
                wrong = bool(written)
            else:
                wrong = (written, len(kept), kept[:5], kept[-7:]) != (size + 12, KEPT_BYTES, b"begin", b"the end")
            if wrong or result.state != "succeeded":
                yield f"{kind}: {result.state}, {written} bytes, {len(kept)} kept: {kept[:5]!r} … {kept[-7:]!r}"


def attempts(rig: WorkerHarness, worker: WorkerProcess, number: int) -> Iterator[str]:
    """So many, of each kind as many; yields what was left."""
    mix = [TaskSpec(name=name, args=("x",), stdin=b"y", keep_result_s=60.0) for name in (*LEAVES, "missing")]
    run_all(rig, mix * 4)
    until(lambda: worker.children() == [worker.guard], "no children")
    own = rig.directory / "private" / f"kingtask.{worker.name}"
    until(lambda: not list(own.iterdir()), "no directories")
    before, before_kb, started_s = left(rig, worker), peak_kb(worker), time.monotonic()
    for _ in range(max(1, number // 700)):
        run_all(rig, mix * min(100, max(1, number // len(mix))))
    print(f"{number:,} attempts in {time.monotonic() - started_s:.1f} s, worker +{peak_kb(worker) - before_kb} KB")
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")
    until(lambda: not list(own.iterdir()), "every attempt's directory is removed", PATIENCE_S)
    for what, now in left(rig, worker).items():
        if now != before[what]:
            yield f"{what}: {before[what]} before, {now} after"
    if peak_kb(worker) - before_kb > MAX_GROWTH_KB:
        yield f"the worker's memory grew by {peak_kb(worker) - before_kb} KB"


def run_all(rig: WorkerHarness, specs: list[TaskSpec]) -> None:
    for task in rig.put_all(specs):
        ended(rig, task)


def ended(rig: WorkerHarness, task: str) -> Result:
    until(lambda: rig.find(task, ended=True), f"the end of {task}", PATIENCE_S)
    return rig.get(task)


def left(rig: WorkerHarness, worker: WorkerProcess) -> dict[str, list[str]]:
    own = cgroup.own_cgroup()
    return {
        "descriptors": [str(fd) for fd in descriptors(worker.pid)],
        "private directories": sorted(str(path) for path in (rig.directory / "private").rglob("*")),
        "temporary files": sorted(path.name for path in (rig.directory / "tmp").iterdir()),
        "cgroups": [] if own is None else sorted(str(path) for path in own.glob(f"*{worker.name}*/**")),
    }


def peak_kb(worker: WorkerProcess) -> int:
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def stage() -> Iterator[tuple[WorkerHarness, WorkerProcess]]:
    with tempfile.TemporaryDirectory(prefix="kingtask-excess-") as name, RedisServer() as server:
        directory = Path(name)
        for each in ("private", "tmp"):
            (directory / each).mkdir()
        rig = WorkerHarness(directory, server)
        try:
            (rig.bin / "write").write_text(WRITES)
            (rig.bin / "write").chmod(0o755)
            for script, text in LEAVES.items():
                rig.script(script, text)
            place = ["/usr/bin/env", f"TMPDIR={directory / 'tmp'}", sys.executable]
            yield rig, rig.start(program=place, private_dir=str(directory / "private"), stderr="keep")
        finally:
            rig.close()


def excess(size: int, number: int) -> list[str]:
    """What was wrong."""
    acts: list[tuple[Callable[[WorkerHarness, WorkerProcess, int], Iterator[str]], int]] = [
        (floods, size),
        (attempts, number),
    ]
    with stage() as (rig, worker):
        return [fault for act, amount in acts if amount for fault in act(rig, worker, amount)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.excess", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bytes", type=int, default=200_000_000, help="of each kind of output")
    parser.add_argument("--attempts", type=int, default=2_000)
    options = parser.parse_args()
    faults = excess(options.bytes, options.attempts)
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
