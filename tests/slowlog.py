"""Which functions a server was asked to run, as its own log of commands has them."""

from __future__ import annotations

import re
from collections import Counter
from types import TracebackType
from typing import Any, Self

import redis

_CALL = re.compile(rb"FCALL kingtask_(\w+)_[0-9a-f]+ ")
ENTRIES = 1_000_000


class Calls:
    """A context; `made()` counts the calls since it was entered by the name of their function."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def __enter__(self) -> Self:
        self._client.config_set("slowlog-max-len", ENTRIES)
        self._client.config_set("slowlog-log-slower-than", 0)
        self._client.slowlog_reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.config_set("slowlog-log-slower-than", -1)

    def made(self) -> Counter[str]:
        entries: Any = self._client.slowlog_get(ENTRIES)
        found = (_CALL.match(entry["command"]) for entry in entries)
        return Counter(call[1].decode() for call in found if call)
