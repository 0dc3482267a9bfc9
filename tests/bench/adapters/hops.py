"""Floor: all hops of a task's way added up, one after the other, each by itself and with nothing in between.

To main(): a ROUTER/DEALER round trip (client → broker, broker → worker), the calls of submit and claim, posix_spawn.
To the waiting client besides: the probe's end, the call of finish, another round trip (Redis → broker → client).
"""

from __future__ import annotations

import os
import random
import time
import uuid

from kingtask import policy
from kingtask.store import codec, functions
from kingtask.store.functions import EndedTask, Fence
from tests.bench.adapters import base, dealer, echo, function


class Hops(base.ContestantAdapter):
    config = "echo, function calls and posix_spawn one after the other; the waiting client's wait is free"
    packages = ("pyzmq", "redis", "hiredis")

    def __init__(self) -> None:
        self._echo = echo.Echo()
        self._function = function.Function()
        self._policy = policy.Policy()
        self._claims = 0

    def servers(self) -> list[list[str]]:
        return self._echo.servers()

    def open(self) -> None:
        self._echo.open()
        self._function.open()

    def warm_section(self, n: int) -> dict[str, float]:
        for _ in range(n):
            self._once()
        return {}

    def latency_section(self, n: int) -> dict[str, list[float]]:
        return {"samples": [self._once()[0] for _ in range(n)]}

    def round_trip_section(self, n: int, limit_s: float) -> dict[str, list[float]]:
        return {"samples": [self._once()[1] for _ in range(n)]}

    @staticmethod
    def prepare(argv: list[str]) -> tuple[bytes, bytes]:
        return dealer.submits(1)[0], function.Function.prepare(argv)

    def submit(self, prepared: tuple[bytes, bytes]) -> None:
        self._echo.submit(prepared[0])
        self._function.submit(prepared[1])

    def _once(self) -> tuple[float, float]:
        """Seconds to main(), and to the last hop."""
        prepared, token = self.prepare(base.ARGV), uuid.uuid4().bytes
        time.sleep(random.uniform(0.01, 0.03))
        begin, start = time.time(), time.perf_counter()
        self.submit(prepared)
        self._claims += 1
        claims = self._function.ask(
            functions.claim(self._policy, "floor", functions.ClaimRequest(["default"], 1, token, self._claims))
        )
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.posix_spawn(base.PROBE, base.ARGV, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
        os.close(write)
        out = b""
        while part := os.read(read, 100):
            out += part
        os.close(read)
        os.waitpid(pid, 0)
        task = claims.tasks[0]
        now_ms = int(begin * 1000)
        packed = codec.pack_attempt(task.number, "floor", now_ms, now_ms, "", exit_code=0)
        ended = EndedTask(Fence(task.id, task.number, token), "succeeded", "", packed, out, b"", len(out), 0)
        self._function.ask(functions.finish(self._policy, "floor", [ended]))
        self._echo.submit(prepared[0])
        return int(out) / 1e9 - begin, time.perf_counter() - start


adapter = Hops
