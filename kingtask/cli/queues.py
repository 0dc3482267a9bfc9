"""`kingtask stats`, `pause`, `resume` and `ping`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kingtask.cli import console
from kingtask.cli.connect import broker_option, connect, json_option, timeout_option
from kingtask.cli.exit import Exit
from kingtask.cli.param_types import QUEUE
from kingtask.cli.times import short_duration
from kingtask.clock import monotonic_s

QUEUES = click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QUEUE)


@click.command()
@json_option
@broker_option
@timeout_option
def stats(as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    """Show queues, workers and brokers. Rates are per second, over the last one to two minutes."""
    with connect(broker, timeout) as client:
        found = client.stats()
    if as_json:
        console.write_json(found)
    else:
        console.say("\n\n".join((_queues(found["queues"]), _workers(found["workers"]), _brokers(found["brokers"]))))
    return Exit.OK


@click.command(short_help="Start nothing more from these queues.")
@json_option
@broker_option
@timeout_option
@QUEUES
def pause(queues: tuple[str, ...], as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    """Start nothing more from these queues; what runs goes on, and tasks are still accepted."""
    return _set_paused(queues, True, as_json, broker, timeout)


@click.command()
@json_option
@broker_option
@timeout_option
@QUEUES
def resume(queues: tuple[str, ...], as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    """Start tasks from these queues again."""
    return _set_paused(queues, False, as_json, broker, timeout)


@click.command(short_help="Ask a broker whether it is there.")
@json_option
@broker_option
@timeout_option
def ping(as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    """Ask a broker whether it is there, and whether Redis is behind it. The exit status is 4 if none answers."""
    with connect(broker, timeout) as client:
        client.ping()
        sent = monotonic_s()
        pong = client.ping()
        took_ms = (monotonic_s() - sent) * 1000
    if as_json:
        console.write_json({**pong, "round_trip_ms": round(took_ms, 3)})
        return Exit.OK
    redis = f"Redis ready, an OK means {pong['ack']}" if pong["ready"] else "Redis not reachable"
    protocols = ", ".join(map(str, pong["protocols"]))
    console.say(f"broker {pong['broker']}: kingtask {pong['version']}, protocol {protocols}, {redis}, {took_ms:.1f} ms")
    return Exit.OK


def _set_paused(queues: tuple[str, ...], paused: bool, as_json: bool, broker: tuple[str, ...], timeout: float) -> int:
    with connect(broker, timeout) as client:
        for queue in queues:
            client.pause(queue) if paused else client.resume(queue)
            if as_json:
                console.write_json({"queue": queue, "paused": paused})
            else:
                console.say(f"{queue}: {'paused' if paused else 'resumed'}")
    return Exit.OK


def _queues(queues: list[Mapping[str, Any]]) -> str:
    headings = ("QUEUE", "SCHEDULED", "READY", "RUNNING", "OLDEST", "SUCCEEDED", "FAILED", "DONE/S", "")
    rows = []
    for queue in queues:
        totals, rates = queue["totals"], queue["rates"]
        remarks = ["paused"] if queue["paused"] else []
        remarks += [] if queue["served"] else ["no worker"]
        rows.append(
            (
                queue["name"],
                queue["scheduled"],
                queue["ready"],
                queue["running"],
                short_duration(queue["oldest_waiting_s"]) if queue["ready"] else "-",
                totals.get("succeeded", 0),
                totals.get("failed", 0),
                f"{rates.get('succeeded', 0) + rates.get('failed', 0):.1f}",
                ", ".join(remarks),
            )
        )
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
