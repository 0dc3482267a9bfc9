"""What a user of Redis has to be allowed, as broker or as worker, and a check of the missing rights.

`deploy/redis/kingtask.acl` grants just this. The commands of a function count as its caller's, so they are listed, too.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import redis

from kingtask.store.keys import Keys

Role = Literal["broker", "worker"]
Words = tuple[str | int, ...]

_BOTH: dict[str, Words] = {
    "exists": (),
    "hdel": ("-",),
    "hget": ("-",),
    "hgetall": (),
    "hmget": ("-",),
    "hset": ("-", "-", "-"),
    "pexpire": (1,),
    "zadd": ("x", "-"),
    "zcard": (),
    "zrange": (0, 0),
    "zrangebyscore": (0, 0),
    "zrem": ("-",),
    "zremrangebyrank": (0, 0),
    "zrevrangebyscore": (0, 0),
    "zscore": ("-",),
}
_WORKER: dict[str, Words] = {"zpopmin": (0,)}
_BROKER: dict[str, Words] = {
    "del": (),
    "hexists": ("-",),
    "hincrby": ("-", "x"),
    "hkeys": (),
    "hlen": (),
    "hrandfield": (),
    "hscan": (0,),
    "zcount": (0, 0),
    "zrandmember": (),
}
"""What to write behind a key that does not exist so that it never will: no value, or a number that is none."""

NOT_TRIED = {
    "broker": frozenset("config|get fcall_ro function|list info ping select wait".split()),
    "worker": frozenset("config|get function|list info ping select wait".split()),
}
"""What the role uses beside that: others say if it is missing, or nothing depends on it."""


class Lacking(NamedTuple):
    """What a user may not do although its daemon has to."""

    commands: tuple[str, ...] = ()
    keys: bool = False
    """Some or all of the namespace, or only to write."""
    channels: bool = False


def trials(keys: Keys, role: Role) -> dict[str, Words]:
    """Each command that the role cannot do without, by its name for ACLs, in a form that changes nothing.

    Not even if it is allowed, for which every key, field and channel is one that does not exist; except HSETNX, which
    changes nothing once `meta` has its schema.
    """
    with_keys = _BOTH | (_BROKER if role == "broker" else _WORKER)
    found: dict[str, Words] = {
        "time": ("TIME",),
        "fcall": ("FCALL", "none", 1, keys.meta),
        "function|load": ("FUNCTION", "LOAD", "none"),
        "publish": ("PUBLISH", keys.channel("none"), ""),
        **{name: (name.upper(), f"{keys.prefix}none", *words) for name, words in with_keys.items()},
    }
    if role == "broker":
        found["hsetnx"] = ("HSETNX", keys.meta, "schema", 0)
        found["subscribe"] = ("SUBSCRIBE", keys.channel("none"))
    return found


def lacking(client: Any, keys: Keys, role: Role, *, used: bool) -> Lacking:
    """Try everything; `used` says that `meta` has its schema.

    Redis checks rights first, so whatever another error says, the user may. Raises redis.RedisError if the connection
    breaks.
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
        if words[0] == "SUBSCRIBE":  # it would take nothing else any more
            connection.disconnect()
        client.connection_pool.release(connection)
