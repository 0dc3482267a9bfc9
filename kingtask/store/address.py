"""The `redis:` setting: what forms it takes and what is read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import msgspec

from kingtask.errors import ConfigurationError

FORMS = "host:port, host:port/db, redis://[user:password@]host:port/db, rediss://…, unix:///path?db=0"


class RedisTLS(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths of PEM files; `cert` and `key` only where the server asks clients for one."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: RedisTLS | None = None

    def __str__(self) -> str:
        """For logs: without the password."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


def parse_address(text: str, *, password: str | None = None, tls: RedisTLS | None = None) -> RedisAddress:
    """Read one of FORMS. `password` (of redis_password_file) wins over the URL's. Raises ConfigurationError."""
    url = urlsplit(text if "://" in text else f"redis://{text}")
    if url.scheme not in ("redis", "rediss", "unix"):
        raise _wrong(text, f"{url.scheme}:// is not known")
    try:
        port = url.port if url.port is not None else 6379
    except ValueError:
        raise _wrong(text, "the port is not a number from 1 to 65535") from None
    query = dict(part.partition("=")[::2] for part in url.query.split("&") if part)
    if set(query) - {"db"}:
        raise _wrong(text, f"unknown parameter {min(set(query) - {'db'})!r}")
    database = query.get("db") or ("0" if url.scheme == "unix" else url.path.strip("/") or "0")
    if not database.isascii() or not database.isdigit() or len(database) > 4:
        raise _wrong(text, f"the database {database!r} is not a number")
    if url.scheme == "unix" and not url.path:
        raise _wrong(text, "the path of the socket is missing")
    if url.scheme != "unix" and not (1 <= port <= 65535 and url.hostname):
        raise _wrong(text, "the host or port is missing")
    if tls is not None and url.scheme == "unix":
        raise _wrong(text, "redis_tls does not go with a unix socket")
    return RedisAddress(
        host=url.hostname or "",
        port=port,
        path=unquote(url.path) if url.scheme == "unix" else None,
        db=int(database),
        user=unquote(url.username) if url.username else None,
        password=password if password is not None else (unquote(url.password) if url.password else None),
        tls=tls or (RedisTLS() if url.scheme == "rediss" else None),
    )


def _wrong(text: str, why: str) -> ConfigurationError:
    shown = text if "@" not in text else f"…@{text.rpartition('@')[2]}"
    return ConfigurationError(f"redis: cannot read {shown!r}: {why}; expected one of: {FORMS}")
