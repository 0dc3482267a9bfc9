"""The rights in Redis that a broker and a worker need, and a search for the missing ones.

`deploy/redis/kingtask.acl` grants these. The commands of a function count as commands of its caller.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, NamedTuple

import redis

from kingtask.store.keys import Keys

Role = Literal["broker", "worker"]
Words = tuple[str | int, ...]

_FORMS: dict[Words, str] = {
    (): "del exists hgetall hkeys hlen hrandfield zcard zrandmember",
    ("-",): "hdel hexists hget hmget zrem zscore",
    ("-", "-", "-"): "hset",
    ("-", "x"): "hincrby",
    (0,): "zpopmin",
    (0, 0): "zcount zrange zrangebyscore zremrangebyrank zrevrangebyscore",
    (1,): "pexpire",
    ("x", "-"): "zadd",
}
"""Commands by the words after their key. None creates the missing key, or changes one that is not named `none`."""
WORKER_READS = "exists hget hgetall hmget zcard zrange zrangebyscore zrevrangebyscore zscore"
"""The worker's commands on every key; a broker calls any but ZPOPMIN on every key."""
WORKER_WRITES = {
    "task:none held:none": "hdel hset pexpire",
    "ready:none": "zadd zpopmin zrem",
    "expiry kept kept:none outputs:ended outputs:until running schedule workers:seen": "zadd zrem",
    "counts:none meta": "hset",
    "workers": "hdel hset",
    "finished:none": "zadd zremrangebyrank",
    "owned:none": "zrem",
}
"""The worker's further commands, by the only keys on which it may call them; `none` stands for any name."""


class Lacking(NamedTuple):
    """Rights that a daemon needs and its user lacks."""

    commands: tuple[str, ...] = ()
    keys: bool = False
    """Some or all keys of the namespace, or writing to them."""
    channels: bool = False


def trials(keys: Keys, role: Role) -> list[tuple[str, Words]]:
    """Return each command that the role needs under its name for ACLs, in a form that changes nothing if it is allowed.

    Those on several kinds of keys come once for each kind. HSETNX changes nothing once `meta` has its schema.
    """
    words_of = {name: words for words, names in _FORMS.items() for name in names.split()}
    found: list[tuple[str, Words]] = [
        ("time", ("TIME",)),
        ("function|list", ("FUNCTION", "LIST", "LIBRARYNAME", "none")),
        ("fcall", ("FCALL", "none", 1, keys.meta)),
        *(("publish", ("PUBLISH", f"{keys.prefix}none:{what}", "")) for what in ("claimed", "due", "ended", "ready")),
    ]
    rows = {"none": WORKER_READS, **WORKER_WRITES}
    if role == "broker":
        rows = {"none": " ".join(words_of.keys() - {"zpopmin"})}
        found.append(("function|load", ("FUNCTION", "LOAD", "none")))
        found.append(("hsetnx", ("HSETNX", keys.meta, "schema", 0)))
        found.append(("subscribe", ("SUBSCRIBE", keys.channel("none"))))
    for kinds, names in rows.items():
        for kind, name in product(kinds.split(), names.split()):
            found.append((name, (name.upper(), f"{keys.prefix}{kind}", *words_of[name])))
    return found


def lacking(client: Any, keys: Keys, role: Role, *, used: bool) -> Lacking:
    """Try each command; `used`: `meta` has its schema. Raises redis.RedisError if the connection breaks.

    Redis checks rights first, so after any other error the user has the right.
    """
    commands: list[str] = []
    denied_keys = denied_channels = False
    for name, words in trials(keys, role):
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
    return Lacking(tuple(dict.fromkeys(commands)), denied_keys, denied_channels)


def _send(client: Any, words: Words) -> None:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        connection.read_response()
    finally:
        if words[0] == "SUBSCRIBE":  # the connection takes no other command any more
            connection.disconnect()
        client.connection_pool.release(connection)
