"""A log event: its name (`subject=verdict`), fields, and words for people. Pure."""

from __future__ import annotations

import re
from typing import Any

_BARE = re.compile(r"[^\s\"'=]+")


class Event:
    """The message of a log record: `log.warning(Event("redis=lost", "reconnecting", address=…))`.

    As text: `redis=lost address=… : reconnecting`. A value with spaces or quotes stands as its repr.
    """

    __slots__ = ("fields", "name", "words")

    def __init__(self, name: str, words: str = "", /, **fields: Any) -> None:
        self.name = name
        self.words = words
        self.fields = fields

    def __str__(self) -> str:
        pairs = "".join(f" {name}={_shown(value)}" for name, value in self.fields.items())
        return f"{self.name}{pairs}{f': {self.words}' if self.words else ''}"


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if not isinstance(value, str) or _BARE.fullmatch(text) else repr(text)
