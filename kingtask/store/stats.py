"""Numbers of queues, workers and brokers as Redis keeps them, turned into values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from kingtask.store.codec import hash_of
from kingtask.wire import pack, unpack_raw

WORKER_ALIVE_S = 20.0
"""A worker sends a heartbeat every 5 s. After this time without one its queues no longer count as served."""


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """`totals` since the queue was first used; `rates` per second over the last one to two minutes."""

    name: str
    paused: bool
    scheduled: int
    ready: int
    running: int
    oldest_waiting_s: float
    totals: dict[str, int]
    rates: dict[str, float]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker or broker and what its heartbeat says; `seen_s` ago."""

    name: str
    seen_s: float
    facts: dict[str, Any]

    @property
    def alive(self) -> bool:
        return self.seen_s < WORKER_ALIVE_S


Filter = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StoreStats:
    queues: list[QueueStats]
    workers: list[Peer]
    brokers: list[Peer]
    live: int = 0
    """Tasks that have not ended."""
    kept_bytes: int = 0
    """Bytes of outputs."""
    _replies: dict[Filter, dict[str, Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of the reply to `stats`."""
        served = {queue for worker in self.workers if worker.alive for queue in worker.facts.get("queues", ())}
        return {
            "queues": [{**msgspec.structs.asdict(queue), "served": queue.name in served} for queue in self.queues],
            "workers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in self.workers],
            "brokers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in self.brokers],
        }

    def reply(self, filtered: Filter) -> dict[str, Any]:
        """Return the filtered fields of a reply, which are packed once for all replies with this filter."""
        if filtered not in self._replies:
            self._replies[filtered] = {name: msgspec.Raw(pack(value)) for name, value in filtered(self.fields).items()}
        return self._replies[filtered]


def stats_of(reply: Any) -> tuple[list[tuple[str, bool]], StoreStats]:
    """Return the queues in order, with whether each is paused; and all numbers but those of the queues."""
    now_us, queues, live, kept_bytes, workers, brokers = reply
    paused = [(name, value == b"1") for name, value in sorted(hash_of(queues).items())]
    return paused, StoreStats([], _peers(workers, now_us), _peers(brokers, now_us), live, kept_bytes)


def queues_of(paused: Mapping[str, bool], reply: Any) -> list[QueueStats]:
    """Return the numbers of these queues, in the same order; zeros of one whose numbers are damaged."""
    now_us, rows = reply
    queues = []
    for (name, is_paused), row in zip(paused.items(), rows, strict=True):
        try:
            queues.append(_queue_of(name, is_paused, row, now_us / 1_000_000))
        except Exception:  # noqa: BLE001  (they may raise anything)
            queues.append(_queue_of(name, is_paused, [0, 0, []], 0.0))
    return queues


def _queue_of(name: str, paused: bool, row: list[Any], now_s: float) -> QueueStats:
    ready, oldest_ms, numbers = row
    fields = hash_of(numbers)
    totals = {key: int(n) for key, n in fields.items() if key not in ("touched", "began", "before", "owner")}
    pack(totals)  # raises OverflowError for more than 64 bits, as the reply would
    return QueueStats(
        name=name,
        paused=paused,
        scheduled=totals.pop("scheduled", 0),
        ready=ready,
        running=totals.pop("running", 0),
        oldest_waiting_s=max(0.0, now_s - oldest_ms / 1000) if oldest_ms else 0.0,
        totals=totals,
        rates=_rates(totals, fields, now_s),
    )


def _rates(totals_now: dict[str, int], fields: dict[str, bytes], now_s: float) -> dict[str, float]:
    """Return events per second over this minute and the one before: the growth of the totals since its begin."""
    ago = int(now_s // 60) - int(fields.get("touched", 0)) // 60_000
    then = "before" if ago == 0 else "began" if ago == 1 else None
    if then is None:
        return {}
    totals = unpack_raw(fields[then]) if then in fields else {}
    were = {key.decode(): n for key, n in totals.items()} if totals else {}  # Lua packs an empty map as an array
    span_s = 60 + now_s % 60
    happened = {key: n - were.get(key, 0) for key, n in totals_now.items()}
    return {key: round(n / span_s, 3) for key, n in sorted(happened.items()) if n}


def _peers(flat: list[Any], now_us: int) -> list[Peer]:
    peers = []
    for i in range(0, len(flat), 2):
        seen_ms, facts = int(flat[i + 1][:13]), msgspec.json.decode(flat[i + 1][13:] or b"{}")
        peers.append(Peer(name=flat[i].decode(), seen_s=max(0.0, now_us / 1e6 - seen_ms / 1e3), facts=facts))
    return sorted(peers, key=lambda peer: peer.name)
