"""A worker process on a private Redis, without a broker: the test submits, ticks and sends the hints itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

import yaml
import zmq

from kingtask import topics
from kingtask.broker.counters import Counters
from kingtask.broker.relay import Relay
from kingtask.policy import Policy
from kingtask.result import Result
from kingtask.store import functions
from kingtask.store.library import SCHEMA
from kingtask.task import TaskSpec
from tests.broker.conftest import stop
from tests.broker.fakes import CredulousWakeups
from tests.processes import PATIENCE_S, name_of, until
from tests.servers import RedisServer, die_with_parent
from tests.store.syncstore import SyncStore

T = TypeVar("T")


class WakeupSocket:
    """The wakeup socket of a broker that is not there, in a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._loop = asyncio.new_event_loop()
        self.relay = Relay(self._context, Counters())
        self.wakeups = CredulousWakeups(self._context, self.relay, (endpoint,), Counters())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self.wakeups.start)
        self._do(self.relay.start)

    def _do(self, act: Callable[[], T]) -> T:
        async def acted() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(acted(), self._loop).result(PATIENCE_S)

    def _lines(self) -> list[tuple[set[bytes], bool]]:
        return [(peer.queues | peer.names, peer.idle) for peer in self.wakeups._peers.values()]

    def heard(self, topic: bytes) -> None:
        """Wait until somebody subscribes to it."""
        until(lambda: any(topic in topics for topics, _ in self._do(self._lines)), f"somebody subscribes to {topic!r}")

    def idle(self, number: int = 1) -> None:
        """Wait until so many say that they are idle."""
        until(lambda: sum(idle for _, idle in self._do(self._lines)) == number, f"{number} are idle")

    def handed_back(self) -> None:
        """Wait until somebody has handed back what it was told, and nobody is there to be told instead."""
        until(lambda: any(self._do(self.wakeups._undelivered.values)), "something is handed back")

    def ready(self, queue: str = "default", tasks: int = 1) -> None:
        self._do(partial(self.wakeups.ready, queue, tasks))

    def soon(self, queue: str = "default") -> bool:
        return self._do(partial(self.wakeups.notify_early, queue))

    def cancel(self, worker: str, task_id: str) -> None:
        self._do(partial(self.wakeups.cancel, worker, task_id))

    def say(self, *frames: bytes) -> None:
        """What no broker would."""
        self._do(partial(self.wakeups._socket.send_multipart, frames))

    def close(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(stop(self.wakeups, self.relay, self._context), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class WorkerHarness:
    """`period` is an hour unless a test sets it, so a worker polls only after a hint or the end of an attempt."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.directory = directory
        self.server = server
        self.namespace = uuid4().hex
        self.policy = Policy(lease_ms=15_000)
        self.store = SyncStore(server.client(), self.namespace)
        self.store.ask(functions.open_namespace(SCHEMA, self.namespace))  # else a worker waits for a broker to do that
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.wakeups = WakeupSocket(f"ipc://{directory}/wakeups")
        self.workers: list[WorkerProcess] = []

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.wakeups.close()

    def script(self, name: str, text: str, *, shebang: str = "#!/bin/sh") -> Path:
        """An executable in bin_path."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{shebang}\n{text}\n")
        path.chmod(0o755)
        return path

    def start(self, *command: str, program: Sequence[str] = (sys.executable,), **config: Any) -> WorkerProcess:
        """Start a worker and wait until it hears hints. `command` takes the place of `-m tests.worker.launch`."""
        settings = {
            "broker": f"ipc://{self.directory}/broker",
            "wakeup": self.wakeups.endpoint,
            "redis": self.server.url,
            "namespace": self.namespace,
            "bin_path": str(self.bin),
            "period": 3600,
            "concurrency": 4,
            **config,
        }
        worker = WorkerProcess(self, settings, [*program, *(command or ("-m", "tests.worker.launch"))])
        self.workers.append(worker)
        return worker.start()

    def put(self, name: str, *args: str, ring: bool = True, **fields: Any) -> str:
        """Submit a task that is due now; returns its id."""
        return self.put_all([TaskSpec(name=name, args=args, **fields)], ring=ring)[0]

    def put_all(self, specs: list[TaskSpec], *, ring: bool = True) -> list[str]:
        ids = [str(uuid4()) for _ in specs]
        rows = [functions.prepare(task_id, spec) for task_id, spec in zip(ids, specs, strict=True)]
        for i in range(0, len(rows), 200):
            submitted = self.store.ask(functions.submit(self.policy, rows[i : i + 200]))
            assert set(submitted.outcomes) == {"ready"}
        if ring:
            for queue, tasks in Counter(spec.queue for spec in specs).items():
                self.wakeups.ready(queue, tasks)
        return ids

    def tick(self) -> None:
        self.store.ask(functions.tick(self.policy, "b1", b"{}", upcoming=100, window_ms=60_000, housekeep=False))

    def get(self, task_id: str) -> Result:
        found = self.store.ask(functions.get(task_id)).result
        assert found is not None
        return found

    def find(self, task_id: str, *, state: str = "", ended: bool = False) -> Result | None:
        """The task, once it is in this state (or has ended)."""
        result = self.get(task_id)
        return result if result.state == state or (ended and result.ended) else None

    def result(self, task_id: str) -> Result:
        """Wait for the end of a task."""
        until(lambda: self.find(task_id, ended=True), f"the end of {task_id}")
        return self.get(task_id)

    def run(self, name: str, *args: str, **fields: Any) -> Result:
        """Submit one task and wait for its end."""
        return self.result(self.put(name, *args, **fields))

    def running(self, task_id: str) -> Result:
        until(lambda: self.find(task_id, state="running"), f"the start of {task_id}")
        return self.get(task_id)

    def cancel(self, worker: WorkerProcess, task_id: str) -> None:
        self.store.ask(functions.cancel(self.policy, task_id))
        self.wakeups.cancel(worker.name, task_id)

    def exists(self, name: str) -> str:
        """Wait until a program has made this file; returns its text, which ends with a newline."""
        path = self.directory / name
        until(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} made by a program")
        return path.read_text().strip()


class WorkerProcess:
    """One worker process. `name` is the one it gave itself."""

    def __init__(self, rig: WorkerHarness, config: dict[str, Any], command: Sequence[str]) -> None:
        self._rig = rig
        self._command = command
        number = len(rig.workers)
        self.path = rig.directory / f"worker{number}.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.log_file = rig.directory / f"worker{number}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.name = ""

    def start(self) -> Self:
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._command, str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it calls
            )
        line = until(self._started, f"the worker's start: {self.log}")
        self.name = line.partition("name=")[2].split()[0]
        self._rig.wakeups.heard(topics.cancel_topic(self.name))
        return self

    def _started(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, f"the worker ended: {self.log}"
        return next((line for line in self.log.splitlines() if "worker=started" in line), "")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def guard(self) -> int:
        """The process that watches over it, once it has its name."""
        return until(
            lambda: next((pid for pid in self.children() if name_of(pid) == "kingtask-reaper"), 0),
            f"a guard: {self.log}",
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def logged(self, text: str) -> str:
        """Wait for a line in its log."""
        return until(
            lambda: next((line for line in self.log.splitlines() if text in line), ""), f"{text!r} in {self.log}"
        )

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]
