"""Findings of `kingtask doctor`. Facts in, findings out; only `bin_paths` reads the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kingtask import __version__
from kingtask.cli.times import short_duration
from kingtask.endpoint import parse
from kingtask.errors import KingtaskError, PermissionDenied, StoreError

if TYPE_CHECKING:
    from kingtask.config import BrokerConfig, WorkerConfig
    from kingtask.store.inspect import Inspection
    from kingtask.store.rights import Lacking

NOTABLE_OFFSET_S = 0.5
WRONG_OFFSET_S = 60.0

REDIS_CONF = "in redis.conf (deploy/redis/ has one)"
ACL = "in Redis's ACL (deploy/redis/kingtask.acl has all)"
CORRECT_ADDRESS = "start it, or correct `redis` in the configuration"

Subject = Literal[
    "config", "broker", "access", "redis", "sentinel", "memory", "disk", "ack", "cluster", "library", "clock",
    "brokers", "workers", "queues", "bin_path", "run_as", "keep_time",
]  # fmt: skip


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    level: Level
    subject: Subject
    text: str
    advice: str = ""
    """Advice for a person; empty if all is well."""


ok = partial(Finding, Level.OK)
warn = partial(Finding, Level.WARN)
fail = partial(Finding, Level.FAIL)


def broker(address: str, pong: Mapping[str, Any] | KingtaskError) -> Finding:
    """Judge one broker of the list that clients use by its reply to `ping`, or by the error in place of one."""
    if isinstance(pong, KingtaskError):
        start = "start kingtask-broker there, or name its address with --broker"
        keys = "name the keys of a client that it knows with --curve-key and --server-key"
        return fail("broker", f"{address}: {pong}", keys if isinstance(pong, PermissionDenied) else start)
    text = f"{address}: kingtask {pong['version']}, an OK means: {pong['ack'] or 'unknown'}"
    if not pong["ready"]:
        return fail("broker", f"{text}, but it cannot reach Redis", "see its log, and the findings about redis")
    if pong["version"] != __version__:
        return warn("broker", text, f"this is kingtask {__version__}: bring both to one release")
    return ok("broker", text)


def redis(found: Inspection, wanted_ack: str | None) -> Iterator[Finding]:
    """Judge the server itself: version, role, rights, memory, durability."""
    server = found.server
    name = f"{server.product} {server.version}"
    if found.functions is False or found.too_old:
        yield fail("redis", f"{name} is too old", "use Redis 7.0 or Valkey 7.2, or newer")
        return
    yield ok("redis", f"{name} answers in {found.round_trip_s * 1000:.1f} ms")
    if found.role != "master":
        yield fail("redis", f"it is a {found.role}", "let `redis:` name the primary")
    yield from rights(found.lacking, "broker")
    unseen = [name for name in dict.fromkeys(found.denied) if name.lower() not in found.lacking.commands]
    if unseen and not found.lacking.keys:
        denied = f"this user may not call {', '.join(unseen)}, so not everything could be examined"
        yield warn("redis", denied, f"allow these commands {ACL}")
    yield from _access(found)
    yield from _memory(found)
    yield from _persistence(found, wanted_ack)


def unreachable(name: str, error: StoreError) -> Finding:
    """Report a Redis that could not be examined."""
    return fail("redis", f"{name}: {error}", "see redis_password_file" if error.kind == "auth" else CORRECT_ADDRESS)


def rights(lacking: Lacking, daemon: str) -> Iterator[Finding]:
    """Report the rights in Redis that the user of a daemon lacks."""
    if lacking.commands:
        commands = ", ".join(name.replace("|", " ").upper() for name in lacking.commands)
        add = " ".join(f"+{name}" for name in lacking.commands)
        yield fail("redis", f"the {daemon}'s user may not call {commands}", f"give it {add} {ACL}")
    for denied, what in ((lacking.keys, "keys"), (lacking.channels, "channels")):
        if denied:
            text = f"the {daemon}'s user may not use all {what} of this namespace that it needs"
            advice = f"give it the {what} of kingtask-{daemon}, with your namespace in the braces, {ACL}"
            yield fail("redis", text, advice)


def sentinels(found: Inspection, config: BrokerConfig) -> Iterator[Finding]:
    """Judge the sentinels of `redis+sentinel://…`, and whether `ack_replicas` covers all that they may promote."""
    named = [answer for _, answer in found.sentinels if not isinstance(answer, StoreError)]
    for host, answer in found.sentinels:
        if isinstance(answer, StoreError):
            yield warn("sentinel", f"{host}: {answer}", CORRECT_ADDRESS)
        elif answer.epoch < max(named).epoch:
            yield warn("sentinel", f"{host} names a former primary", "check that it reaches the others")
        else:
            yield ok("sentinel", f"{host} names {answer.host}:{answer.port}, and knows {answer.replicas} replicas")
    known = max(named).replicas if named else 0
    if config.ack == "replicas" and config.ack_replicas < known:
        text = f"an OK waits for {config.ack_replicas} of {known} replicas: one that has missed it may be promoted"
        yield warn("ack", text, f"set ack_replicas: {known}")


def reach(config: BrokerConfig) -> Iterator[Finding]:
    """Warn of addresses that other machines reach: every client may run every executable of the workers."""
    public = [text for text in config.addr if parse(text).public]
    if public:
        text = f"other machines can reach {', '.join(public)}, and may run every executable of the workers"
        yield warn("access", text, "listen on 127.0.0.1 or ipc:///path, unless everyone in that network may do so")


def _access(found: Inspection) -> Iterator[Finding]:
    if found.anonymous:
        text = "it asks for no password: every local user, and every task, may read and change everything"
        advice = "set up users (deploy/redis/kingtask.acl), or a unix socket that only the daemons may open"
        yield warn("access", text, advice)


def _memory(found: Inspection) -> Iterator[Finding]:
    policy = found.server.settings.get("maxmemory-policy")
    limit = int(found.server.settings.get("maxmemory", "0"))
    if policy == "noeviction":
        bound = f"maxmemory {limit / 1e6:,.0f} MB" if limit else "no maxmemory"
        yield ok("memory", f"maxmemory-policy {policy}, {bound}")
    elif policy is not None:
        text = f"maxmemory-policy {policy}: Redis would evict tasks when memory is short"
        yield (fail if limit else warn)("memory", text, f"set maxmemory-policy noeviction {REDIS_CONF}")


def _persistence(found: Inspection, wanted_ack: str | None) -> Iterator[Finding]:
    settings, info = found.server.settings, found.info
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            yield fail("disk", f"the last write of the {what} failed", "free space on Redis's disk")
    if not settings:
        if wanted_ack == "fsync":
            yield fail("ack", "ack: fsync cannot work: the broker may not read the settings", f"+config|get {ACL}")
        return
    advice = f"set appendonly yes and appendfsync always {REDIS_CONF}"
    if found.server.fsync_always:
        text, advice = "every change is on disk before the OK", ""
    elif settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always":
        text, advice = "an OK is on disk, except while the file is rewritten", "set no-appendfsync-on-rewrite no"
    elif settings.get("appendonly") == "yes":
        text = "if Redis's host dies, the last two seconds of OKs or more are lost"
    elif settings.get("save"):
        text = "if Redis dies, every OK since the last snapshot is lost"
    else:
        text = "if Redis dies or restarts, everything is lost"
    if wanted_ack == "replicas" and found.server.replicas == 0:
        yield fail("ack", "ack: replicas cannot work: no replica is attached", "start replicas, or set another ack")
    elif wanted_ack == "fsync" and advice:
        yield fail("ack", f"ack: fsync cannot work: {text}", advice)
    else:
        yield warn("ack", text, advice) if advice else ok("ack", text)


def record(found: Inspection, wanted_cluster: str | None = None) -> Iterator[Finding]:
    """Judge the namespace: identity, schema and function library."""
    from kingtask.store.library import SCHEMA

    if found.lacking.keys or "hget" in found.lacking.commands:
        return  # a namespace that cannot be read would seem new
    yield _identity(found, wanted_cluster)
    if found.schema is not None and found.schema > SCHEMA:
        text = f"the namespace was written by a newer kingtask (schema {found.schema}, this one knows {SCHEMA})"
        yield fail("library", text, "bring this machine to that release")
    elif found.library and found.functions is not None:
        yield ok("library", f"schema {found.schema or SCHEMA}, functions of {__version__} loaded")
    elif found.functions is not None:
        yield warn("library", "this release's functions are not loaded", "a broker loads them at its start")


def _identity(found: Inspection, wanted: str | None) -> Finding:
    if wanted not in (None, found.cluster):
        text = f"this database is {found.cluster or 'empty'}, the configuration wants {wanted}"
        advice = "restore the right one; or, to work with this one, correct `cluster` in the configurations"
        return fail("cluster", text, advice)
    if found.used and not found.cluster:
        text = "the namespace has keys and no identity: something else wrote them, or part of the data is gone"
        return fail("cluster", text, "restore the data, or use another namespace, or remove these keys")
    return ok("cluster", found.cluster or "the namespace is new; its first broker begins it")


def clock(offset_s: float, between: str) -> Finding:
    """Judge how far Redis's clock, which decides, is from the clock that people read."""
    text = f"{between}: {offset_s * 1000:+.1f} ms"
    advice = "let both hosts take their time from NTP"
    if abs(offset_s) >= WRONG_OFFSET_S:
        return fail("clock", f"{text}; tasks start at the wrong time", advice)
    return warn("clock", text, advice) if abs(offset_s) >= NOTABLE_OFFSET_S else ok("clock", text)


