"""Values that configuration decides and the store carries out. Nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NAMESPACE_PATTERN = r"\A[A-Za-z0-9_.-]{1,32}\Z"
CLUSTER_PATTERN = r"\A[0-9a-f]{32}\Z"

AckLevel = Literal["stored", "fsync", "replicas"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The level that an OK must have. `level` None: `fsync` if the server offers it, else `stored`."""

    level: AckLevel | None = None
    replicas: int = 1
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules for tasks from the configuration; every process that can end a task passes its own."""

    keep_ms: int = 86_400_000
    failed_keep_ms: int = 7 * 86_400_000
    lease_ms: int = 15_000
    max_lost: int = 3
    max_queues: int = 1_000
    max_queue_length: int = 10_000_000
    max_tasks: int = 20_000_000
    max_result_bytes: int = 1024 * 1024 * 1024
    kept_bounds: dict[str, int] = field(default_factory=dict, hash=False)
    """The most bytes that ended tasks of an owner keep; "" stands for each owner that is not named, 0 for no bound."""
