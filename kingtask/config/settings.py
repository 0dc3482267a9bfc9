"""Every key of broker.yaml and worker.yaml: its type, range and default, and the rules between keys.

`etc/broker.yaml` and `etc/worker.yaml` document the keys; a test compares both. All durations are seconds. Properties
do no I/O; a method `load_…` reads files or asks the system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from kingtask import task
from kingtask.clock import duration_ms
from kingtask.config import permissions_file as rules
from kingtask.config.checks import InvalidSetting, about_path, absolute, check_bin_path, for_key, secret
from kingtask.config.sandbox_settings import (
    Limits,
    Mask,
    RunAs,
    UnixIdentity,
    Variable,
    VariablePatterns,
    identities,
    may_read,
)
from kingtask.curve import ClientKeys, read_client, read_directory, read_pair, read_public
from kingtask.endpoint import Address, host_port, parse
from kingtask.ownership import others_may_change
from kingtask.policy import CLUSTER_PATTERN, NAMESPACE_PATTERN, Ack, AckLevel, Policy
from kingtask.store.redis.address import RedisAddress, RedisTLS, parse_address
from kingtask.wire import MAX_MESSAGE_BYTES

MAX_OUTPUT_BYTES = 1_048_576
"""Limit of stdout and of stderr. With the largest arguments a task's record still fits into one message."""

MAX_CONCURRENCY = 1024
NAME_PARTS = 4
"""Levels of directories that a task's name may have below bin_path."""

