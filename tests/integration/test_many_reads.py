"""Thousands of reads at once: by a client that reads its replies, and by clients that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kingtask import AsyncClient, Client, TaskSpec, protocol
from kingtask.states import State
from tests import zmtp
from tests.client.shells import Shell
from tests.integration.rig import Daemon, StackHarness
from tests.integration.test_unfinished import resident_mb
from tests.metrics.scrape import Figures, ask
from tests.processes import PATIENCE_S, until
from tests.servers import free_port

MIB = 1024 * 1024
MANY = 5_000


@pytest.fixture(params=["blocking", "asyncio"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    made = Shell(request.param)
    yield made
    made.close()


def measured_broker(rig: StackHarness) -> Daemon:
    return rig.start_broker(metrics_addr=f"127.0.0.1:{free_port()}")


def figures(broker: Daemon) -> Figures:
    return Figures(ask(broker.config["metrics_addr"], "/metrics")[1])


def refused(broker: Daemon) -> dict[str, float]:
    counted = figures(broker)
    codes = {sample.labels["code"] for sample in counted.samples if sample.name == "kingtask_broker_refusals_total"}
    found = {code: counted("kingtask_broker_refusals_total", code=code) for code in codes}
    return {code: number for code, number in found.items() if number}


def with_outputs(rig: StackHarness, tasks: int) -> list[str]:
    """Ids of ended tasks, each with 1 MiB on stdout and on stderr."""
    rig.executable("much", f"#!/bin/sh\nhead -c {MIB} /dev/zero\nhead -c {MIB} /dev/zero >&2\n")
    rig.start_worker(stderr="keep")
    client = rig.client()
    results = [client.submit("much").wait(PATIENCE_S) for _ in range(tasks)]
    assert all(len(result.stdout) == len(result.stderr) == MIB for result in results)
    return [result.id for result in results]


def requests(op: str, ids: list[str], number: int) -> bytes:
    return b"".join(zmtp.frame(protocol.encode_request(rid, op, {"id": ids[rid % len(ids)]})) for rid in range(number))


def port_of(broker: Daemon) -> int:
    return int(broker.config["addr"].rpartition(":")[2])


def still_serves(client: Client, task_id: str) -> None:
    assert client.ping()["ready"]
    client.submit("ledger").wait(PATIENCE_S)
    assert len(client.get(task_id, timeout=PATIENCE_S).stdout) == MIB


def test_a_thousand_gets_that_are_not_read_take_little_memory_of_redis(rig: StackHarness) -> None:
    broker = measured_broker(rig)
    ids = with_outputs(rig, 20)

    def peak() -> int:
        memory: dict[str, Any] = rig.redis.client().info("memory")
        return int(memory["used_memory_peak"])

    before = peak()
    with zmtp.connect(port_of(broker)) as peer:
        peer.sendall(requests("get", ids, 1_000))
        still_serves(rig.client(), ids[0])
        until(lambda: refused(broker).get("busy", 0) > 900, lambda: f"all are answered: {refused(broker)}")
        still_serves(rig.client(), ids[0])
    taken_mib = (peak() - before) / MIB
    print(taken_mib)
    assert taken_mib < 128, "2,000 MiB were asked for"


@pytest.mark.long
def test_waits_whose_replies_are_not_read_take_little_memory_of_the_broker(rig: StackHarness) -> None:
    broker = measured_broker(rig)
    ids = with_outputs(rig, 1)
    client, most_mb = rig.client(), 0.0
    with ExitStack() as stack:
        for _ in range(4):
            peer = stack.enter_context(zmtp.connect(port_of(broker)))
            peer.sendall(requests("wait", ids, 900))

        def all_answered() -> bool:
            nonlocal most_mb
            client.ping()
            most_mb = max(most_mb, resident_mb(broker.pid))
            return refused(broker).get("busy", 0) > 3_400

        until(all_answered, lambda: f"all are answered: {refused(broker)}")
        still_serves(client, ids[0])
    print(most_mb)
    assert most_mb < 300, "7,200 MiB were asked for"


def test_waits_of_one_connection_that_end_together_are_answered_in_one_burst(rig: StackHarness) -> None:
    broker = measured_broker(rig)
    task = rig.client().submit("ledger", ["x" * 1_000], delay=3600)

    async def all_waits() -> list[Any]:
        async with AsyncClient(broker.endpoint) as client:
            waits = [asyncio.ensure_future(client.wait(task.id, timeout=PATIENCE_S)) for _ in range(MANY)]
            while await asyncio.to_thread(lambda: figures(broker)("kingtask_broker_waits")) < MANY:
                pass
            task.cancel()
            return await asyncio.gather(*waits)

    results = asyncio.run(all_waits())
    assert {(result.state, result.args) for result in results} == {(State.CANCELLED, ("x" * 1_000,))}
    assert len(results) == MANY
    until(
        lambda: figures(broker)("kingtask_broker_request_seconds_count", op="wait") == MANY, "each was asked for once"
    )
    assert refused(broker) == {}


def test_tasks_that_end_together_are_all_reported(rig: StackHarness, shell: Shell) -> None:
    broker = measured_broker(rig)
    client = shell.client(broker.endpoint)
    expires_at = client.ping()["now"] + 2.0
    outcomes = client.submit_many([TaskSpec(name="ledger", expires_at=expires_at)] * MANY)
    ended = list(client.as_completed([outcome.task.id for outcome in outcomes], timeout=PATIENCE_S))
    assert len({result.id for result in ended}) == MANY
    assert {result.state for result in ended} == {State.EXPIRED}
    assert refused(broker) == {}
