"""SIGHUP: configurations that change under load, good ones and bad ones. No fault is recorded: none of it may show."""

from __future__ import annotations

import signal
from random import Random
from typing import Any

import yaml

from tests.faults.play import TICK_S, Steps
from tests.faults.stage import FaultTestbed
from tests.integration.rig import Daemon

RELOADS = 60
PAUSE_S = 0.1

BAD = ("max_lost: many", "max_losd: 3", "log_path: /no/such/directory", "addr: [", "- a list", "")


def reloads(stage: FaultTestbed, random: Random) -> Steps:
    """Brokers and workers in turns; then all of them as they were."""
    for _ in range(RELOADS):
        daemon = random.choice(stage.daemons)
        if random.random() < 0.4:
            bad = random.choice(BAD)
            yield from _reload(daemon, bad and yaml.safe_dump(daemon.config) + bad, "refused")
        yield from _reload(daemon, yaml.safe_dump(daemon.config | _changes(daemon, random)), "done")
        yield random.uniform(0, PAUSE_S)
    for daemon in stage.daemons:
        yield from _reload(daemon, yaml.safe_dump(daemon.config), "done")
        told = daemon.text()
        stage.expect("reload=failed" not in told, f"{stage.name(daemon)} failed at a reload")
        stage.expect("reload=refused" in told, f"{stage.name(daemon)} was given nothing bad: the case proves nothing")


def _changes(daemon: Daemon, random: Random) -> dict[str, Any]:
    common: dict[str, Any] = {
        "log_level": random.choice(["info", "debug"]),
        "max_lost": random.randint(10, 30),
        "namespace": random.choice(["kingtask", "other"]),  # not before a restart
    }
    if daemon.kind == "broker":
        return {**common, "max_pending": random.randint(5_000, 10_000), "max_waits": random.randint(5_000, 10_000)}
    return {
        **common,
        "concurrency": random.randint(1, 8),
        "queues": random.sample(["default", "second", "third"], random.randint(2, 3)),
        "period": random.choice([0.2, 0.5, 5]),
        "task_run_time": random.randint(100, 1000),
    }


def _reload(daemon: Daemon, text: str, outcome: str) -> Steps:
    """Exchange the file, send the signal, and wait until it was heeded."""
    aside = daemon.path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(daemon.path)
    seen = daemon.text().count(f"reload={outcome}")
    daemon.signal(signal.SIGHUP)
    while daemon.text().count(f"reload={outcome}") == seen:
        yield TICK_S
