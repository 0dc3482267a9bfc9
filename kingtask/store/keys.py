"""Names of keys and channels; `lua/00_model.lua` has the same ones and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

PLAN, SPEC, STATE, CREATED, OWNER, QUOTA, GIVEN, LIMITS = "p", "s", "t", "c", "w", "o", "g", "k"
"""Fields of a task's hash whose names have one letter, as in the library: of ten million tasks each letter is 10 MB."""


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
        """Pub/sub ignores database numbers, so the channel carries its own. `BrokerStore.listen` lists them."""
        return f"{self.prefix}{self.db}:{what}"
