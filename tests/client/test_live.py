"""Both clients against real brokers and a real worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import pytest

from kingtask.errors import IdConflict, InvalidRequest, TaskFailed, TaskNotFound, WrongState
from kingtask.states import State
from kingtask.task import TaskSpec
from tests.client.responder import PATIENCE_S
from tests.client.shells import Shell, outcomes
from tests.integration.rig import StackHarness

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"

SUM = f"#!{sys.executable}\nimport sys\nprint(sum(map(int, sys.argv[1:])))\n"
ECHO = '#!/bin/sh\nprintf "%s|" "$@"\ncat\necho "$TASK_COLOUR"\n'
FAIL = "#!/bin/sh\necho broken >&2\nexit 3\n"
UNTIL = '#!/bin/sh\nwhile [ ! -e "$1" ]; do sleep 0.01; done\necho opened\n'
"""Runs until a file exists."""


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as started:
        for name, text in {"sum": SUM, "echo": ECHO, "fail": FAIL, "until": UNTIL}.items():
            started.executable(name, text)
        started.start_broker()
        started.start_worker()
        yield started


@pytest.fixture
def client(rig: StackHarness, shell: Shell) -> Any:
    return shell.client(rig.daemons[0].endpoint)


def test_the_sum_of_two_integers(client: Any):
    assert client.submit("sum", ["12", "45"]).result(PATIENCE_S) == "57\n"


def test_what_is_submitted_is_what_runs(client: Any):
    task = client.submit("echo", ["a b", "", "-ß\n"], stdin="in\n", env={"TASK_COLOUR": "red"}, tags=["t"], priority=9)

    result = task.wait(PATIENCE_S)

    assert result.text == "a b||-ß\n|in\nred\n"
    assert (result.tags, result.priority, result.exit_code) == (("t",), 9, 0)
    assert result.finished_at >= result.started_at >= result.due_at


def test_an_instant_and_a_delay(client: Any):
    at = datetime.now(UTC) + timedelta(seconds=0.3)

    results = [
        client.submit("sum", ["1"], at=at).wait(PATIENCE_S),
        client.submit("sum", ["1"], delay=0.3).wait(PATIENCE_S),
    ]

    assert results[0].due_at == pytest.approx(at.timestamp(), abs=0.001)
    assert all(result.started_at >= result.due_at for result in results)


def test_a_failure(client: Any):
    with pytest.raises(TaskFailed, match="broken") as raised:
        client.submit("fail", retry=[0, 0]).result(PATIENCE_S)

    result = raised.value.result
    assert (result.state, result.exit_code, result.stderr, len(result.attempts)) == (State.FAILED, 3, b"broken\n", 3)


def test_the_same_id_twice(client: Any, shell: Shell):
    chosen = ID.replace("6f", "00" if shell.kind == "blocking" else "01")
    first = client.submit("sum", ["1"], id=chosen)

    assert client.submit("sum", ["1"], id=chosen).id == first.id == chosen
    with pytest.raises(IdConflict):
        client.submit("sum", ["2"], id=chosen)


def test_cancel_a_scheduled_and_a_running_task(rig: StackHarness, client: Any):
    scheduled = client.submit("sum", delay=3600)
    assert scheduled.cancel() == "cancelled"
    assert scheduled.cancel() == "cancelled"

    running = client.submit("until", [str(rig.directory / "never")])
    _wait_until_running(client, running.id)
    assert running.cancel() == "cancelling"
    assert running.wait(PATIENCE_S).state is State.CANCELLED

    ended = client.submit("sum")
    ended.wait(PATIENCE_S)
    with pytest.raises(WrongState):
        ended.cancel()


def test_requeue(client: Any):
    old = client.submit("sum", ["1", "2"]).wait(PATIENCE_S)

    new = client.requeue(old)

    result = new.wait(PATIENCE_S)
    assert (result.text, result.origin, result.id) == ("3\n", old.id, new.id)


def test_forget(client: Any):
    task = client.submit("sum", ["1", "2"])
    task.wait(PATIENCE_S)
    assert client.forget(task.id) == "forgotten"
    for act in (client.get, client.forget):
        with pytest.raises(TaskNotFound):
            act(task.id)
    later = client.submit("sum", delay=3600)
    with pytest.raises(WrongState):
        client.forget(later.id)
    later.cancel()


def test_list_and_stats_and_pause(client: Any, shell: Shell):
    queue = f"paused-{shell.kind}"
    client.pause(queue)
    ids = [client.submit("sum", [str(i)], queue=queue).id for i in range(3)]

    assert [found.id for found in client.list("ready", queue)] == ids
    assert [found.id for found in client.list("ready", queue, limit=2)] == ids[:2]
    [stats] = [one for one in client.stats()["queues"] if one["name"] == queue]
    assert (stats["paused"], stats["ready"], stats["served"]) == (True, 3, False)

    client.resume(queue)
    [stats] = [one for one in client.stats()["queues"] if one["name"] == queue]
    assert not stats["paused"]
    with pytest.raises(InvalidRequest, match="queue"):
        list(client.list("ready"))


def test_more_tasks_than_a_page_and_a_chunk(client: Any, shell: Shell):
    queue = f"many-{shell.kind}"
    found = client.submit_many(TaskSpec(name="sum", queue=queue, delay_s=3600.0) for _ in range(2_500))

    assert outcomes(found) == ["created"] * 2_500
    listed = [one.id for one in client.list("scheduled", queue)]
    assert listed == [one.task.id for one in found]
    assert outcomes(client.submit_many([TaskSpec(id=listed[0], name="sum", queue=queue, delay_s=3600.0)])) == ["exists"]


def test_one_bad_task_among_many(client: Any):
    found = client.submit_many(
        TaskSpec(name="../sh" if i == 1_005 else "sum", delay_s=3600.0, queue="mixed") for i in range(1_010)
    )

    [bad] = [one for one in found if one.error is not None]
    assert bad is found[1_005]
    assert str(bad.error).startswith("tasks[1005].name: ")


def test_map_and_as_completed(rig: StackHarness, client: Any, shell: Shell):
    assert [one.text for one in client.map("sum", [["1", str(i)] for i in range(20)])] == [
        f"{i + 1}\n" for i in range(20)
    ]

    gate = rig.directory / f"gate-{shell.kind}"
    held, free = client.submit("until", [str(gate)]), client.submit("sum", ["1"])
    completed = client.as_completed([held.id, free.id], timeout=PATIENCE_S)
    assert next(completed).id == free.id
    gate.touch()
    assert [one.id for one in completed] == [held.id]


def test_a_task_that_never_was(client: Any):
    with pytest.raises(TaskNotFound):
        client.wait("ffffffff-ffff-4fff-bfff-ffffffffffff", PATIENCE_S)


def test_ping_says_who_and_how(client: Any):
    pong = client.ping()

    assert (pong["server"], pong["ready"], pong["ack"]) == ("kingtask", True, "fsync")
    assert pong["limits"]["batch"] == 1000


# ── faults, each with an installation of its own ─────────────────────────────────────────────────────────────────────


def test_a_wait_outlives_its_broker(shell: Shell):
    with StackHarness() as rig:
        rig.executable("until", UNTIL)
        broker = rig.start_broker()
        rig.start_worker()
        client = shell.client(broker.endpoint)
        gate = rig.directory / "gate"
        task = client.submit("until", [str(gate)])
        _wait_until_running(client, task.id)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(task.result, PATIENCE_S)
            broker.kill()
            broker.start()
            gate.touch()

            assert waiting.result(PATIENCE_S) == "opened\n"


def test_brokers_that_come_and_go_lose_and_double_nothing(shell: Shell):
    """Two brokers are killed in turn under a stream of submits; each call succeeds, each task is there once."""
    with StackHarness() as rig:
        brokers = [rig.start_broker(), rig.start_broker()]
        client = shell.client(*(broker.endpoint for broker in brokers))
        enough = Event()

        def stream(number: int) -> list[str]:
            ids = []
            while not enough.is_set():
                ids.append(client.submit("sum", [str(number)], delay=3600).id)
            return ids

        with ThreadPoolExecutor(4) as threads:
            streams = [threads.submit(stream, number) for number in range(4)]
            try:
                for broker in [*brokers, *brokers]:
                    broker.kill()
                    broker.start()
            finally:
                enough.set()
            ids = [task_id for done in streams for task_id in done.result(PATIENCE_S)]

        stored = [found.id for found in client.list("scheduled")]
        assert sorted(stored) == sorted(ids)


def test_redis_away_for_a_moment(shell: Shell):
    with StackHarness() as rig:
        client = shell.client(rig.start_broker().endpoint)
        client.submit("sum", delay=3600)
        rig.redis.kill()
        with ThreadPoolExecutor(1) as thread:
            submitting = thread.submit(client.submit, "sum", delay=3600)
            rig.redis.start()

            task = submitting.result(PATIENCE_S)

        assert client.get(task.id).state is State.SCHEDULED


def _wait_until_running(client: Any, task_id: str) -> None:
    while client.get(task_id).state is not State.RUNNING:
        pass
