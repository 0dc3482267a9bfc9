"""The `redis:` setting: its forms, and the address in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

import msgspec

from kingtask.errors import ConfigurationError

FORMS = (
    "host:port, host:port/db, redis://[user:password@]host:port/db, rediss://…, unix:///path?db=0,"
    " redis+sentinel://[user:password@]host:port,host:port/service/db"
)

SENTINEL_SCHEME = "redis+sentinel://"
SENTINEL_PORT = 26379


class RedisTLS(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths of PEM files; `cert` and `key` only where the server requires client certificates."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinels:
    """The sentinels that know the primary; user and password are for the sentinels themselves."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """One server, or with `sentinels` the primary of a service, whose host and port they name."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: RedisTLS | None = None
    sentinels: Sentinels | None = None

    def __str__(self) -> str:
        """For logs: without the password."""
        if self.sentinels:
            hosts = ",".join(_host_port(*host) for host in self.sentinels.hosts)
            return f"{SENTINEL_SCHEME}{hosts}/{self.sentinels.service}/{self.db}"
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        return f"{'rediss' if self.tls else 'redis'}://{_host_port(self.host, self.port)}/{self.db}"


def parse_address(
    text: str,
    *,
    password: str | None = None,
    tls: RedisTLS | None = None,
    sentinel_user: str | None = None,
    sentinel_password: str | None = None,
    default_port: int = 6379,
) -> RedisAddress:
    """Read one of FORMS. `password` (of redis_password_file) wins over the URL's.

    Raises ConfigurationError, which never quotes the text: it may hold a password anywhere.
    """
    if text.startswith(SENTINEL_SCHEME):
        address = _behind_sentinels(text.removeprefix(SENTINEL_SCHEME), sentinel_user, sentinel_password)
        return replace(address, password=address.password if password is None else password, tls=tls)
    try:
        url = urlsplit(text if "://" in text else f"redis://{text}")
        port = default_port if url.port is None else url.port
    except ValueError:
        raise _wrong("the host cannot be read, or the port is not a number from 1 to 65535") from None
    if url.scheme not in ("redis", "rediss", "unix"):
        raise _wrong("it begins with another scheme")
    if url.fragment:
        raise _wrong("it holds a #")
    query = dict(part.partition("=")[::2] for part in url.query.split("&") if part)
    if set(query) - {"db"}:
        raise _wrong("the only parameter is db")
    unix = url.scheme == "unix"
    if unix and (not url.path.strip("/") or url.hostname):
        raise _wrong("the path of the socket is missing or not absolute")
    if not unix and not (1 <= port <= 65535 and url.hostname):
        raise _wrong("the host is missing, or the port is not a number from 1 to 65535")
    database = query.get("db") or ("" if unix else url.path.strip("/")) or "0"
    if not database.isascii() or not database.isdigit() or len(database) > 4:
        raise _wrong("the database is not a number")
    if unix and tls is not None:
        raise _wrong("redis_tls does not go with a unix socket")
    return RedisAddress(
        host=url.hostname or "",
        port=port,
        path=unquote(url.path) if unix else None,
        db=int(database),
        user=unquote(url.username) if url.username else None,
        password=password if password is not None else (unquote(url.password) if url.password else None),
        tls=tls or (RedisTLS() if url.scheme == "rediss" else None),
    )


def _behind_sentinels(text: str, user: str | None, password: str | None) -> RedisAddress:
    authority, _, path = text.partition("/")
    login, at, hosts = authority.rpartition("@")
    service, _, database = path.partition("/")
    if any(mark in text for mark in "?#") or "@" in path or "/" in database.rstrip("/"):
        raise _wrong("behind the hosts of the sentinels stand the name of the service and the database")
    try:
        servers = [parse_address(host, default_port=SENTINEL_PORT) for host in hosts.split(",")]
        redis = parse_address(f"redis://{login}{at}redis/{database}")
    except ConfigurationError as error:
        raise _wrong(str(error).removeprefix("redis: ").partition(";")[0]) from None
    if any(server.db or server.user or server.password or server.path for server in servers):
        raise _wrong("a host is not host:port")
    if not service:
        raise _wrong("the name of the service is missing")
    pairs = tuple((server.host, server.port) for server in servers)
    sentinels = Sentinels(hosts=pairs, service=unquote(service), user=user, password=password)
    return replace(redis, host="", port=0, sentinels=sentinels)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wrong(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"redis: {why}; expected one of: {FORMS} (in user and password, # / ? @ and : are written as %xx)"
    )
