"""Floor: `posix_spawn` of the probe, as many at a time as the others run; no queue at all."""

from __future__ import annotations

import os
import time

from tests.bench.adapters import base


class Spawn(base.ContestantAdapter):
    config = f"posix_spawn, {base.SLOTS} in flight, output to /dev/null, wait4"

    def execute_section(self, n: int, bulk: bool = False) -> dict[str, float]:
        start = time.perf_counter()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        files = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        for i in range(n + base.SLOTS):
            if i >= base.SLOTS:
                os.wait()
            if i < n:
                os.posix_spawn(base.PROBE, base.ARGV, {}, file_actions=files)
        os.close(null)
        return {"n": n, "seconds": time.perf_counter() - start}


adapter = Spawn
