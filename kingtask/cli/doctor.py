"""`kingtask doctor`: examine an installation, and print what to do about each finding."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from kingtask.cli import console, findings
from kingtask.cli.connect import addresses, connect, shared_options, timeout_s
from kingtask.cli.exit import Exit
from kingtask.cli.findings import Finding, Level
from kingtask.errors import ConfigurationError, KingtaskError, StoreError

if TYPE_CHECKING:
    from kingtask.config import BrokerConfig

FILE = click.Path(readable=False, path_type=Path)  # a file that cannot be read is a finding
Stats = Mapping[str, Any]
T = TypeVar("T")


@click.command(short_help="Examine everything: what is wrong, and what to do about it.")
@click.option("-c", "--config", metavar="FILE", type=FILE, help="A broker's configuration: examine it and its Redis.")
@click.option(
    "--worker-config",
    metavar="FILE",
    type=FILE,
    help="A worker's configuration: examine it, its bin_path and its Redis.",
)
@shared_options
@click.pass_context
def doctor(context: click.Context, config: Path | None, worker_config: Path | None, as_json: bool) -> int:
    """Examine brokers, Redis, workers and queues: a line each, ok, warn or fail, and what to do.

    The exit status is 0 if nothing fails, else 1. Nothing is changed. With -c the broker examined is that of the
    configuration, unless --broker or KINGTASK_BROKER names others.
    """
    brokers_named = context.get_parameter_source("broker") is not ParameterSource.DEFAULT
    failed = False
    for finding in _examine(config, worker_config, addresses(), brokers_named=brokers_named):
        failed = failed or finding.level is Level.FAIL
        advice = f"\n{'':16}→ {finding.advice}" if finding.advice else ""
        text = f"{finding.level:<5}{finding.subject:<10} {console.visible(finding.text)}{advice}"
        console.show(as_json, finding._asdict(), text)
    return Exit.TASK_FAILED if failed else Exit.OK


def _examine(
    config: Path | None, worker_config: Path | None, brokers: tuple[str, ...], *, brokers_named: bool
) -> Iterator[Finding]:
    """Yield all findings, in the order in which they matter."""
    from kingtask.config import exposed, load_broker

    settings = None if config is None else (yield from _loaded(lambda: load_broker(config)))
    if not brokers_named:
        brokers = settings.addr if settings else brokers[:1]
    stats = yield from _brokers(brokers)
    if config is not None and settings is not None:
        yield from (findings.warn("config", *text.rsplit("; ", 1)) for text in exposed(config, settings))
        yield from findings.reach(settings)
        recorded = yield from _redis(settings)
        stats = stats or recorded
    elif config is None:
        yield findings.warn("redis", "not examined", "give a broker's configuration: -c broker.yaml")
    if stats is not None:
        yield from findings.peers(stats)
    if worker_config is not None:
        yield from _worker(worker_config, settings)


def _loaded(load: Callable[[], T]) -> Generator[Finding, None, T | None]:
    """Return what `load` returns, or yield its ConfigurationError as a finding."""
    try:
        return load()
    except ConfigurationError as error:
        yield findings.fail("config", str(error), "correct this file, or name the right one")
        return None


def _brokers(brokers: tuple[str, ...]) -> Generator[Finding, None, Stats | None]:
    """Yield a finding for each; return the reply to `stats` of the first that gives one."""
    stats: Stats | None = None
    for address in brokers:
        pong: Mapping[str, Any] | KingtaskError
        try:
            with connect((address,)) as client:
                pong = client.ping()
                if stats is None and pong["ready"]:
                    with suppress(KingtaskError):
                        stats = client.stats()
        except KingtaskError as error:
            pong = error
        yield findings.broker(address, pong)
    return stats


def _redis(settings: BrokerConfig) -> Generator[Finding, None, Stats | None]:
    """Yield findings about the Redis of a broker; return the numbers that Redis keeps, as in the reply to `stats`."""
    from kingtask.store.inspect import inspect

    address = yield from _loaded(settings.load_redis_address)
    if address is None:
        return None
    try:
        found = inspect(address, settings.namespace, timeout_s=timeout_s())
    except StoreError as error:
        yield findings.unreachable(str(address), error)
        return None
    yield from findings.sentinels(found, settings)
    yield from findings.redis(found, settings.ack)
    yield from findings.record(found, settings.cluster)
    if found.offset_s is not None:
        yield findings.clock(found.offset_s, "Redis against this host")
    return None if found.stats is None else found.stats.fields


def _worker(path: Path, broker: BrokerConfig | None) -> Iterator[Finding]:
    from kingtask.config import exposed, load_worker
    from kingtask.store.inspect import rights

    settings = yield from _loaded(lambda: load_worker(path))
    if settings is None:
        return
    yield from (findings.warn("config", *text.rsplit("; ", 1)) for text in exposed(path, settings))
    yield from findings.bin_paths(settings.bin_path)
    yield from findings.shared_users(settings)
    address = yield from _loaded(settings.load_redis_address)
    if address is not None:
        try:
            lacking = rights(address, settings.namespace, "worker", timeout_s=timeout_s())
            yield from findings.rights(lacking, "worker")
        except StoreError as error:
            yield findings.unreachable(f"the worker's {address}", error)
    if broker is not None:
        yield from findings.keep_times(broker, settings)
