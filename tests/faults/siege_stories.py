"""The siege: every kind of hostile peer at once, at a broker without keys or at one with keys, beside a good client.

The attackers run only when nothing else does (SCHED_IDLE), since they stand for programs of other machines.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic_ns
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import yaml

from kingtask import AsyncClient, Client, TaskSpec, curve
from tests.faults.history import HistoryRecorder, read
from tests.faults.meter import FILE, REPLIES_S, Address, Answer, MeterOrders
from tests.faults.play import TICK_S, Steps
from tests.faults.stage import FaultTestbed
from tests.integration.rig import Daemon
from tests.metrics.scrape import ask
from tests.processes import PATIENCE_S, alive, descriptors
from tests.servers import die_with_parent, free_port

MIB = 2**20
MAX_REPLY_BYTES = 64 * MIB
MAX_PENDING_BYTES = 16 * MIB
OPEN_FILES = 2_048
"""For some 500 connections, half of them of one address."""
OTHER_FILES = 128
"""More than a broker with a few clients has open."""
GROWTH_BYTES = MAX_REPLY_BYTES + 2 * MAX_PENDING_BYTES + 96 * MIB
"""Of a broker. Requests are held as bytes and decoded. The rest: 16 MiB of unfinished messages, whose small frames take
several times as much memory; 500 connections; a `stats` reply and the records that it is made of."""
ADDRESS_SPACE_BYTES = 4 * 2**30
"""Without its bounds a broker would take all of the memory."""
QUEUES, PRIORITIES = 1_000, 10
LARGE_BYTES = MIB
CANCELS_AT_ONCE = 100
QUIET_S = 20.0
"""How long the good client is measured before the siege."""
PING_P99_MS = 1_000.0
SUBMIT_TIMES, SHORT_SUBMIT_TIMES = 5.0, 8.0
"""The second in a siege of less than SHORT_S: with two processors p99 of its quiet time varies by a half."""
SHORT_S = 600.0
SCRAPE_EVERY_S = 5.0
SCRAPE_S = 10.0
"""Prometheus's own timeout."""
ENDS_S = 50.0
"""An attacker waits for its replies so long before it ends."""

PERMISSIONS = {
    "clients": {
        "peer": {},
        "hostile": {
            "queues": ["hostile"],
            "tasks": ["work"],
            "max_outstanding": 10,
            "submits_per_second": 10,
        },
        "dashboard": {"ops": ["stats"]},
        "revoked": {},
    }
}


def one_broker_for_all(stage: FaultTestbed) -> None:
    """Before Redis is started: the sockets and bounds of the broker."""
    address = f"127.0.0.1:{free_port()}"
    broker = {
        **_bounds(),
        "addr": [address, f"ipc://{stage.directory}/broker"],
        "wakeup": f"127.0.0.1:{free_port()}",
    }
    worker = {**stage.layout.worker, "broker": address}
    limits = (f"--nofile={OPEN_FILES}", f"--as={ADDRESS_SPACE_BYTES}")
    stage.layout = replace(stage.layout, broker=broker, worker=worker, broker_limits=limits)


def _bounds() -> dict[str, object]:
    return {
        "metrics_addr": f"127.0.0.1:{free_port()}",
        "max_reply_bytes": MAX_REPLY_BYTES,
        "max_pending_bytes": MAX_PENDING_BYTES,
        "max_queues": 2 * QUEUES,
    }


class KeyedBroker(NamedTuple):
    """A second broker of the same stage, which asks for keys."""

    daemon: Daemon
    directory: Path

    def keys(self, name: str) -> dict[str, str]:
        return {
            "curve_key": str(self.directory / f"{name}.key_secret"),
            "server_key": str(self.directory / "server.key"),
        }

    def environment(self, name: str) -> dict[str, str]:
        keys = self.keys(name)
        return {"KINGTASK_CURVE_KEY": keys["curve_key"], "KINGTASK_SERVER_KEY": keys["server_key"]}


def _start_keyed_broker(stage: FaultTestbed) -> KeyedBroker:
    directory = stage.directory / "keys"
    authorized = directory / "authorized"
    authorized.mkdir(parents=True)
    curve.write_pair(directory, "server", replace=False)
    for name in PERMISSIONS["clients"]:
        curve.write_pair(directory, name, replace=False)
        (authorized / f"{name}.key").write_bytes((directory / f"{name}.key").read_bytes())
    permissions = directory / "permissions.yaml"
    permissions.write_text(yaml.safe_dump(PERMISSIONS))
    pair = {"secret_key_file": str(directory / "server.key_secret"), "authorized_clients": str(authorized)}
    daemon = stage.start_broker(
        ready=False, curve=pair, permissions=str(permissions), lease=stage.layout.lease_s, ack="fsync", **_bounds()
    )
    stage.brokers.append(daemon)  # for its memory and its end; the ordinary clients do not know it
    return KeyedBroker(daemon, directory)


