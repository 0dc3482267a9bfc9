"""Numbers of queues, workers and brokers as Redis keeps them, turned into values. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from kingtask.store.codec import hash_of
from kingtask.wire import unpack_raw

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


class StoreStats(NamedTuple):
    queues: list[QueueStats]
    workers: list[Peer]
    brokers: list[Peer]


def stats_of(reply: Any) -> StoreStats:
    now_us, rows, workers, brokers = reply
    queues = [_queue_of(row, now_us / 1_000_000) for row in rows]
    return StoreStats(sorted(queues, key=lambda queue: queue.name), _peers(workers, now_us), _peers(brokers, now_us))


def stats_fields(stats: StoreStats) -> dict[str, Any]:
    """Return the fields of the reply to `stats`."""
    alive = [worker for worker in stats.workers if worker.seen_s < WORKER_ALIVE_S]
    served = {queue for worker in alive for queue in worker.facts.get("queues", ())}
    return {
        "queues": [{**msgspec.structs.asdict(queue), "served": queue.name in served} for queue in stats.queues],
        "workers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in stats.workers],
        "brokers": [{**peer.facts, "name": peer.name, "seen_s": round(peer.seen_s, 3)} for peer in stats.brokers],
    }


def _queue_of(row: list[Any], now_s: float) -> QueueStats:
    name, paused, ready, oldest_ready_s, totals = _figures_of(row, now_s)
    return QueueStats(
        name=name,
        paused=paused,
        scheduled=totals.pop("scheduled", 0),
        ready=ready,
        running=totals.pop("running", 0),
        oldest_waiting_s=oldest_ready_s,
        totals=totals,
        rates=_rates(totals, hash_of(row[-1]), now_s),
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


class QueueFigures(NamedTuple):
    """A queue without rates, for frequent readers."""

    name: str
    paused: bool
    ready: int
    oldest_ready_s: float
    counts: dict[str, int]
    """`scheduled` and `running` now, all others since the queue was first used."""


class QueuesPage(NamedTuple):
    now_us: int
    cursor: str
    """Where the next page begins; "0": there is none."""
    queues: list[QueueFigures]
    names: int
    """Number of queues on all pages."""
    live: int
    """Tasks that have not ended."""
    kept_bytes: int
    """Bytes of outputs, and of what ended tasks were given."""
    workers: int
    brokers: int


def queues_of(reply: Any) -> QueuesPage:
    now_us, cursor, rows, *totals = reply
    return QueuesPage(now_us, cursor.decode(), [_figures_of(row, now_us / 1_000_000) for row in rows], *totals)


def _figures_of(row: list[Any], now_s: float) -> QueueFigures:
    name, paused, ready, oldest_ms, numbers = row
    waited_s = max(0.0, now_s - oldest_ms / 1000) if oldest_ms else 0.0
    counts = {key: int(n) for key, n in hash_of(numbers).items() if key not in ("touched", "began", "before")}
    return QueueFigures(name.decode(), bool(paused), ready, waited_s, counts)


def _peers(flat: list[Any], now_us: int) -> list[Peer]:
    peers = []
    for i in range(0, len(flat), 2):
        seen_ms, facts = int(flat[i + 1][:13]), msgspec.json.decode(flat[i + 1][13:] or b"{}")
        peers.append(Peer(name=flat[i].decode(), seen_s=max(0.0, now_us / 1e6 - seen_ms / 1e3), facts=facts))
    return sorted(peers, key=lambda peer: peer.name)