Addresses = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]
Keep = Annotated[float, msgspec.Meta(ge=1, le=task.MAX_KEEP_S)]
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]
Launcher = Annotated[tuple[NotEmpty, ...], msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Namespace = Annotated[
    str, msgspec.Meta(pattern=NAMESPACE_PATTERN, description="1 to 32 letters, digits, dots, dashes and underscores")
]
Cluster = Annotated[str, msgspec.Meta(pattern=CLUSTER_PATTERN, description="32 hexadecimal digits in lower case")]
WorkerName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9._-]{1,100}\Z", description="1 to 100 letters, digits, dots, dashes and underscores"
    ),
]
"""Short enough for the suffixes that the worker adds."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of both daemons."""

    lists: ClassVar[frozenset[str]] = frozenset()
    """Keys that take one value or a list of them."""
    live: ClassVar[frozenset[str]] = frozenset()
    """Keys that change with SIGHUP; the others take effect with a restart."""
    brokers: ClassVar[str]
    """The key for the addresses of brokers."""

    redis: str = "127.0.0.1:6379"
    redis_password_file: str | None = None
    redis_tls: RedisTLS | None = None
    redis_sentinel_user: NotEmpty | None = None
    redis_sentinel_password_file: str | None = None
    namespace: Namespace = "kingtask"
    cluster: Cluster | None = None
    log_path: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    result_keep_time: Keep = 86_400.0
    failed_keep_time: Keep = 604_800.0
    ack: AckLevel | None = None
    ack_replicas: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    ack_timeout: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 5.0
    lease: Annotated[float, msgspec.Meta(ge=0.5, le=3600)] = 15.0
    max_lost: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    log_format: Literal["text", "json"] = "text"
    metrics_addr: str | None = None
    wakeup: Addresses | None = None

    @property
    def endpoints(self) -> list[str]:
        return [address.endpoint for _, address in self._addresses(self.brokers)]

    @property
    def wakeup_endpoints(self) -> list[str]:
        return [address.endpoint for _, address in self._wakeups()]

    def _addresses(self, key: str) -> list[tuple[str, Address]]:
        """Read the addresses under `key`, each with its place. Raises InvalidSetting."""
        places = [(f"{key}[{i}]", text) for i, text in enumerate(getattr(self, key))]
        return [(place, for_key(place, partial(parse, text))) for place, text in places]

    def _wakeups(self) -> list[tuple[str, Address]]:
        if self.wakeup is not None:
            return self._addresses("wakeup")
        return [(place, for_key(place, address.beside)) for place, address in self._addresses(self.brokers)]

    @property
    def metrics_address(self) -> Address | None:
        """Address of the metrics; None: off."""
        return None if self.metrics_addr is None else host_port(self.metrics_addr)

    def load_redis_address(self) -> RedisAddress:
        """Read the password files; return the address and login of Redis. Raises ConfigurationError."""
        password, sentinel_password = (
            None if path is None else secret(Path(path))
            for path in (self.redis_password_file, self.redis_sentinel_password_file)
        )
        return parse_address(
            self.redis,
            password=password,
            tls=self.redis_tls,
            sentinel_user=self.redis_sentinel_user,
            sentinel_password=sentinel_password,
        )

    @property
    def ack_policy(self) -> Ack:
        """The level that a write to Redis must reach before it is acknowledged."""
        return Ack(level=self.ack, replicas=self.ack_replicas, timeout_s=self.ack_timeout)

    @property
    def policy(self) -> Policy:
        """Values that each call passes to Redis."""
        return Policy(
            keep_ms=duration_ms(self.result_keep_time),
            failed_keep_ms=duration_ms(self.failed_keep_time),
            lease_ms=duration_ms(self.lease),
            max_lost=self.max_lost,
        )

    @property
    def guarded(self) -> bool:
        """True if it is an error that others may change what a path means: with keys or `run_as`. Else a warning."""
        return any(getattr(self, key, None) is not None for key in ("curve", "run_as"))

    def exposed(self) -> Iterator[tuple[str, str]]:
        """Yield each key with a path whose meaning others may change, and who may. The readers of keys check theirs."""
        users = identities(self.run_as) if isinstance(self, WorkerConfig) and self.run_as else []
        uids, gids = {user.uid for user in users}, {gid for user in users for gid in user.groups}
        for key, path in self._paths():
            depth = NAME_PARTS if key.startswith("bin_path") else 0
            if path is not None and (found := others_may_change(path, depth=depth, uids=uids, gids=gids)):
                yield key, found

    def _paths(self) -> list[tuple[str, str | None]]:
        """Return the keys that name paths, with the paths."""
        passwords = [(key, getattr(self, key)) for key in ("redis_password_file", "redis_sentinel_password_file")]
        return passwords + [(f"redis_tls.{key}", getattr(self.redis_tls, key, None)) for key in ("ca", "cert", "key")]

    def _check_exposed(self) -> None:
        for key, found in self.exposed() if self.guarded else ():
            raise InvalidSetting(key, found)

    def check(self) -> None:
        """Check the rules that types cannot express. Raises InvalidSetting."""
        address = for_key("redis", lambda: parse_address(self.redis, tls=self.redis_tls))
        for key in ("redis_password_file", "redis_sentinel_password_file"):
            about_path(key, getattr(self, key), secret)
        for key in ("redis_sentinel_user", "redis_sentinel_password_file"):
            if getattr(self, key) is not None and address.sentinels is None:
                raise InvalidSetting(key, "goes only with `redis: redis+sentinel://…`")
        if self.redis_tls is not None:
            self._check_tls(self.redis_tls)
        if self.ack_replicas != 1 and self.ack != "replicas":
            raise InvalidSetting("ack_replicas", "goes only with `ack: replicas`")
        if self.metrics_addr is not None:
            for_key("metrics_addr", partial(host_port, self.metrics_addr))

    def _check_tls(self, tls: RedisTLS) -> None:
        for name in ("ca", "cert", "key"):
            value = getattr(tls, name)
            if value is not None:
                field = f"redis_tls.{name}"
                path = absolute(field, value)
                if not os.access(path, os.R_OK) or not path.is_file():
                    raise InvalidSetting(field, f"expected the path of a readable PEM file, got {value!r}")
        if (tls.cert is None) != (tls.key is None):
            raise InvalidSetting("redis_tls", "cert and key go together; give both or neither")


_LIVE = frozenset({"log_path", "log_level", "log_format", "result_keep_time", "failed_keep_time", "max_lost"})


class BrokerCurve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker's key pair, and the directory with a `NAME.key` for each client and worker that may connect."""

    secret_key_file: str
    authorized_clients: str


class WorkerCurve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worker's key pair, and the public key that all brokers share."""

    secret_key_file: str
    server_key_file: str