def peers(stats: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Finding]:
    """Judge brokers, workers and queues by the reply to `stats`."""
    from kingtask.store.stats import WORKER_ALIVE_S

    kinds: tuple[Literal["brokers", "workers"], ...] = ("brokers", "workers")
    for kind in kinds:
        alive = [peer for peer in stats[kind] if peer["seen_s"] < WORKER_ALIVE_S]
        if alive:
            yield ok(kind, ", ".join(f"{peer['name']} ({short_duration(peer['seen_s'])} ago)" for peer in alive))
        else:
            yield fail(kind, f"no {kind[:-1]} was seen lately", f"start kingtask-{kind[:-1]}, or see its log")
    for peer in stats["workers"]:
        if peer.get("unfit") and peer["seen_s"] < WORKER_ALIVE_S:
            advice = "remove this cause, or stop the worker; see its log"
            yield fail("workers", f"{peer['name']}: {peer['unfit']}", advice)
    for peer in stats["brokers"]:
        offset_s = peer.get("clock_offset_s")
        if offset_s is not None:
            yield clock(offset_s, f"Redis against broker {peer['name']}")
    problems = list(_queues(stats["queues"]))
    yield from problems or [ok("queues", f"{len(stats['queues'])} known, none waits for a worker")]


def _queues(queues: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for queue in queues:
        waiting = queue["ready"] + queue["scheduled"]
        name = f"{queue['name']}: {queue['ready']} ready, {queue['scheduled']} scheduled"
        if waiting and not queue["served"]:
            advice = f"add {queue['name']} to `queues` in a worker's configuration"
            yield (fail if queue["ready"] else warn)("queues", f"{name}, and no worker serves it", advice)
        elif waiting and queue["paused"]:
            yield warn("queues", f"{name}, and it is paused", f"kingtask resume {queue['name']}")


def keep_times(broker: BrokerConfig, worker: WorkerConfig) -> Iterator[Finding]:
    """Warn where the two configurations keep records for different times."""
    for name in ("result_keep_time", "failed_keep_time"):
        one, other = getattr(broker, name), getattr(worker, name)
        if one != other:
            text = (
                f"{name} is {one:,.12g} s at the broker, {other:,.12g} s at the worker; the daemon that ends a task"
                " decides: the worker for a task that it ran, the broker for one that was cancelled before, either for"
                " one that expired or was lost"
            )
            yield warn("keep_time", text, f"give {name} one value in both configurations")


def shared_users(config: WorkerConfig) -> Iterator[Finding]:
    """Hint that attempts of one user do not protect each other."""
    if config.concurrency > 1 and len(config.load_identities()) == 1:
        text = "attempts share a user, so each can read the environment, stdin and files of others, and forge output"
        yield warn("run_as", text, f"give each of the {config.concurrency} slots its own user")


def bin_paths(directories: Sequence[str]) -> Iterator[Finding]:
    """Judge the files in `bin_path`, whose directories the configuration has checked, as this user sees them."""
    for directory in directories:
        files = [entry for entry in os.scandir(directory) if entry.is_file()]
        plain = sorted(entry.name for entry in files if not os.access(entry.path, os.X_OK))
        yield ok("bin_path", f"{directory}: {len(files) - len(plain)} executables")
        if plain:
            some = ", ".join(plain[:3]) + (", …" if len(plain) > 3 else "")
            yield warn("bin_path", f"{directory}: not executable: {some}", "chmod +x the files that tasks may name")