class Attack(NamedTuple):
    kind: str
    address: str
    environment: Mapping[str, str] = MappingProxyType({})
    ids: Sequence[str] = ()


def siege(stage: FaultTestbed, random: Random) -> Steps:
    """Of the broker without keys. Goes on until the case is over."""
    broker = stage.brokers[0]
    large = stage.submit("work", "0", "0", str(LARGE_BYTES))
    tcp, ipc = broker.config["addr"]
    wakeup = broker.config["wakeup"]
    addresses = [Address(name="tcp", endpoint=f"tcp://{tcp}"), Address(name="ipc", endpoint=ipc)]
    attacks = [
        *(Attack(kind, where) for kind in ("ends", "unterminated", "hoard") for where in (tcp, ipc)),
        *(Attack("unread", where, ids=[large]) for where in (tcp, ipc)),
        Attack("gets", ipc, ids=[large]),
        Attack("statistics", tcp),
        *(Attack(kind, wakeup) for kind in ("ends_of_subscribers", "liars")),
    ]
    with _tasks(stage, f"tcp://{tcp}", {}):
        yield from _besiege(stage, random, broker, addresses, attacks, lambda: None)


def siege_with_keys(stage: FaultTestbed, random: Random) -> Steps:
    """Of a second broker, which asks for keys. Goes on until the case is over."""
    keyed = _start_keyed_broker(stage)
    while "broker=started" not in keyed.daemon.text() and keyed.daemon.process is not None:
        yield TICK_S

    def revoke() -> None:
        (keyed.directory / "authorized" / "revoked.key").unlink()
        keyed.daemon.signal(signal.SIGHUP)

    address = keyed.daemon.config["addr"]
    with _tasks(stage, keyed.daemon.endpoint, keyed.keys("peer")) as owned:
        addresses = [Address(name="curve", endpoint=keyed.daemon.endpoint, **keyed.keys("peer"))]
        attacks = [
            *(Attack("ends_with_key", address, keyed.environment(name)) for name in ("dashboard", "revoked")),
            Attack("statistics", address, keyed.environment("dashboard")),
            Attack("meddlers", address, keyed.environment("hostile"), owned),
            Attack("strangers", address, keyed.environment("peer")),
        ]
        yield from _besiege(stage, random, keyed.daemon, addresses, attacks, revoke)
    stage.kill(keyed.daemon, signal.SIGTERM)
    for daemons in (stage.daemons, stage.brokers):
        daemons.remove(keyed.daemon)


def _besiege(
    stage: FaultTestbed,
    random: Random,
    broker: Daemon,
    addresses: list[Address],
    attacks: list[Attack],
    begin: Callable[[], None],
) -> Steps:
    """All attacks at once until the case is over, and a slow scraper; `begin` is called when they have begun."""
    pid, metrics = broker.pid, broker.config["metrics_addr"]
    attacks = [*attacks, Attack("scrapers", metrics)]
    with _meter(stage, addresses, random):
        attackers = [_start(attack, random) for attack in attacks]
        for attacker in attackers:
            assert attacker.stdout is not None
            attacker.stdout.readline()
        yield QUIET_S
        began_ns = monotonic_ns()
        with stage.fault("siege"):
            for attacker in attackers:
                assert attacker.stdin is not None
                attacker.stdin.write("begin\n")
                attacker.stdin.flush()
            begin()
            next_s = stage.clock_s()
            while not stage.over:
                if stage.clock_s() >= next_s:
                    next_s = stage.clock_s() + SCRAPE_EVERY_S
                    _scrape(stage, metrics)
                yield TICK_S
            ended_ns = monotonic_ns()
            for attacker in attackers:
                attacker.send_signal(signal.SIGTERM)
            ends_s = stage.clock_s() + ENDS_S
            while any(attacker.poll() is None for attacker in attackers) and stage.clock_s() < ends_s:
                yield TICK_S
            for attack, attacker in zip(attacks, attackers, strict=True):
                attacker.kill()
                told, complaint = attacker.communicate()
                told = told.strip()
                done = attacker.returncode == 0 and int(told) > 0
                stage.expect(done, f"{attack.kind} ended with {attacker.returncode}: {told} {complaint[-500:]}")
                stage.timeline.append(f"          {attack.kind} {attack.address}: {told}")
        yield 1.0
    same = broker.process is not None and broker.pid == pid and alive(pid)
    stage.expect(same, f"the broker is not the same process any more: {broker.text()[-2000:]}")
    ends_s = stage.clock_s() + PATIENCE_S
    while same and len(descriptors(pid)) > OTHER_FILES and stage.clock_s() < ends_s:
        yield TICK_S
    stage.expect(stage.clock_s() < ends_s, "the broker keeps descriptors of the attackers")
    _judge(stage, began_ns, ended_ns)


def _start(attack: Attack, random: Random) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.abuse", attack.kind, attack.address, str(random.random()), "86400"]
    return subprocess.Popen(
        [*command, *attack.ids],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        env={**os.environ, **attack.environment},
        text=True,
        preexec_fn=_as_an_attacker,  # noqa: PLW1509  (two system calls are all it does)
    )


