"""One contestant on a fresh server: its processes, and the pipe to the process of its client."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.bench.contestants import Contestant
from tests.bench.measure import tree
from tests.integration.rig import Daemon, StackHarness
from tests.servers import die_with_parent

TOP = Path(__file__).parents[2]
PATIENCE_S = 180.0
"""For one section; the longest takes a minute."""


@dataclass(frozen=True)
class Durability:
    """A kind of server, and the level that kingtask has on it."""

    ack: Literal["stored", "fsync"]
    appendfsync: Literal["everysec", "always"]

    def __str__(self) -> str:
        return f"ack {self.ack}, appendfsync {self.appendfsync}"


STORED = Durability("stored", "everysec")
FSYNC = Durability("fsync", "always")


class Failed(Exception):
    """The contestant did not do what it was asked."""


@dataclass(frozen=True)
class BenchmarkPaths:
    """What all stages of a run share."""

    probe: Path
    places: Mapping[str, Path]
    """Where peers are installed."""


class ClientProcess:
    """The process of a client; see `adapters.serve` for what goes through its pipes."""

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                cwd=TOP,
                env=env,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (one system call)
            )
        self._unread = b""
        try:
            self.hello = self._answer(PATIENCE_S)
        except Failed:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, section: str, **args: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"section": section, "args": args}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"its client has ended: {self._tail()}") from None

    def end(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The answer to what was begun. Raises Failed."""
        return self._answer(patience_s)

    def call(self, section: str, **args: Any) -> dict[str, Any]:
        self.begin(section, **args)
        return self.end()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _answer(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise Failed(f"no answer after {patience_s:g} s: {self._tail()}")
            part = os.read(fd, 1 << 20)
            if not part:
                raise Failed(f"its client has ended: {self._tail()}")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-1000:]


class ContestantStack:
    """A context: everything that was started is ended with it."""

    def __init__(self, contestant: Contestant, durability: Durability, setting: BenchmarkPaths) -> None:
        self.contestant = contestant
        self.durability = durability
        self._setting = setting
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.broker: Daemon | None = None
        self.worker: Daemon | None = None

    def __enter__(self) -> Self:
        try:
            rig = StackHarness(tcp=True, appendonly="yes", appendfsync=self.durability.appendfsync, loglevel="notice")
            self.rig = self._stack.enter_context(rig)
            self._log = self.rig.directory / "processes.log"
            if self.contestant.kind == "kingtask":
                shutil.copy(self._setting.probe, self.rig.bin_path / "probe")
                self.broker = self.rig.start_broker(ack=self.durability.ack)
            self.client = self.new_client()
            self._start(self.client.hello["servers"])
            self.client.call("open")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            for pid in reversed(tree([process.pid])):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self._stack.close()

    def new_client(self) -> ClientProcess:
        """One more process with a client of this contestant; not yet connected if it is a further one."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(TOP),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_REDIS": f"redis://{self.rig.redis.url}/0",
            "BENCH_PROBE": str(self._setting.probe),
        }
        if self.broker is not None:
            environment["BENCH_BROKER"] = self.broker.endpoint
        if self.contestant.name in self._setting.places:
            environment["NODE_PATH"] = str(self._setting.places[self.contestant.name] / "node_modules")
        self._environment = environment
        client = ClientProcess(self.contestant.command(self._setting.places), environment, self._log)
        self._stack.callback(client.close)
        return client

    def can(self, section: str) -> bool:
        return section in self.client.hello["sections"]

    def start_workers(self, *, warm: int = 10, settle_s: float = 0.0) -> None:
        """Start what runs the tasks, have it run a few, and leave it alone for a while."""
        if self.broker is not None:
            self.worker = self.rig.start_worker()
        self._start(self.client.hello["workers"])
        if self.can("warm"):
            self.client.call("warm", n=warm)
        time.sleep(settle_s)

    @property
    def worker_pids(self) -> list[int]:
        return [self.worker.pid] if self.worker else [process.pid for process in self._processes]

    def _start(self, commands: list[list[str]]) -> None:
        with self._log.open("ab") as log:
            for command in commands:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=TOP,
                    env=self._environment,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  (one system call)
                )
                self._processes.append(process)

    def check(self) -> None:
        """Raise Failed if a process of it has ended meanwhile."""
        for process in self._processes:
            if process.poll() is not None:
                raise Failed(f"a process of it ended with {process.returncode}: {self._log.read_text()[-1000:]}")
