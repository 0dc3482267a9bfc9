"""`kingtask stats`, `pause`, `resume` and `ping`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from kingtask.cli import console
from kingtask.cli.connect import connect, shared_options
from kingtask.cli.exit import Exit
from kingtask.cli.param_types import QUEUE
from kingtask.cli.times import short_duration
from kingtask.clock import monotonic_s

Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]
"""Cells by their headings."""

QUEUE_COLUMNS: Columns = {
    "QUEUE": lambda queue: queue["name"],
    "SCHEDULED": lambda queue: queue["scheduled"],
    "READY": lambda queue: queue["ready"],
    "RUNNING": lambda queue: queue["running"],
    "OLDEST": lambda queue: short_duration(queue["oldest_waiting_s"]) if queue["ready"] else "-",
    "SUCCEEDED": lambda queue: queue["totals"].get("succeeded", 0),
    "FAILED": lambda queue: queue["totals"].get("failed", 0),
    "DONE/S": lambda queue: f"{queue['rates'].get('succeeded', 0) + queue['rates'].get('failed', 0):.1f}",
    "": lambda queue: ", ".join(["paused"] * queue["paused"] + ["no worker"] * (not queue["served"])),
}
WORKER_COLUMNS: Columns = {
    "WORKER": lambda worker: worker["name"],
    "SEEN": lambda worker: f"{short_duration(worker['seen_s'])} ago",
    "BUSY": lambda worker: (
        f"{worker.get('busy', '?')}/{worker.get('slots', '?')}{' unfit' if worker.get('unfit') else ''}"
    ),
    "QUEUES": lambda worker: ", ".join(worker.get("queues", ())),
    "HOST": lambda worker: worker.get("host", "?"),
    "VERSION": lambda worker: worker.get("version", "?"),
    "EXECUTABLES": lambda worker: ", ".join(worker.get("bin_path", ())),
}
BROKER_COLUMNS: Columns = {
    "BROKER": lambda broker: broker["name"],
    "SEEN": lambda broker: f"{short_duration(broker['seen_s'])} ago",
    "ADDRESS": lambda broker: ", ".join(broker.get("addr", ())),
    "OK MEANS": lambda broker: broker.get("ack") or "?",
    "HOST": lambda broker: broker.get("host", "?"),
    "VERSION": lambda broker: broker.get("version", "?"),
}
QUEUES = click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QUEUE)


@click.command()
@shared_options
def stats(as_json: bool) -> int:
    """Show queues, workers and brokers. Rates are per second, over the last one to two minutes."""
    with connect() as client:
        found = client.stats()
    tables = (
        _table(found["queues"], QUEUE_COLUMNS, right=range(1, 8)) or "No queues yet.",
        _table(found["workers"], WORKER_COLUMNS) or "No workers.",
        _table(found["brokers"], BROKER_COLUMNS) or "No brokers.",
    )
    console.show(as_json, found, "\n\n".join(tables))
    return Exit.OK


@click.command(short_help="Start nothing more from these queues.")
@shared_options
@QUEUES
def pause(queues: tuple[str, ...], as_json: bool) -> int:
    """Start nothing more from these queues; running tasks go on, and new tasks are still accepted."""
    return _set_paused(queues, True, as_json)


@click.command()
@shared_options
@QUEUES
def resume(queues: tuple[str, ...], as_json: bool) -> int:
    """Start tasks from these queues again."""
    return _set_paused(queues, False, as_json)


@click.command(short_help="Check that a broker answers.")
@shared_options
def ping(as_json: bool) -> int:
    """Check that a broker answers, and that it reaches Redis. The exit status is 4 if none answers."""
    with connect() as client:
        client.ping()
        sent = monotonic_s()
        pong = client.ping()
        took_ms = (monotonic_s() - sent) * 1000
    redis = f"Redis ready, an OK means {pong['ack']}" if pong["ready"] else "Redis not reachable"
    protocols = ", ".join(map(str, pong["protocols"]))
    text = f"broker {pong['broker']}: kingtask {pong['version']}, protocol {protocols}, {redis}, {took_ms:.1f} ms"
    console.show(as_json, {**pong, "round_trip_ms": round(took_ms, 3)}, text)
    return Exit.OK


def _table(rows: Sequence[Mapping[str, Any]], columns: Columns, right: Sequence[int] = ()) -> str:
    """Return a table of the rows; an empty text if there are none."""
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return console.table(list(columns), cells, right=right) if rows else ""


def _set_paused(queues: tuple[str, ...], paused: bool, as_json: bool) -> int:
    with connect() as client:
        for queue in queues:
            client.pause(queue) if paused else client.resume(queue)
            text = f"{queue}: {'paused' if paused else 'resumed'}"
            console.show(as_json, {"queue": queue, "paused": paused}, text)
    return Exit.OK