def _as_an_attacker() -> None:
    die_with_parent()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _scrape(stage: FaultTestbed, address: str) -> None:
    """A scraper in good order gets its answer beside slow ones."""
    began_s = stage.clock_s()
    try:
        status, _ = ask(address, "/metrics")
    except OSError as error:
        stage.complain(f"no answer of /metrics: {error}")
    else:
        took_s = stage.clock_s() - began_s
        stage.expect(status == 200 and took_s <= SCRAPE_S, f"/metrics answered {status} after {took_s:.1f} s")


@contextmanager
def _tasks(stage: FaultTestbed, endpoint: str, keys: Mapping[str, str]) -> Iterator[list[str]]:
    """Five tasks of this client, and many more that make `stats` large. They wait until the siege is over."""
    recorder = HistoryRecorder(stage.histories, "siege")
    with Client(endpoint, timeout=60.0, **keys) as client:
        specs = [TaskSpec(id=str(uuid.uuid4()), name="work", delay_s=86_400.0) for _ in range(5)]
        owned = [str(spec.id) for spec in specs]
        specs += [
            TaskSpec(id=str(uuid.uuid4()), name="work", queue=f"q{queue}", priority=priority)
            for queue in range(QUEUES)
            for priority in range(PRIORITIES)
        ]
        ops = [recorder.invoke("submit", str(spec.id), spec=spec) for spec in specs]
        for op, outcome in zip(ops, client.submit_many(specs), strict=True):
            if outcome.error is not None:
                recorder.error(op, outcome.error)
            else:
                recorder.ok(op, outcome=outcome.outcome, ack=stage.layout.ack)
        yield owned
    asyncio.run(_cancel(endpoint, keys, recorder, [str(spec.id) for spec in specs]))
    recorder.close()


async def _cancel(endpoint: str, keys: Mapping[str, str], recorder: HistoryRecorder, ids: list[str]) -> None:
    room = asyncio.Semaphore(CANCELS_AT_ONCE)

    async def cancel(client: AsyncClient, task_id: str) -> None:
        async with room:
            op = recorder.invoke("cancel", task_id)
            recorder.ok(op, outcome=await client.cancel(task_id))

    async with AsyncClient(endpoint, timeout=60.0, **keys) as client:
        await asyncio.gather(*(cancel(client, task_id) for task_id in ids))


@contextmanager
def _meter(stage: FaultTestbed, addresses: list[Address], random: Random) -> Iterator[None]:
    orders = MeterOrders(directory=str(stage.histories), addresses=addresses, seed=str(random.random()))
    log = stage.histories / "meter.log"
    with log.open("ab") as file:
        meter = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.meter", msgspec.json.encode(orders).decode()],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
        )
    try:
        yield
    finally:
        meter.send_signal(signal.SIGTERM)
        try:
            status = meter.wait(REPLIES_S + 10)
        except subprocess.TimeoutExpired:
            meter.kill()
            status = meter.wait()
        stage.expect(status == 0, f"the good client ended with {status}: {log.read_text()[-2000:]}")


def _judge(stage: FaultTestbed, began_ns: int, ended_ns: int) -> None:
    """One reply to each request; how long pings and submits took before the siege, to all addresses, and during it."""
    took_ms: defaultdict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    refused = Counter[str]()
    for answer in read(stage.histories / FILE, Answer):
        if answer.code != "ok" and (answer.op, answer.code) != ("wait", "busy"):
            refused[f"{answer.address} {answer.op}: {answer.code}"] += 1
        if answer.took_ns is not None and answer.mono_ns < ended_ns:
            took_ms[answer.address, answer.op][answer.mono_ns >= began_ns].append(answer.took_ns / 1e6)
    stage.expect(not refused, f"the good client got no or another reply: {dict(refused)}")
    quiet_ms = defaultdict[str, list[float]](list)  # p99 of one address alone is the fourth of some 400
    for (_, op), (before, _) in took_ms.items():
        quiet_ms[op] += before
    for (address, op), (before, during) in sorted(took_ms.items()):
        if not (before and during):
            stage.complain(f"{address}: nothing is known of {op}")
            continue
        quiet, besieged = _p99(quiet_ms[op]), _p99(during)
        stage.timeline.append(
            f"          {address} {op}: {len(during)}, p50 {median(during):.1f} ms, p99 {besieged:.1f} ms,"
            f" max {max(during):.1f} ms; before: p50 {median(before):.1f} ms, p99 {_p99(before):.1f} ms"
        )
        times = SHORT_SUBMIT_TIMES if ended_ns - began_ns < SHORT_S * 1e9 else SUBMIT_TIMES
        most = {"ping": PING_P99_MS, "submit": times * quiet}.get(op)
        stage.expect(
            most is None or besieged <= most, f"{address}: p99 of {op} is {besieged:.0f} ms, {quiet:.0f} ms before"
        )


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]
