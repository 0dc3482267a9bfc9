"""Names of keys and channels; `lua/00_model.lua` has the same ones and what they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

PLAN, SPEC, STATE, CREATED, OWNER = "p", "s", "t", "c", "o"
"""Fields of a task's hash whose names have one letter, as in the library: of ten million tasks each letter is 10 MB."""

KEY_PATTERNS = {
    "task": re.compile(r"task:[0-9a-f-]{36}"),
    "schedule": re.compile(r"schedule"),
    "ready": re.compile(r"ready:[^{}:]+"),
    "running": re.compile(r"running"),
    "expiry": re.compile(r"expiry"),
    "owned": re.compile(r"owned:[^{}:]+"),
    "held": re.compile(r"held:[^{}:]+"),
    "finished": re.compile(r"finished:(succeeded|failed|cancelled|expired)"),
    "outputs": re.compile(r"outputs:(ended|until)"),
    "queues": re.compile(r"queues"),
    "counts": re.compile(r"counts:[^{}:]+"),
    "workers": re.compile(r"workers(:seen)?"),
    "brokers": re.compile(r"brokers(:seen)?"),
    "meta": re.compile(r"meta"),
}
"""Every kind of key there is, behind the prefix; the tests walk the keyspace and know no other."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one namespace in one database."""

    namespace: str
    db: int = 0

    @property
    def prefix(self) -> str:
        """On every key; the braces put a namespace into one hash slot."""
        return f"{{{self.namespace}}}:"

    @property
    def meta(self) -> str:
        """KEYS[1] of every function."""
        return f"{self.prefix}meta"

    @property
    def lasting(self) -> list[str]:
        """Keys of which a namespace that was ever used has at least one."""
        return [f"{self.prefix}{kind}" for kind in ("meta", "queues", "schedule", "running", "expiry", "brokers")]

    def task(self, task_id: str) -> str:
        return f"{self.prefix}task:{task_id}"

    def channel(self, what: str) -> str:
        """Pub/sub ignores database numbers, so the channel carries its own: `due`, `ready`, `cancel`, `ended`."""
        return f"{self.prefix}{self.db}:{what}"
