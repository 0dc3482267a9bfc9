"""What a case starts, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tests.servers import Option

if TYPE_CHECKING:
    from tests.faults.stage import FaultTestbed

LINKS = frozenset({"broker>redis", "worker>redis", "worker>broker", "client>broker"})


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Instead of one Redis: a primary and two replicas on three machines, watched by three sentinels."""

    sentinels: tuple[int, int, int] = (1, 2, 3)
    """Their machines."""
    daemons: tuple[int, ...] = (1, 2)
    """Machines of the brokers, and of the workers."""
    confirmed_by: int = 2
    """`ack_replicas`."""
    parted: bool = False
    """Each machine has a network namespace of its own, which can be cut off."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a case starts."""

    brokers: int = 2
    workers: int = 2
    clients: int = 2
    slots: int = 4
    lease_s: float = 2.0
    max_lost: int = 20
    ack: Literal["stored", "fsync", "replicas"] = "fsync"
    client_timeout_s: float = 10.0
    proxied: frozenset[str] = frozenset()
    """Which connections pass a proxy: any of LINKS."""
    redis: Mapping[str, Option] = field(default_factory=dict)
    broker: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    broker_limits: tuple[str, ...] = ()
    """Options of prlimit(1) for brokers, such as `--nofile=256`."""
    keys: bool = False
    """Brokers ask for keys; workers and clients have one."""
    fleet: Fleet | None = None
    variant: str = ""
    """Of the product, broken on purpose: a name of variants.py, or `no_barrier`."""
    prepare: Callable[[FaultTestbed], None] | None = None
    """Before Redis is started; may raise Skipped."""
    cleanup: Callable[[FaultTestbed], None] | None = None


class Skipped(Exception):
    """This machine does not permit the case; says what is missing."""
