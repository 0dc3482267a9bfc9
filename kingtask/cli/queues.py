"""`kingtask stats`, `pause`, `resume` and `ping`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kingtask.cli import console
from kingtask.cli.connect import connect, shared_options
from kingtask.cli.exit import Exit
from kingtask.cli.param_types import QUEUE
from kingtask.cli.times import short_duration
from kingtask.clock import monotonic_s

QUEUES = click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QUEUE)


@click.command()
@shared_options
def stats(as_json: bool) -> int:
    """Show queues, workers and brokers. Rates are per second, over the last one to two minutes."""
    with connect() as client:
        found = client.stats()
    tables = (_queues(found["queues"]), _workers(found["workers"]), _brokers(found["brokers"]))
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


def _set_paused(queues: tuple[str, ...], paused: bool, as_json: bool) -> int:
    with connect() as client:
        for queue in queues:
            client.pause(queue) if paused else client.resume(queue)
            text = f"{queue}: {'paused' if paused else 'resumed'}"
            console.show(as_json, {"queue": queue, "paused": paused}, text)
    return Exit.OK


def _queues(queues: list[Mapping[str, Any]]) -> str:
    headings = ("QUEUE", "SCHEDULED", "READY", "RUNNING", "OLDEST", "SUCCEEDED", "FAILED", "DONE/S", "")
    rows = []
    for queue in queues:
        totals, rates = queue["totals"], queue["rates"]
        remarks = [*(["paused"] if queue["paused"] else []), *([] if queue["served"] else ["no worker"])]
        row = (
            *(queue[name] for name in ("name", "scheduled", "ready", "running")),
            short_duration(queue["oldest_waiting_s"]) if queue["ready"] else "-",
            totals.get("succeeded", 0),
            totals.get("failed", 0),
            f"{rates.get('succeeded', 0) + rates.get('failed', 0):.1f}",
            ", ".join(remarks),
        )
        rows.append(row)
    return console.table(headings, rows, right=range(1, 8)) if rows else "No queues yet."


def _workers(workers: list[Mapping[str, Any]]) -> str:
    headings = ("WORKER", "SEEN", "BUSY", "QUEUES", "HOST", "VERSION", "EXECUTABLES")
    rows = [
        (
            worker["name"],
            f"{short_duration(worker['seen_s'])} ago",
            f"{worker.get('busy', '?')}/{worker.get('slots', '?')}{' unfit' if worker.get('unfit') else ''}",
            ", ".join(worker.get("queues", ())),
            worker.get("host", "?"),
            worker.get("version", "?"),
            ", ".join(worker.get("bin_path", ())),
        )
        for worker in workers
    ]
    return console.table(headings, rows) if rows else "No workers."


def _brokers(brokers: list[Mapping[str, Any]]) -> str:
    headings = ("BROKER", "SEEN", "ADDRESS", "OK MEANS", "HOST", "VERSION")
    rows = [
        (
            broker["name"],
            f"{short_duration(broker['seen_s'])} ago",
            ", ".join(broker.get("addr", ())),
            broker.get("ack") or "?",
            broker.get("host", "?"),
            broker.get("version", "?"),
        )
        for broker in brokers
    ]
    return console.table(headings, rows) if rows else "No brokers."