class BrokerConfig(Settings, frozen=True):
    brokers: ClassVar[str] = "addr"
    lists: ClassVar[frozenset[str]] = frozenset({"addr", "wakeup"})
    live: ClassVar[frozenset[str]] = _LIVE | {
        *(
            "max_pending",
            "max_pending_bytes",
            "max_reply_bytes",
            "max_waits",
            "max_queues",
            "max_queue_length",
            "max_tasks",
        ),
        *("max_result_bytes", "permissions"),
    }

    addr: Addresses = ("127.0.0.1:9595",)
    insecure: bool = False
    curve: BrokerCurve | None = None
    permissions: str | None = None
    max_pending: Count = 10_000
    max_pending_bytes: Annotated[int, msgspec.Meta(ge=MAX_MESSAGE_BYTES, le=2**36)] = 256 * 1024 * 1024
    max_reply_bytes: Annotated[int, msgspec.Meta(ge=MAX_MESSAGE_BYTES, le=2**36)] = 256 * 1024 * 1024
    max_waits: Count = 10_000
    max_queues: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    max_queue_length: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 10_000_000
    max_tasks: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 20_000_000
    max_result_bytes: Annotated[int, msgspec.Meta(ge=2 * MAX_OUTPUT_BYTES, le=2**40)] = 1024 * 1024 * 1024

    def load_permissions(self) -> rules.PermissionsFile | None:
        """Read permissions.yaml, if there is one. Raises ConfigurationError."""
        return None if self.permissions is None else rules.load(self.permissions)

    @property
    def policy(self) -> Policy:
        return replace(
            super().policy,
            max_queues=self.max_queues,
            max_queue_length=self.max_queue_length,
            max_tasks=self.max_tasks,
            max_result_bytes=self.max_result_bytes,
        )

    def check(self) -> None:
        super().check()
        seen: set[str] = set()
        for field, address in [*self._addresses("addr"), *self._wakeups()]:
            if address.endpoint in seen:
                raise InvalidSetting(field, f"{address} is taken twice (wakeups use the next port; see `wakeup`)")
            seen.add(address.endpoint)
            if address.public and not self.insecure and self.curve is None:
                raise InvalidSetting(
                    field,
                    f"{address} can be reached from other machines, and every peer that reaches it may run"
                    " every executable: give clients keys (`curve`), listen on 127.0.0.1 or on ipc:///path, or set"
                    " `insecure: true` if every host in that network may do so",
                )
        if (metrics := self.metrics_address) is not None and metrics.endpoint in seen:
            raise InvalidSetting("metrics_addr", f"{metrics} is taken by addr or wakeup; choose another port")
        if self.curve is not None:
            about_path("curve.secret_key_file", self.curve.secret_key_file, read_pair)
            about_path("curve.authorized_clients", self.curve.authorized_clients, read_directory)
        about_path("permissions", self.permissions, rules.load)
        self._check_exposed()

    def _paths(self) -> list[tuple[str, str | None]]:
        sockets = [*self._wakeups(), *self._addresses("addr")]
        directories = {str(Path(address.path).parent): key for key, address in sockets if address.path}
        return [
            *super()._paths(),
            ("permissions", self.permissions),
            *((key, path) for path, key in directories.items()),
        ]


