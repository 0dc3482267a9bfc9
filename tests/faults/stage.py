"""The processes of a case: Redis, brokers, workers, clients, each in a session of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import redis

from kingtask import Client, TaskSpec, curve
from kingtask.errors import KingtaskError
from kingtask.failpoint import VARIABLE
from kingtask.result import Result
from kingtask.store.keys import Keys
from tests.faults import variants
from tests.faults.chronicle import Chronicle
from tests.faults.client import Orders
from tests.faults.history import HistoryRecorder, Key
from tests.faults.layout import Layout
from tests.faults.proxy import Proxy
from tests.integration.rig import Daemon
from tests.servers import RedisServer, die_with_parent

PREFIX = Keys("kingtask").prefix
WORK = Path(__file__).parent / "work.c"

SCRIPTS = {
    "poison": '"$work" "$@"; kill -9 $PPID; exec sleep 60',
    "deaf": 'trap \'\' TERM; "$work" "$@"',
    "daemonizes": '"$work" "$@"; (setsid sleep 600 &)',
    "bomb": '"$work" "$@"; bomb() { bomb & bomb & }; bomb; sleep 60',
    "forks": '"$work" "$@"; true | cat | cat; (sleep 0.01 & wait)',
    "hog": '"$work" "$@"; exec tail /dev/zero',
    "stops": '"$work" "$@"; kill -STOP $$; sleep 60',
}
"""Executables beside `work`, which they call: the ledger knows of them, too."""


class FaultTestbed(Chronicle):
    """What a layout says, started; its thread starts, hurts and ends everything."""

    def __init__(self, layout: Layout, loads: Mapping[str, float], seed: int, directory: Path) -> None:
        options: dict[str, Any] = {"enable_debug_command": "yes", **layout.redis}
        super().__init__(directory, **options)
        self.layout = layout
        self.loads = loads
        self.seed = seed
        self.label = f"f{uuid.uuid4().hex[:8]}"
        self._for_clients: list[str] = []
        self._for_workers: list[str] = []
        self.clients: list[subprocess.Popen[bytes]] = []
        self.environment: dict[str, str] = {}
        self.logs: Path | None = None
        """Where daemons log, if not in the directory of the rig."""
        self.over = False
        """True once no new fault is to begin."""
        self._client_number = 0
        self._own: tuple[Client, HistoryRecorder] | None = None
        self.proxy = Proxy()

    def __enter__(self) -> Self:
        try:
            self._build()
            if self.layout.keys:
                self._make_keys()
            self.environment = self._environment()
            if self.layout.prepare is not None:
                self.layout.prepare(self)
            self.start_stores()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start_stores(self) -> None:
        self.redis.start()

    def _make_keys(self) -> None:
        (self.directory / "authorized").mkdir()
        for name in ("broker", "peer", "stranger"):
            curve.write_pair(self.directory, name, replace=False)
        shutil.copy(self.directory / "peer.key", self.directory / "authorized")
        self.keys = {"curve_key": self.directory / "peer.key_secret", "server_key": self.directory / "broker.key"}

    def _curve(self, **files: str) -> dict[str, Any]:
        """Of a daemon's configuration."""
        paths = {key: str(self.directory / name) for key, name in files.items()}
        return {"curve": paths} if self.layout.keys else {}

    def key_environment(self) -> dict[str, str]:
        """Of processes that are to have the clients' keys."""
        if not self.keys:
            return dict(os.environ)
        own, server = (str(self.keys[name]) for name in ("curve_key", "server_key"))
        return {**os.environ, "KINGTASK_CURVE_KEY": own, "KINGTASK_SERVER_KEY": server}

    def __exit__(self, *exception: Any) -> None:
        for client in self.clients:
            client.kill()
            client.wait()
        if self._own is not None:
            self._own[0].close()
            self._own[1].close()
        self.proxy.close()
        for daemon in self.daemons:  # what is stopped cannot be ended in order
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.signal(signal.SIGCONT)
        super().__exit__(*exception)
        if self.layout.cleanup is not None:
            self.layout.cleanup(self)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Brokers, then workers, then clients; returns when all brokers and workers are ready."""
        for _ in range(self.layout.brokers):
            self.add_broker(ready=False)
        for broker in self.brokers:
            broker.wait_ready()
        for _ in range(self.layout.workers):
            self.add_worker(ready=False)
        for worker in self.workers:
            worker.wait_ready()
        self.observe()
        for _ in range(self.layout.clients):
            self.add_client()

    def add_broker(self, *, ready: bool = True, **config: Any) -> Daemon:
        layout = self.layout
        common: dict[str, Any] = {"ack": layout.ack, "lease": layout.lease_s, "max_lost": layout.max_lost}
        common |= self._curve(secret_key_file="broker.key_secret", authorized_clients="authorized")
        link = self._link("broker>redis", f"broker {len(self.brokers) + 1}>redis", self.redis_url)
        broker = self.start_broker(ready=ready, **{**common, "redis": link, **layout.broker, **config})
        self.brokers.append(broker)
        name = self.name(broker)
        self._for_clients.append(self._link("client>broker", f"client>{name}", broker.endpoint.removeprefix("tcp://")))
        self._for_workers.append(self._link("worker>broker", f"worker>{name}", broker.config["wakeup"]))
        return broker

    def _environment(self) -> dict[str, str]:
        """Of every broker and worker, unless a story gives it another."""
        name = self.layout.variant
        if not name or name in variants.PATCHES:
            return {}
        return {VARIABLE: name if name not in variants.VARIANTS else f"library={variants.write(name, self.directory)}"}

    @property
    def redis_url(self) -> str:
        return self.redis.url

    def dress(self, daemon: Daemon) -> None:
        daemon.environment = self.environment
        if daemon.kind == "broker" and self.layout.broker_limits:
            daemon.prefix = ["prlimit", *self.layout.broker_limits, "--"]
        if daemon.kind == "broker" and self.layout.variant in variants.PATCHES:
            daemon.program = f"from tests.faults import variants; variants.{self.layout.variant}(); {daemon.program}"
        if self.logs is not None:
            daemon.log = self.logs / daemon.log.name

    def add_worker(self, *, ready: bool = True, **config: Any) -> Daemon:
        layout = self.layout
        common: dict[str, Any] = {
            "name": f"{self.label}-{len(self.workers) + 1}",
            "redis": self._link("worker>redis", f"worker {len(self.workers) + 1}>redis", self.redis_url),
            "wakeup": self._for_workers,
            "concurrency": layout.slots,
            "lease": layout.lease_s,
            "renew": layout.lease_s / 4,
            "max_lost": layout.max_lost,
            "period": 0.5,
            "kill_grace": 1,
            "drain_timeout": 1,
        }
        common |= self._curve(secret_key_file="peer.key_secret", server_key_file="broker.key")
        worker = self.start_worker(ready=ready, **{**common, **layout.worker, **config})
        self.workers.append(worker)
        return worker

    def add_client(self, loads: Mapping[str, float] | None = None) -> subprocess.Popen[bytes]:
        self._client_number += 1
        rates = self.loads if loads is None else loads
        share = max(1, self.layout.clients)
        orders = Orders(
            directory=str(self.histories),
            proc=str(self._client_number),
            brokers=self.client_endpoints(),
            loads={kind: rate if kind == "shared" else rate / share for kind, rate in rates.items()},
            seed=f"{self.seed}-{self._client_number}",
            shared_seed=str(self.seed),
            lease_s=self.layout.lease_s,
            timeout_s=self.layout.client_timeout_s,
            ack=self.layout.ack,
        )
        with (self.histories / f"client-{self._client_number}.log").open("ab") as log:
            client = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.client", msgspec.json.encode(orders).decode()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.key_environment(),
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
            )
        self.clients.append(client)
        return client

    def client_endpoints(self) -> list[str]:
        return [f"tcp://{address}" for address in self._for_clients]

    def _link(self, kind: str, name: str, address: str) -> str:
        """The address itself, or that of a proxy in front of it."""
        if kind not in self.layout.proxied:
            return address
        host, _, port = address.rpartition(":")
        return f"127.0.0.1:{self.proxy.add(name, host, int(port))}"

    def _build(self) -> None:
        """The executable `work`: compiled, or a slower script where there is no compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("the fault cases need a C compiler (cc)")
        define = f"-DLEDGER={json.dumps(str(self.ledger))}"
        subprocess.run([compiler, "-O2", "-static", define, "-o", self.bin_path / "work", WORK], check=True)
        for name, line in SCRIPTS.items():
            self.executable(name, f"#!/bin/sh\nwork={self.bin_path}/work\n{line}\n")

    # ── a client of the rig's own ───────────────────────────────────────────────────────────────────────────────────

    def submit(self, name: str, *args: str, **options: Any) -> str:
        """Submit one task, as a client does; returns its id."""
        client, recorder = self._asking()
        spec = TaskSpec(id=str(uuid.uuid4()), name=name, args=args, **options)
        assert spec.id is not None
        op = recorder.invoke("submit", spec.id, spec=spec)
        outcome = client.submit_many([spec])[0]
        if outcome.error is not None:
            recorder.error(op, outcome.error)
        else:
            recorder.ok(op, outcome=outcome.outcome, ack=self.layout.ack)
        return spec.id

    def cancel(self, task_id: str) -> None:
        """Cancel a task of `submit`."""
        client, recorder = self._asking()
        op = recorder.invoke("cancel", task_id)
        try:
            outcome = client.cancel(task_id)
        except KingtaskError as error:
            recorder.error(op, error)
        else:
            recorder.ok(op, outcome=outcome)

    def get(self, task_id: str) -> Result | None:
        """The task as it stands; None if nobody can tell now."""
        client, recorder = self._asking()
        op = recorder.invoke("result", task_id)
        try:
            result = client.get(task_id)
        except KingtaskError as error:
            recorder.error(op, error)
            return None
        recorder.ok(op, result=result)
        return result

    def _asking(self) -> tuple[Client, HistoryRecorder]:
        if self._own is None:
            endpoints = [broker.endpoint for broker in self.brokers]
            client = Client(endpoints, timeout=self.layout.client_timeout_s, **self.keys)
            self._own = client, HistoryRecorder(self.histories, "rig")
        return self._own

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def kill(self, daemon: Daemon, number: int = signal.SIGKILL) -> None:
        """End it by a signal, as a fault or because the case is over."""
        if daemon.process is not None:  # it may have killed itself, as it was told
            self.note_exit(daemon, daemon.end(number), wanted=True)

    def heal(self) -> None:
        """Whatever is not there is started; returns when all of it answers."""
        self.heal_stores()
        for daemon in self.daemons:
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.environment = self.environment
                daemon.start(ready=False)
        for daemon in self.daemons:
            daemon.wait_ready()

    def heal_stores(self) -> None:
        if not self.redis.running:
            self.redis.start()

    # ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def store(self) -> RedisServer:
        """The server that counts."""
        return self.redis

    def primary(self) -> redis.Redis:
        """A connection to the server that counts."""
        # Tokens are bytes of any value.
        return self.store.client(socket_timeout=5.0, decode_responses=True, encoding="latin-1")

    def living(self) -> int:
        """Tasks scheduled, ready or running."""
        server = self.primary()
        queues = list(server.scan_iter(f"{PREFIX}ready:*"))
        return sum(int(server.zcard(key)) for key in [f"{PREFIX}schedule", f"{PREFIX}running", *queues])

    def stored_ids(self) -> set[str]:
        prefix = f"{PREFIX}task:"
        return {key.removeprefix(prefix) for key in self.primary().scan_iter(f"{prefix}*", count=1000)}

    def dump(self) -> Iterator[Key]:
        """Every key of Redis."""
        server: Any = self.primary()
        for key in sorted(set(server.scan_iter(count=1000))):
            kind = server.type(key)
            members: dict[str, str] | None = None
            size = 0
            if kind == "zset":
                members = {member: repr(score) for member, score in server.zrange(key, 0, -1, withscores=True)}
                size = len(members)
            elif kind == "hash":
                size = int(server.hlen(key))
                if key.startswith((f"{PREFIX}held:", f"{PREFIX}counts:", f"{PREFIX}meta")):
                    members = server.hgetall(key)
            name = key.removeprefix(PREFIX)
            yield Key(key=name, type=kind, ttl_ms=int(server.pttl(key)), size=size, members=members)
