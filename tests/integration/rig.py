"""A whole installation of real processes: a private Redis, brokers and workers from configuration files, clients.

Everything lives in one temporary directory, every process in its own session and is ended by its pid.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from kingtask import Client
from kingtask.errors import NoAnswer
from tests.processes import PATIENCE_S, until
from tests.servers import Option, RedisServer, die_with_parent, free_port

LEDGER = """#!/bin/sh
# Appends one line to a file outside Redis: the truth about what was executed.
echo "$KINGTASK_ID $KINGTASK_ATTEMPT start $(date +%s.%N)" >> "$TASK_LEDGER"
[ -n "$1" ] && sleep "$1"
echo "$KINGTASK_ID $KINGTASK_ATTEMPT end $(date +%s.%N)" >> "$TASK_LEDGER"
echo done
"""

PROGRAM = "from kingtask.cli.daemons import {0}; {0}()"

T = TypeVar("T")


class Daemon:
    """One broker or worker process."""

    def __init__(self, rig: StackHarness, kind: str, config: dict[str, Any]) -> None:
        self._rig = rig
        self.kind = kind
        self.config = config
        number = len(list(rig.directory.glob(f"{kind}*.yaml")))
        self.path = rig.directory / f"{kind}{number}.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.log = rig.directory / f"{kind}{number}.log"
        self.environment: dict[str, str] = {}
        """Beside that of the tests; taken in by the next start, as are the `prefix` of its command and the program."""
        self.prefix: list[str] = []
        self.program = PROGRAM.format(kind)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def endpoint(self) -> str:
        addresses = self.config["addr"]
        address: str = addresses if isinstance(addresses, str) else addresses[0]
        return address if "://" in address else f"tcp://{address}"

    def start(self, *, ready: bool = True) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-c", self.program, "-c", self.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
            )
        if ready:
            self.wait_ready()
        return self

    def until_logged(self, text: str) -> str:
        """Wait until the log holds the text; return the log."""
        until(lambda: text in self.text(), f"{text!r} in the log of the {self.kind}")
        return self.text()

    def wait_ready(self) -> None:
        def told() -> str:
            return f"the {self.kind} is ready; its log: {self.text()[-2000:]}"

        if self.kind == "broker":
            with Client(self.endpoint, **self._rig.keys) as client:
                until(lambda: self._alive() and _pings(client), told)
        else:
            if not self.config.keys() & {"log_format", "log_level", "log_path"}:
                # Brokers read the names of workers at most once a second: ask when the worker is there.
                until(lambda: self._alive() and f"pid={self.pid}" in self.text(), told)
            until(lambda: self._alive() and f".{self.pid}." in str(self._rig.worker_names()), told)

    def _alive(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.kind} ended with {self.process.returncode}: {self.text()[-2000:]}")
        return True

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """As a crash: SIGKILL to the process itself."""
        self.end(signal.SIGKILL)

    def stop(self) -> int:
        """In good order: SIGTERM; returns the exit status."""
        return self.end(signal.SIGTERM)

    def end(self, number: int) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(PATIENCE_S * 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.kind} did not end: {self.text()[-2000:]}") from None


def _pings(client: Client) -> bool:
    """False as well if nothing answers soon: it may have ended meanwhile, and its log says why."""
    try:
        return bool(client.ping(timeout=2.0)["ready"])
    except NoAnswer:
        return False


class StackHarness:
    """Redis, and whatever is started on it. Options are redis.conf's, `_` for `-`."""

    def __init__(self, **redis_options: Option) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kingtask-rig-"))
        self.bin_path = self.directory / "bin"
        self.bin_path.mkdir()
        self.ledger = self.directory / "ledger"
        self.ledger.touch()
        durable: dict[str, Any] = {"appendonly": "yes", "appendfsync": "always"}
        self.redis = RedisServer(**{**durable, **redis_options})
        self.daemons: list[Daemon] = []
        self.keys: dict[str, Any] = {}
        """Of its clients, where the brokers ask for any."""
        self._stack = ExitStack()
        self.executable("ledger", LEDGER)

    def __enter__(self) -> Self:
        self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for daemon in reversed(self.daemons):
            daemon.kill()
        self.redis.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def executable(self, name: str, text: str) -> Path:
        """Put an executable into bin_path; `name` may have directories."""
        path = self.bin_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start_broker(self, *, ready: bool = True, **config: Any) -> Daemon:
        """Start one and wait until it answers and has Redis (or not, with `ready=False`)."""
        address = f"127.0.0.1:{free_port()}"
        settings = {"addr": address, "wakeup": f"127.0.0.1:{free_port()}", "redis": self.redis.url, **config}
        daemon = Daemon(self, "broker", settings)
        self.dress(daemon)
        self.daemons.append(daemon)
        return daemon.start(ready=ready)

    def start_worker(self, *, ready: bool = True, **config: Any) -> Daemon:
        brokers = [daemon for daemon in self.daemons if daemon.kind == "broker"]
        settings = {
            "broker": [broker.config["addr"] for broker in brokers],
            "wakeup": [broker.config["wakeup"] for broker in brokers],
            "redis": self.redis.url,
            "bin_path": str(self.bin_path),
            "concurrency": 4,
            **config,
        }
        daemon = Daemon(self, "worker", settings)
        self.dress(daemon)
        self.daemons.append(daemon)
        return daemon.start(ready=ready)

    def dress(self, daemon: Daemon) -> None:
        """Before its first start: for rigs that give it an environment or a prefix."""

    def client(self, **options: Any) -> Client:
        """A client of all brokers, closed with the rig."""
        return self._stack.enter_context(Client(self._endpoints, **{**self.keys, **options}))

    @property
    def _endpoints(self) -> list[str]:
        return [daemon.endpoint for daemon in self.daemons if daemon.kind == "broker"]

    def worker_names(self) -> list[str]:
        """As the brokers see them."""
        with Client(self._endpoints, **self.keys) as client:  # asked again and again: none is to stay
            return [worker["name"] for worker in client.stats()["workers"]]

    def executions(self, event: str = "start") -> list[tuple[str, int, float]]:
        """The ledger: id, attempt and epoch seconds of each start (or end), in the order in which they were written."""
        whole, _, _ = self.ledger.read_text().rpartition("\n")  # a line may be half written
        rows = [line.split() for line in whole.splitlines()]
        return [(row[0], int(row[1]), float(row[3])) for row in rows if row[2] == event]

    @property
    def env(self) -> dict[str, str]:
        """For the `ledger` executable."""
        return {"TASK_LEDGER": str(self.ledger)}
