"""SIGHUP: brokers and workers read their configuration anew, while tasks run and clients ask."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from kingtask import TaskSpec
from kingtask.errors import Busy, KingtaskError, ResultTimeout
from tests.integration.rig import Daemon, StackHarness
from tests.processes import until

GATE = """#!/bin/sh
echo here >> "$1.begun"
until [ -e "$1.open" ]; do sleep 0.01; done
"""
"""Runs until its file is there."""


def reload(daemon: Daemon, outcome: str = "done", **changes: Any) -> str:
    """Change the file, and wait until the daemon has read it; returns what it logged of that."""
    daemon.config |= changes
    daemon.path.write_text(yaml.safe_dump(daemon.config))
    return hup(daemon, outcome)


def hup(daemon: Daemon, outcome: str) -> str:
    seen = len(daemon.text())
    daemon.signal(signal.SIGHUP)
    until(lambda: f"reload={outcome}" in daemon.text()[seen:], f"reload={outcome}: {daemon.text()[-2000:]}")
    return daemon.text()[seen:]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def gate(rig: StackHarness) -> Path:
    """Of the executable `gate`: `.begun` has a line for each that runs, `.open` ends them."""
    rig.executable("gate", GATE)
    return rig.directory / "gate"


def test_a_workers_slots_grow_and_shrink_and_what_runs_goes_on(rig: StackHarness, gate: Path):
    rig.start_broker()
    worker = rig.start_worker(concurrency=1)
    client = rig.client()
    tasks = [client.submit("gate", [str(gate)]) for _ in range(3)]
    until(lambda: lines(Path(f"{gate}.begun")) == 1, "the first to run")
    reload(worker, concurrency=3)
    until(lambda: lines(Path(f"{gate}.begun")) == 3, "all three to run")
    reload(worker, concurrency=1)
    until(lambda: client.stats()["workers"][0]["slots"] == 1, "a heartbeat with one slot")
    waiting = [client.submit("example" if i else "gate", [f"{gate}2"]) for i in range(2)]
    assert client.stats()["workers"][0]["busy"] == 3
    Path(f"{gate}.open").touch()
    assert [task.wait(timeout=30).attempt for task in tasks] == [1, 1, 1]
    until(lambda: lines(Path(f"{gate}2.begun")) == 1, "the fourth to run, in the one slot")
    assert client.get(waiting[1]).state == "ready"
    Path(f"{gate}2.open").touch()
    assert waiting[0].wait(timeout=30).success
    assert worker.stop() == 0


def test_a_workers_queues_change_and_it_is_woken_up_for_the_new_ones(rig: StackHarness):
    rig.start_broker()
    worker = rig.start_worker(queues=["a", "b"], period=3600)
    client = rig.client()
    assert client.submit("ledger", env=rig.env, queue="a").wait(timeout=30).success
    assert "changed=queues" in reload(worker, queues=["b", "c"])
    for _ in range(3):
        assert client.submit("ledger", env=rig.env, queue="c").wait(timeout=30).success
    left = client.submit("ledger", env=rig.env, queue="a")
    assert client.submit("ledger", env=rig.env, queue="b").wait(timeout=30).success
    assert client.get(left).state == "ready"
    served = {queue["name"]: queue["served"] for queue in client.stats()["queues"]}
    assert served == {"a": False, "b": True, "c": True}


def test_what_a_worker_does_with_attempts_changes_for_those_to_come(rig: StackHarness, tmp_path: Path):
    rig.start_broker()
    worker = rig.start_worker(period=3600)
    client = rig.client()
    rig.executable("told", "#!/bin/sh\necho out\necho err >&2\npwd\n")
    assert client.submit("told").wait(timeout=30).reason == "stderr"
    told = reload(worker, stderr="keep", work_dir=str(tmp_path), max_output_bytes=4, period=0.05, task_run_time=0.2)
    assert "changed=max_output_bytes,period,stderr,task_run_time,work_dir" in told
    result = client.submit("told").wait(timeout=30)
    assert (result.success, result.stdout_size) == (True, len(f"out\n{tmp_path}\n"))
    assert len(result.stdout) == 4
    rig.executable("slow", "#!/bin/sh\nsleep 60\n")
    assert client.submit("slow").wait(timeout=30).reason == "time_limit"


def test_a_brokers_bounds_change(rig: StackHarness):
    broker = rig.start_broker()
    client, other = rig.client(), rig.client()
    task = client.submit("ledger", queue="long")

    def wait() -> None:
        with suppress(KingtaskError):  # until it is closed
            other.wait(task)

    threading.Thread(target=wait, daemon=True).start()
    reload(broker, max_queue_length=1, max_waits=1)
    while "too many waits at once" not in broker.text():  # the first refusal of a kind is logged at once
        with suppress(Busy, ResultTimeout):  # the client asks again until its time is up
            client.wait(task, timeout=0.1)
    with pytest.raises(Busy, match="full"):
        client.submit("ledger", queue="long", timeout=0.1)
    reload(broker, max_queue_length=2)
    client.submit("ledger", queue="long")


@pytest.mark.parametrize("kind", ["broker", "worker"])
def test_the_log_changes_its_level_and_its_place(rig: StackHarness, kind: str, tmp_path: Path):
    rig.start_broker()
    if kind == "worker":
        rig.start_worker()
    daemon = rig.daemons[-1]
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()

    def until_told(text: str, place: Path) -> None:
        """A line goes to stderr first, which is where `reload` sees it, and then to the file."""
        until(lambda: text in (place / f"{kind}.log").read_text(), f"{text} in {place}")

    reload(daemon, log_path=str(first), log_level="info")
    until_told(f"program={kind}", first)
    (first / f"{kind}.log").rename(first / "old")
    hup(daemon, "done")
    until_told("changed=nothing", first)
    reload(daemon, log_path=str(second))
    until_told("changed=log_path", second)
    assert "changed=log_path" not in (first / f"{kind}.log").read_text()
    reload(daemon, "partial", log_level="warning", namespace="other")  # of what waits for a restart a warning is told
    told = reload(daemon, "refused", log_level="info", nonsense=1)
    assert "level=info" not in told


WRONG = {
    "not YAML": "addr: [",
    "empty": "",
    "an unknown key": "max_pendig: 5",
    "a wrong type": "max_pending: many",
    "out of range": "max_lost: 0",
    "a log that cannot be": "log_path: /no/such/directory",
    "a public address": "addr: 0.0.0.0:9595",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_file_changes_nothing_and_is_told_with_its_line(rig: StackHarness, text: str):
    """Bad input B2.72."""
    broker = rig.start_broker(max_queue_length=1)
    client = rig.client()
    client.submit("ledger", queue="long")
    good = broker.path.read_text()
    broker.path.write_text(f"max_queue_length: 2\n{text}\n" if text else "")
    told = hup(broker, "refused")
    assert "level=error" in told
    assert text == "log_path: /no/such/directory" or str(broker.path) in told
    with pytest.raises(Busy):
        client.submit("ledger", queue="long", timeout=0.1)
    broker.path.unlink()
    assert "No such file" in hup(broker, "refused")
    broker.path.write_text(good.replace("max_queue_length: 1", "max_queue_length: 2"))
    hup(broker, "done")
    client.submit("ledger", queue="long")


def test_a_wrong_file_of_a_worker_changes_nothing(rig: StackHarness):
    rig.start_broker()
    worker = rig.start_worker(queues=["a"])
    client = rig.client()
    told = reload(worker, "refused", queues=["b"], bin_path="/no/such/directory")
    assert f"{worker.path}:" in told
    assert client.submit("ledger", env=rig.env, queue="a").wait(timeout=30).success


def test_what_cannot_change_is_named_and_stays_while_the_rest_changes(rig: StackHarness):
    broker = rig.start_broker(max_queue_length=5)
    worker = rig.start_worker(queues=["a"])
    client = rig.client()
    told = reload(broker, addr="127.0.0.1:1", namespace="other", max_queue_length=1)
    assert "changed=max_queue_length" in told
    broker.until_logged("reload=partial keys=addr,namespace: these take effect with a restart")
    told = reload(worker, redis="127.0.0.1:1", broker="127.0.0.1:1", lease=60, renew=30, queues=["b"])
    assert "changed=queues" in told
    worker.until_logged("reload=partial keys=broker,lease,redis,renew: these")
    assert client.submit("ledger", env=rig.env, queue="b").wait(timeout=30).success


def test_no_request_and_no_task_is_lost_in_a_storm_of_signals(rig: StackHarness):
    broker, worker = rig.start_broker(), rig.start_worker(concurrency=4)
    client = rig.client()
    over = threading.Event()

    def storm() -> None:
        n = 0
        while not over.is_set():
            n += 1
            aside = worker.path.with_suffix(".new")
            aside.write_text(yaml.safe_dump({**worker.config, "concurrency": 1 + n % 4}))
            aside.rename(worker.path)
            for daemon in (broker, worker):
                daemon.signal(signal.SIGHUP)
            over.wait(0.02)

    raging = threading.Thread(target=storm)
    raging.start()
    try:
        outcomes = client.submit_many(TaskSpec(name="ledger", env=rig.env, id=str(uuid4())) for _ in range(300))
        results = list(client.as_completed([outcome.accepted() for outcome in outcomes], timeout=60))
    finally:
        over.set()
        raging.join()
    assert [(result.success, result.attempt) for result in results] == [(True, 1)] * 300
    assert len(rig.executions()) == 300
    assert "reload=refused" not in broker.text() + worker.text()
