"""`kingtask doctor`: what is wrong, or will be, and what to do about it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kingtask.cli import console
from kingtask.cli.connect import broker_option, connect, json_option, timeout_option
from kingtask.cli.exit import Exit
from kingtask.errors import ConfigurationError, KingtaskError, PermissionDenied, StoreError

if TYPE_CHECKING:
    from kingtask.cli.findings import Finding
    from kingtask.config import BrokerConfig

FILE = click.Path(readable=False, path_type=Path)  # what cannot be read is a finding


@click.command(short_help="Examine everything: what is wrong, and what to do about it.")
@click.option("-c", "--config", metavar="FILE", type=FILE, help="A broker's configuration: examine it and its Redis.")
@click.option(
    "--worker-config",
    metavar="FILE",
    type=FILE,
    help="A worker's configuration: examine it, its bin_path and its Redis.",
)
@json_option
@broker_option
@timeout_option
@click.pass_context
def doctor(
    context: click.Context,
    config: Path | None,
    worker_config: Path | None,
    as_json: bool,
    broker: tuple[str, ...],
    timeout: float,
) -> int:
    """Examine brokers, Redis, workers and queues: a line each, ok, warn or fail, and what to do.

    The exit status is 0 if nothing fails, else 1. Nothing is changed. With -c the broker examined is that of the
    configuration, unless --broker or KINGTASK_BROKER names others.
    """
    named = context.get_parameter_source("broker") is not ParameterSource.DEFAULT
    failed = False
    for finding in examine(config, worker_config, broker, timeout, brokers_named=named):
        failed = failed or finding.level == "fail"
        if as_json:
            console.write_json(finding._asdict())
        else:
            advice = f"\n{'':16}→ {finding.advice}" if finding.advice else ""
            console.say(f"{finding.level:<5}{finding.subject:<10} {console.visible(finding.text)}{advice}")
    return Exit.TASK_FAILED if failed else Exit.OK


def examine(
    config: Path | None,
    worker_config: Path | None,
    brokers: tuple[str, ...],
    timeout: float,
    *,
    brokers_named: bool,
) -> Iterator[Finding]:
    """Everything there is to say, in the order in which it matters."""
    from kingtask.cli import findings
    from kingtask.config import load_broker

    settings: BrokerConfig | None = None
    if config is not None:
        try:
            settings = load_broker(config)
        except ConfigurationError as error:
            yield findings.Finding(findings.Level.FAIL, "config", str(error), "mend this file, or name the right one")
    if not brokers_named:
        brokers = settings.addr if settings else brokers[:1]
    stats = yield from _brokers(brokers, timeout)
    if settings is not None:
        yield from findings.reach(settings)
        recorded = yield from _redis(settings, timeout)
        stats = stats or recorded
    elif config is None:
        yield findings.Finding(
            findings.Level.WARN, "redis", "not examined", "give a broker's configuration: -c broker.yaml"
        )
    if stats is not None:
        yield from findings.peers(stats)
    if worker_config is not None:
        yield from _worker(worker_config, settings, timeout)


def _brokers(addresses: tuple[str, ...], timeout: float) -> Generator[Finding, None, Mapping[str, Any] | None]:
    """A finding for each; returns what the first that can says of peers and queues."""
    from kingtask.cli import findings

    stats: Mapping[str, Any] | None = None
    for address in addresses:
        pong: Mapping[str, Any] | None = None
        why, denied = "", False
        try:
            with connect((address,), timeout) as client:
                pong = client.ping()
                if stats is None and pong["ready"]:
                    stats = client.stats()
        except KingtaskError as error:
            why, denied = str(error), isinstance(error, PermissionDenied)
        yield from findings.pings(address, pong, why, denied=denied)
    return stats


def _redis(settings: BrokerConfig, timeout: float) -> Generator[Finding, None, Mapping[str, Any] | None]:
    """Findings about the Redis of a broker's configuration; returns what its record says of peers and queues."""
    from kingtask.cli import findings
    from kingtask.store.inspect import inspect

    try:
        address = settings.load_redis_address()
        found = inspect(address, settings.namespace, timeout_s=timeout)
    except ConfigurationError as error:
        yield findings.Finding(findings.Level.FAIL, "config", str(error), "mend the configuration")
        return None
    except StoreError as error:
        yield findings.unreachable(str(address), error)
        return None
    yield from findings.sentinels(found, settings)
    yield from findings.redis(found, settings.ack)
    yield from findings.record(found, settings.cluster)
    if found.offset_s is not None:
        yield from findings.clock(found.offset_s, "Redis against this host")
    return None if found.stats is None else findings.as_on_the_wire(found.stats)


def _worker(path: Path, broker: BrokerConfig | None, timeout: float) -> Iterator[Finding]:
    from kingtask.cli import findings
    from kingtask.config import load_worker
    from kingtask.store.inspect import rights

    try:
        settings = load_worker(path)
    except ConfigurationError as error:
        yield findings.Finding(findings.Level.FAIL, "config", str(error), "mend this file, or name the right one")
        return
    yield from findings.bin_paths(settings.bin_path)
    try:
        address = settings.load_redis_address()
        yield from findings.rights(rights(address, settings.namespace, "worker", timeout_s=timeout), "worker")
    except ConfigurationError as error:
        yield findings.Finding(findings.Level.FAIL, "config", str(error), "mend the configuration")
    except StoreError as error:
        yield findings.unreachable(f"the worker's {address}", error)
    if broker is not None:
        yield from findings.keep_times(broker, settings)
