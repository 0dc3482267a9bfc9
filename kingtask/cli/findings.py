"""What `kingtask doctor` thinks of what it found. Facts in, findings out; only `bin_paths` looks for itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kingtask import __version__
from kingtask.cli.times import short_duration
from kingtask.endpoint import parse
from kingtask.errors import StoreError
from kingtask.store.inspect import Inspection
from kingtask.store.library import SCHEMA
from kingtask.store.redis.sentinel import Named
from kingtask.store.rights import Lacking
from kingtask.store.stats import WORKER_ALIVE_S, StoreStats, stats_fields

if TYPE_CHECKING:
    from kingtask.config import BrokerConfig, WorkerConfig

NOTABLE_OFFSET_S = 0.5
WRONG_OFFSET_S = 60.0

REDIS_CONF = "in redis.conf (deploy/redis/ has one)"
ACL = "in Redis's ACL (deploy/redis/kingtask.acl has all)"


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    level: Level
    subject: str
    text: str
    advice: str = ""
    """What to do; empty if there is nothing."""


def pings(address: str, pong: Mapping[str, Any] | None, why: str = "", *, denied: bool = False) -> Iterator[Finding]:
    """One broker of the list that clients use; `denied`: it was there, and did not let us in."""
    if pong is None:
        start = "start kingtask-broker there, or name it with --broker"
        advice = "name the keys of a client that it knows with --curve-key and --server-key" if denied else start
        yield Finding(Level.FAIL, "broker", f"{address}: {why}", advice)
        return
    said = f"{address}: kingtask {pong['version']}, an OK means: {pong['ack'] or 'unknown'}"
    if not pong["ready"]:
        yield Finding(Level.FAIL, "broker", f"{said}, but it cannot reach Redis", "see its log, and the lines on redis")
    elif pong["version"] != __version__:
        yield Finding(Level.WARN, "broker", said, f"this is kingtask {__version__}: bring both to one release")
    else:
        yield Finding(Level.OK, "broker", said)


def redis(found: Inspection, wanted_ack: str | None) -> Iterator[Finding]:
    """The server itself: version, role, memory, what an acknowledgement is worth."""
    server = found.server
    name = f"{server.product} {server.version}"
    if found.functions is False or found.too_old:
        yield Finding(Level.FAIL, "redis", f"{name} is too old", "use Redis 7.0 or Valkey 7.2, or newer")
        return
    yield Finding(Level.OK, "redis", f"{name} answers in {found.round_trip_s * 1000:.1f} ms")
    if found.role != "master":
        yield Finding(Level.FAIL, "redis", f"it is a {found.role}", "let `redis:` name the primary")
    yield from rights(found.lacking, "broker")
    unseen = [name for name in dict.fromkeys(found.denied) if name.lower() not in found.lacking.commands]
    if unseen and not found.lacking.keys:
        yield Finding(
            Level.WARN,
            "redis",
            f"this user may not call {', '.join(unseen)}, so not everything could be examined",
            f"allow these commands {ACL}",
        )
    yield from _access(found)
    yield from _memory(found)
    yield from _persistence(found, wanted_ack)


def unreachable(name: str, error: StoreError) -> Finding:
    """A Redis that could not be looked at."""
    advice = "see redis_password_file" if error.kind == "auth" else "start it, or correct `redis` in the configuration"
    return Finding(Level.FAIL, "redis", f"{name}: {error}", advice)


def rights(lacking: Lacking, daemon: str) -> Iterator[Finding]:
    """What the user of a daemon may not do in Redis although it has to."""
    if lacking.commands:
        commands = ", ".join(name.replace("|", " ").upper() for name in lacking.commands)
        add = " ".join(f"+{name}" for name in lacking.commands)
        yield Finding(Level.FAIL, "redis", f"the {daemon}'s user may not call {commands}", f"give it {add} {ACL}")
    for denied, what, mark in ((lacking.keys, "keys", "~"), (lacking.channels, "channels", "&")):
        if denied:
            yield Finding(
                Level.FAIL,
                "redis",
                f"the {daemon}'s user may not use the {what} of this namespace",
                f"give it {mark}{{NAMESPACE}}:*, with the braces, {ACL}",
            )


def sentinels(found: Inspection, config: BrokerConfig) -> Iterator[Finding]:
    """Those of `redis+sentinel://…`: whether each answers, and whether `ack_replicas` covers all they may promote."""
    named = [answer for _, answer in found.sentinels if isinstance(answer, Named)]
    for host, answer in found.sentinels:
        if not isinstance(answer, Named):
            yield Finding(
                Level.WARN, "sentinel", f"{host}: {answer}", "start it, or correct `redis` in the configuration"
            )
        elif answer.epoch < max(named).epoch:
            yield Finding(Level.WARN, "sentinel", f"{host} names a former primary", "see whether it reaches the others")
        else:
            text = f"{host} names {answer.host}:{answer.port}, and knows {answer.replicas} replicas"
            yield Finding(Level.OK, "sentinel", text)
    known = max(named).replicas if named else 0
    if config.ack == "replicas" and config.ack_replicas < known:
        yield Finding(
            Level.WARN,
            "ack",
            f"an OK waits for {config.ack_replicas} of {known} replicas: one that has missed it may be promoted",
            f"set ack_replicas: {known}",
        )


def reach(config: BrokerConfig) -> Iterator[Finding]:
    """Check who can reach the broker: every such peer may run every executable of the workers."""
    public = [text for text in config.addr if parse(text).public]
    if public:
        yield Finding(
            Level.WARN,
            "access",
            f"other machines can reach {', '.join(public)}, and may run every executable of the workers",
            "listen on 127.0.0.1 or ipc:///path, unless everyone in that network may do so",
        )


def _access(found: Inspection) -> Iterator[Finding]:
    settings = found.server.settings
    listens = [address.removeprefix("-") for address in settings.get("bind", "127.0.0.1").split()] or ["*"]
    if found.anonymous and settings.get("protected-mode") == "no" and not all(map(_loopback, listens)):
        yield Finding(
            Level.WARN,
            "access",
            f"every peer that reaches it ({', '.join(listens)}) may read and change everything: it needs no password",
            f"set requirepass, or users as in deploy/redis/kingtask.acl, or bind 127.0.0.1 {REDIS_CONF}",
        )


def _loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:  # `*`, or a name
        return address == "localhost"


def _memory(found: Inspection) -> Iterator[Finding]:
    policy = found.server.settings.get("maxmemory-policy")
    limit = int(found.server.settings.get("maxmemory", "0"))
    if policy is None:
        return
    if policy == "noeviction":
        full = f", maxmemory {limit / 1e6:,.0f} MB" if limit else ", no maxmemory"
        yield Finding(Level.OK, "memory", f"maxmemory-policy noeviction{full}")
        return
    yield Finding(
        Level.FAIL if limit else Level.WARN,
        "memory",
        f"maxmemory-policy {policy}: tasks would be thrown away when memory is short",
        f"set maxmemory-policy noeviction {REDIS_CONF}",
    )


def _persistence(found: Inspection, wanted_ack: str | None) -> Iterator[Finding]:
    settings, info = found.server.settings, found.info
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            yield Finding(Level.FAIL, "disk", f"the last write of the {what} failed", "free space on Redis's disk")
    if not settings:
        if wanted_ack == "fsync":
            yield Finding(
                Level.FAIL,
                "ack",
                "ack: fsync cannot be had: the broker may not read the settings",
                f"+config|get {ACL}",
            )
        return
    always = f"set appendonly yes and appendfsync always {REDIS_CONF}"
    if found.server.fsync_always:
        text, advice = "every change is on disk before the OK", ""
    elif settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always":
        text, advice = "an OK is on disk, except while the file is rewritten", "set no-appendfsync-on-rewrite no"
    elif settings.get("appendonly") == "yes":
        text, advice = "if Redis's host dies, the last two seconds of OKs or more are lost", always
    elif settings.get("save"):
        text, advice = "if Redis dies, every OK since the last snapshot is lost", always
    else:
        text, advice = "if Redis dies or restarts, everything is lost", always
    if wanted_ack == "replicas" and found.server.replicas == 0:
        yield Finding(
            Level.FAIL,
            "ack",
            "ack: replicas cannot be had: no replica is attached",
            "start replicas, or set another ack",
        )
    elif wanted_ack == "fsync" and advice:
        yield Finding(Level.FAIL, "ack", f"ack: fsync cannot be had: {text}", always)
    else:
        yield Finding(Level.WARN if advice else Level.OK, "ack", text, advice)


def record(found: Inspection, wanted_cluster: str | None = None) -> Iterator[Finding]:
    """The namespace: identity, schema and function library."""
    if found.lacking.keys or "hget" in found.lacking.commands:
        return  # what is not seen is not new
    yield from _identity(found, wanted_cluster)
    if found.schema is not None and found.schema > SCHEMA:
        yield Finding(
            Level.FAIL,
            "library",
            f"the namespace was written by a newer kingtask (schema {found.schema}, this one knows {SCHEMA})",
            "bring this machine to that release",
        )
    elif found.functions is None:
        return
    elif found.library:
        yield Finding(Level.OK, "library", f"schema {found.schema or SCHEMA}, functions of {__version__} loaded")
    else:
        yield Finding(
            Level.WARN,
            "library",
            "this release's functions are not loaded yet",
            "a broker or worker loads them at start",
        )


def _identity(found: Inspection, wanted: str | None) -> Iterator[Finding]:
    if wanted not in (None, found.cluster):
        yield Finding(
            Level.FAIL,
            "cluster",
            f"this database is {found.cluster or 'empty'}, the configuration wants {wanted}",
            "restore the right one; or, to work with this one, correct `cluster` in the configurations",
        )
    elif found.cluster:
        yield Finding(Level.OK, "cluster", found.cluster)
    elif found.used:
        yield Finding(
            Level.FAIL,
            "cluster",
            "the namespace has keys and no identity: something else wrote them, or part of the data is gone",
            "restore the data, or use another namespace, or remove these keys",
        )
    else:
        yield Finding(Level.OK, "cluster", "the namespace is new; its first broker begins it")


def clock(offset_s: float, between: str) -> Iterator[Finding]:
    """How far Redis's clock, which decides, is from the one that people read."""
    text = f"{between}: {offset_s * 1000:+.1f} ms"
    advice = "let both hosts take their time from NTP"
    if abs(offset_s) >= WRONG_OFFSET_S:
        yield Finding(Level.FAIL, "clock", f"{text}; tasks start at the wrong time", advice)
    elif abs(offset_s) >= NOTABLE_OFFSET_S:
        yield Finding(Level.WARN, "clock", text, advice)
    else:
        yield Finding(Level.OK, "clock", text)


