"""The rights in Redis that a broker and a worker need, and a search for the missing ones.

`deploy/redis/kingtask.acl` grants these. The commands of a function count as commands of its caller.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import redis

from kingtask.store.keys import Keys

Role = Literal["broker", "worker"]
Words = tuple[str | int, ...]

_BOTH: dict[Words, str] = {
    (): "exists hgetall zcard",
    ("-",): "hdel hget hmget zrem zscore",
    ("-", "-", "-"): "hset",
    (0, 0): "zrange zrangebyscore zremrangebyrank zrevrangebyscore",
    (1,): "pexpire",
    ("x", "-"): "zadd",
}
_ONLY: dict[Role, dict[Words, str]] = {
    "broker": {
        (): "del hkeys hlen hrandfield zrandmember",
        ("-",): "hexists",
        ("-", "x"): "hincrby",
        (0,): "hscan",
        (0, 0): "zcount",
    },
    "worker": {(0,): "zpopmin"},
}
"""Commands by the words after their key. None creates the missing key: no value, or `x` in place of a number."""


class Lacking(NamedTuple):
    """Rights that a daemon needs and its user lacks."""

    commands: tuple[str, ...] = ()
    keys: bool = False
    """Some or all keys of the namespace, or writing to them."""
    channels: bool = False


def trials(keys: Keys, role: Role) -> dict[str, Words]:
    """Return each command that the role needs, by its name for ACLs, in a form that changes nothing if it is allowed.

    No key, field or channel exists, except for HSETNX, which changes nothing once `meta` has its schema.
    """
    found: dict[str, Words] = {
        "time": ("TIME",),
        "fcall": ("FCALL", "none", 1, keys.meta),
        "function|load": ("FUNCTION", "LOAD", "none"),
        "publish": ("PUBLISH", keys.channel("none"), ""),
    }
    for words, names in [*_BOTH.items(), *_ONLY[role].items()]:
        found.update((name, (name.upper(), f"{keys.prefix}none", *words)) for name in names.split())
    if role == "broker":
        found["hsetnx"] = ("HSETNX", keys.meta, "schema", 0)
        found["subscribe"] = ("SUBSCRIBE", keys.channel("none"))
    return found


def lacking(client: Any, keys: Keys, role: Role, *, used: bool) -> Lacking:
    """Try each command; `used`: `meta` has its schema. Raises redis.RedisError if the connection breaks.

    Redis checks rights first, so after any other error the user has the right.
    """
    commands: list[str] = []
    denied_keys = denied_channels = False
    for name, words in trials(keys, role).items():
        if name == "hsetnx" and not used:
            continue
        try:
            _send(client, words)
        except redis.exceptions.NoPermissionError as error:
            if "permissions to run" in str(error):
                commands.append(name)
            elif "channel" in str(error):
                denied_channels = True
            else:
                denied_keys = True
        except redis.ResponseError:
            pass
    return Lacking(tuple(commands), denied_keys, denied_channels)


def _send(client: Any, words: Words) -> None:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        connection.read_response()
    finally:
        if words[0] == "SUBSCRIBE":  # the connection takes no other command any more
            connection.disconnect()
        client.connection_pool.release(connection)
