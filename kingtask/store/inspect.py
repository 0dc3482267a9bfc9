"""Inspect a Redis server for `kingtask doctor`. Nothing is written; facts that this user may not read stay unknown.

Uses redis-py, blocking: this is not a path that anything waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.utils import str_if_bytes

from kingtask.clock import wall_s
from kingtask.errors import StoreError
from kingtask.store import functions
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from kingtask.store.redis.address import RedisAddress
from kingtask.store.redis.handshake import OLDEST, ServerFacts, release_of
from kingtask.store.redis.redis_errors import not_permitted_within
from kingtask.store.redis.sentinel import Asker, Named, options_of
from kingtask.store.rights import Lacking, Role, lacking
from kingtask.store.stats import StoreStats

SETTINGS = "appendonly appendfsync no-appendfsync-on-rewrite save maxmemory maxmemory-policy".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Facts about a server. None or empty: not permitted, or absent."""

    server: ServerFacts
    """`settings` is empty where CONFIG is not permitted."""
    too_old: bool
    role: str
    offset_s: float | None
    """The server's clock minus this host's."""
    round_trip_s: float
    info: dict[str, Any]
    functions: bool | None
    """False: the server has no functions at all; None: they may not be listed."""
    library: bool
    """Whether the library of this release is loaded."""
    schema: int | None
    """The schema in `meta`; None: the namespace is new."""
    cluster: str
    """Likewise; empty if it is new."""
    used: bool
    """It has keys, whatever `meta` says."""
    stats: StoreStats | None
    denied: tuple[str, ...] = field(default=())
    """Commands that this user may not call."""
    anonymous: bool = False
    """It asks for no password or certificate, and no mode of its socket keeps local users out."""
    lacking: Lacking = field(default_factory=Lacking)
    """Rights that the daemon needs and this user lacks."""
    sentinels: tuple[Asked, ...] = field(default=())
    """Each sentinel's answer about the primary, which is the inspected server."""


class Asked(NamedTuple):
    """One sentinel, and its answer."""

    host: str
    answer: Named | StoreError


def inspect(address: RedisAddress, namespace: str, *, timeout_s: float = 5.0) -> Inspection:
    """Inspect a broker's server; blocks for some round trips of at most `timeout_s` each. Raises StoreError."""
    address, asked = _primary(address, timeout_s)
    with _connected(address, timeout_s) as client:
        found = _inspect(client, Keys(namespace, address.db))
    return replace(found, anonymous=_anonymous(address, timeout_s), sentinels=asked)


def rights(address: RedisAddress, namespace: str, role: Role, *, timeout_s: float = 5.0) -> Lacking:
    """Return the rights that the user of this address lacks for the role; blocks likewise. Raises StoreError."""
    address, _ = _primary(address, timeout_s)
    with _connected(address, timeout_s) as client:
        client.execute_command("PING")
        return lacking(client, Keys(namespace, address.db), role, used=False)


def _anonymous(address: RedisAddress, timeout_s: float) -> bool:
    closed = address.path is not None and not Path(address.path).stat().st_mode & 0o002
    if closed or (address.tls is not None and address.tls.cert):
        return False
    with suppress(StoreError), _connected(replace(address, user=None, password=None), timeout_s) as client:
        return bool(client.ping())
    return False


@contextmanager
def _connected(address: RedisAddress, timeout_s: float) -> Iterator[Any]:
    """A client within the block, whose errors become StoreErrors."""
    where: dict[str, Any] = {"host": address.host, "port": address.port}
    client: Any = redis.Redis(
        **(where if address.path is None else {"unix_socket_path": address.path}),
        **options_of(address, timeout_s),
        db=address.db,
        username=address.user,
        password=address.password,
    )
    try:
        yield client
    except redis.AuthenticationError as error:
        raise StoreError("auth", str(error)) from None
    except redis.RedisError as error:
        kind = "lost" if isinstance(error, (redis.ConnectionError, redis.TimeoutError)) else "error"
        raise StoreError(kind, str(error)) from None
    finally:
        client.close()


def _primary(address: RedisAddress, timeout_s: float) -> tuple[RedisAddress, tuple[Asked, ...]]:
    """Return the server to inspect, and the answers of its sentinels."""
    if address.sentinels is None:
        return address, ()
    asker = Asker(address, timeout_s)
    asked = []
    for (host, port), client in zip(address.sentinels.hosts, asker.clients, strict=True):
        with client:
            asked.append(Asked(f"{host}:{port}", asker.ask(client)))
    return asker.address_of(asker.believe(answer for _, answer in asked)), tuple(asked)


class _Asking:
    """Commands that may be denied or unknown: the answer, or None and a note."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.denied: list[str] = []
        self.unknown: list[str] = []

    def ask(self, command: str, *words: str | bytes | int) -> Any:
        try:
            return self._client.execute_command(command, *words)
        except redis.ResponseError as error:
            if isinstance(error, redis.exceptions.NoPermissionError) or not_permitted_within(str(error)):
                self.denied.append(command)
            elif "unknown command" in str(error).lower():
                self.unknown.append(command)
            else:
                raise
        return None


def _inspect(client: Any, keys: Keys) -> Inspection:
    asking = _Asking(client)
    client.execute_command("PING")
    offset_s, round_trip_s = _clock(asking)
    info = asking.ask("INFO") or {}
    product = "valkey" if "valkey_version" in info else "redis"
    listed = asking.ask("FUNCTION LIST", "LIBRARYNAME", f"kingtask_{shipped().hash}")
    version = str(info.get(f"{product}_version", "unknown"))
    schema = asking.ask("HGET", keys.meta, "schema")
    settings: dict[str, str] = {}
    for name in SETTINGS:
        settings.update(asking.ask("CONFIG GET", name) or {})
    return Inspection(
        server=ServerFacts(
            product=product,
            version=version,
            settings=settings,
            replicas=int(info.get("connected_slaves", 0)),
        ),
        too_old=bool(info) and release_of(version) < OLDEST[product],
        role=str(info.get("role", "unknown")),
        offset_s=offset_s,
        round_trip_s=round_trip_s,
        info=info,
        functions=False if "FUNCTION LIST" in asking.unknown else None if listed is None else True,
        library=bool(listed),
        schema=None if schema is None else int(schema),
        cluster=str_if_bytes(asking.ask("HGET", keys.meta, "cluster") or ""),
        used=bool(asking.ask("EXISTS", *keys.lasting)),
        stats=_stats(asking, keys) if listed else None,
        denied=tuple(asking.denied),
        lacking=lacking(client, keys, "broker", used=schema is not None),
    )


def _clock(asking: _Asking) -> tuple[float | None, float]:
    """Return offset and round trip of the fastest of three TIME calls."""
    samples = []
    for _ in range(3):
        sent = wall_s()
        answer = asking.ask("TIME")
        received = wall_s()
        if answer is None:
            return None, received - sent
        seconds, micros = answer
        samples.append((received - sent, seconds + micros / 1e6 - (sent + received) / 2))
    round_trip_s, offset_s = min(samples)
    return offset_s, round_trip_s


def _stats(asking: _Asking, keys: Keys) -> StoreStats | None:
    calls, value = functions.gather_stats(), None
    while True:
        try:
            call = calls.send(value)
        except StopIteration as done:
            found: StoreStats = done.value
            return found
        answer = asking.ask("FCALL_RO", shipped().function(call.function), 1, keys.meta, call.payload(keys.db))
        if answer is None:
            return None
        value = call.decode(answer)