def peers(stats: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Finding]:
    """Brokers and workers that were seen lately, and queues that nobody serves; `stats` as on the wire."""
    for kind in ("brokers", "workers"):
        alive = [peer for peer in stats[kind] if peer["seen_s"] < WORKER_ALIVE_S]
        names = ", ".join(f"{peer['name']} ({short_duration(peer['seen_s'])} ago)" for peer in alive)
        if alive:
            yield Finding(Level.OK, kind, names)
        else:
            yield Finding(
                Level.FAIL, kind, f"no {kind[:-1]} was seen lately", f"start kingtask-{kind[:-1]}, or see its log"
            )
    for peer in stats["workers"]:
        if peer.get("unfit") and peer["seen_s"] < WORKER_ALIVE_S:
            yield Finding(
                Level.FAIL,
                "workers",
                f"{peer['name']}: {peer['unfit']}",
                "give its host what it is short of, or stop it",
            )
    for peer in stats["brokers"]:
        offset_s = peer.get("clock_offset_s")
        if offset_s is not None:
            yield from clock(offset_s, f"Redis against broker {peer['name']}")
    troubles = list(_queues(stats["queues"]))
    yield from troubles or [Finding(Level.OK, "queues", f"{len(stats['queues'])} known, none waits for a worker")]


def _queues(queues: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for queue in queues:
        waiting = queue["ready"] + queue["scheduled"]
        name = f"{queue['name']}: {queue['ready']} ready, {queue['scheduled']} scheduled"
        if waiting and not queue["served"]:
            yield Finding(
                Level.FAIL if queue["ready"] else Level.WARN,
                "queues",
                f"{name}, and no worker serves it",
                f"add {queue['name']} to `queues` in a worker's configuration",
            )
        elif waiting and queue["paused"]:
            yield Finding(Level.WARN, "queues", f"{name}, and it is paused", f"kingtask resume {queue['name']}")


def as_on_the_wire(stats: StoreStats) -> dict[str, Any]:
    """What a broker answers to `stats`, for when none does."""
    return stats_fields(stats)


def keep_times(broker: BrokerConfig, worker: WorkerConfig) -> Iterator[Finding]:
    """How long records stay, where the two configurations disagree."""
    for name in ("result_keep_time", "failed_keep_time"):
        one, other = getattr(broker, name), getattr(worker, name)
        if one != other:
            yield Finding(
                Level.WARN,
                "keep_time",
                f"{name} is {one:,.12g} s at the broker, {other:,.12g} s at the worker; each decides for its ends:"
                " the worker for what it ran, the broker for what was cancelled before, either for what expired or was"
                " lost",
                f"give {name} one value in both configurations",
            )


def bin_paths(directories: Sequence[str | Path]) -> Iterator[Finding]:
    """The directories of executables, as this user sees them."""
    for directory in map(Path, directories):
        problem, advice = _problem(directory)
        if problem:
            yield Finding(Level.FAIL, "bin_path", f"{directory}: {problem}", advice)
            continue
        files = [entry for entry in os.scandir(directory) if entry.is_file()]
        plain = sorted(entry.name for entry in files if not os.access(entry.path, os.X_OK))
        yield Finding(Level.OK, "bin_path", f"{directory}: {len(files) - len(plain)} executables")
        if plain:
            some = ", ".join(plain[:3]) + (", …" if len(plain) > 3 else "")
            yield Finding(
                Level.WARN, "bin_path", f"{directory}: not executable: {some}", "chmod +x what tasks may name"
            )


def _problem(directory: Path) -> tuple[str, str]:
    try:
        entry = directory.stat()
    except OSError as error:
        return error.strerror or "not readable", "make it, or correct bin_path in the worker's configuration"
    if not stat.S_ISDIR(entry.st_mode):
        return "not a directory", "bin_path names the directory that holds the executables"
    if not os.access(directory, os.R_OK | os.X_OK):
        return "not readable", "chmod a+rx, or run doctor as the worker's user"
    if entry.st_mode & stat.S_IWOTH:
        return "anybody may write to it, and so decide what the worker runs", f"chmod o-w {directory}"
    return "", ""