class WorkerConfig(Settings, frozen=True):
    brokers: ClassVar[str] = "broker"
    lists: ClassVar[frozenset[str]] = frozenset({"broker", "wakeup", "bin_path", "queues", "task_env"})
    live: ClassVar[frozenset[str]] = _LIVE | {
        *("bin_path", "work_dir", "period", "task_run_time", "concurrency", "queues", "stderr", "drain_timeout"),
        *("kill_grace", "max_output_bytes", "task_env"),
    }

    bin_path: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]
    work_dir: str | None = None
    broker: Addresses = ("127.0.0.1:9595",)
    curve: WorkerCurve | None = None
    name: WorkerName | None = None
    period: Annotated[float, msgspec.Meta(ge=0.01, le=3600)] = 1.0
    task_run_time: Annotated[float, msgspec.Meta(ge=0.001, le=task.MAX_INTERVAL_S)] = 3600.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONCURRENCY)] = msgspec.field(
        default_factory=lambda: min(MAX_CONCURRENCY, len(os.sched_getaffinity(0)))
    )
    queues: Annotated[tuple[task.QueueName, ...], msgspec.Meta(min_length=1, max_length=256)] = ("default",)
    stderr: Literal["fail", "keep"] = "fail"
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    kill_grace: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    max_output_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTPUT_BYTES)] = MAX_OUTPUT_BYTES
    renew: Annotated[float, msgspec.Meta(ge=0.1, le=1800)] = 5.0
    run_as: RunAs | None = None
    limits: Limits | None = None
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 0
    umask: Mask | None = None
    environment: Annotated[tuple[Variable, ...], msgspec.Meta(max_length=256)] | None = None
    task_env: VariablePatterns = ("TASK_*", "TRACEPARENT", "TRACESTATE")
    private_dir: str | None = None
    launcher: Launcher | None = None

    def load_identities(self) -> list[UnixIdentity]:
        return [] if self.run_as is None else identities(self.run_as)

    def load_keys(self) -> ClientKeys | None:
        """Read the key files, if keys are configured. Raises ConfigurationError."""
        if self.curve is None:
            return None
        return read_client(self.curve.secret_key_file, self.curve.server_key_file)

    def check(self) -> None:
        super().check()
        self._addresses("broker")
        self._wakeups()
        if self.curve is not None:
            about_path("curve.secret_key_file", self.curve.secret_key_file, read_pair)
            about_path("curve.server_key_file", self.curve.server_key_file, read_public)
        if self.wakeup is not None and len(self.wakeup) != len(self.broker):
            raise InvalidSetting("wakeup", f"expected one for each broker ({len(self.broker)}), got {len(self.wakeup)}")
        for key, values in (("broker", self.broker), ("queues", self.queues), ("bin_path", self.bin_path)):
            for i, value in enumerate(values):
                if value in values[:i]:
                    raise InvalidSetting(f"{key}[{i}]", f"{value!r} is listed twice")
        for i, directory in enumerate(self.bin_path):
            check_bin_path(f"bin_path[{i}]", directory)
        if self.work_dir is not None and not os.access(absolute("work_dir", self.work_dir) / ".", os.X_OK):
            raise InvalidSetting("work_dir", f"expected a directory that this user may enter, got {self.work_dir}")
        if self.renew > self.lease / 2:
            raise InvalidSetting(
                "renew",
                f"expected at most half of lease ({self.lease / 2:g}), so that one lost renewal is harmless,"
                f" got {self.renew:g}",
            )
        self._check_isolation()
        self._check_exposed()

    def _paths(self) -> list[tuple[str, str | None]]:
        launcher = None if self.launcher is None else self.launcher[0]
        bin_path = ((f"bin_path[{i}]", directory) for i, directory in enumerate(self.bin_path))
        return [*bin_path, ("private_dir", self.private_dir), ("launcher[0]", launcher), *super()._paths()]

    def _check_isolation(self) -> None:
        users = for_key("run_as", self.load_identities)
        if 1 < len(users) < self.concurrency:
            raise InvalidSetting(
                "run_as",
                f"expected one user, or one for each of the {self.concurrency} attempts at once (concurrency),"
                f" got {len(users)}",
            )
        for user in users:
            for key in ("redis_password_file", "redis_sentinel_password_file"):
                if (text := getattr(self, key)) is not None and may_read(Path(text), user):
                    raise InvalidSetting(
                        key, f"{user.name} (run_as) may read {text}; chmod 600 {text}, or another group"
                    )
        if self.private_dir is not None:
            self._check_private_dir(self.private_dir)
        if self.launcher is not None:
            path = absolute("launcher[0]", self.launcher[0])
            if not path.is_file() or not os.access(path, os.X_OK):
                raise InvalidSetting("launcher[0]", f"expected the path of a program, got {self.launcher[0]!r}")

    def _check_private_dir(self, text: str) -> None:
        path = absolute("private_dir", text)
        # With effective_ids capabilities count as well.
        if not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise InvalidSetting("private_dir", f"expected a directory that this user may write to, got {text}")
        if path.stat().st_mode & stat.S_IWOTH:
            raise InvalidSetting("private_dir", f"every user may change the content of {text}; chmod o-w {text}")
