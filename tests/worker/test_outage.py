"""Redis goes and comes back, is full, or gives a lease away: what runs goes on, and every end is recorded once."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest

from kingtask.store import functions
from kingtask.task import TaskSpec
from tests.processes import alive, marked, until
from tests.servers import FAST_REPLICATION, RedisServer
from tests.worker.rig import WorkerHarness


def unfit(rig: WorkerHarness) -> str:
    """What the only worker says in its last sign of life."""
    (worker,) = rig.store.stats().workers
    return str(worker.facts["unfit"])


def gated(rig: WorkerHarness) -> None:
    """`gated NAME` says that it runs, and ends when the gate of that name is opened."""
    at = rig.directory
    rig.script("gated", f"echo $$ > {at}/up.$1; until [ -e {at}/gate.$1 ]; do :; done; echo through $1")


def test_an_end_during_an_outage_is_delivered_after_it(own_rig: WorkerHarness) -> None:
    rig = own_rig
    gated(rig)
    worker = rig.start(period=0.05)
    during, after = rig.put_all([TaskSpec(name="gated", args=(name,)) for name in ("during", "after")])
    pid, other = int(rig.exists("up.during")), int(rig.exists("up.after"))
    rig.server.kill()
    worker.logged("redis=lost")
    (rig.directory / "gate.during").touch()
    until(lambda: not alive(pid), "the end of the first")
    assert alive(other)
    rig.server.start()
    assert rig.result(during).stdout == b"through during\n"
    (rig.directory / "gate.after").touch()
    assert rig.result(after).stdout == b"through after\n"
    assert "kind=away" not in worker.log  # it does not even try
    for task in (during, after):
        assert [attempt.number for attempt in rig.get(task).attempts] == [1]


def test_an_end_that_a_damaged_index_does_not_take_is_kept_and_repeated(own_rig: WorkerHarness) -> None:
    rig = own_rig
    rig.script("fail", "exit 1")
    worker = rig.start(period=0.05)
    schedule = f"{rig.store.keys.prefix}schedule"
    rig.store.client.set(schedule, "not an index")
    task = rig.put("fail", retry=(3600.0,))
    worker.logged("finish=failed attempts=1 kind=damaged")
    assert rig.store.ask(functions.states([task])) == ["running"]
    rig.store.client.delete(schedule)
    until(lambda: rig.get(task).state == "scheduled", "the retry")
    assert [(attempt.number, attempt.exit_code) for attempt in rig.get(task).attempts] == [(1, 1)]


def test_after_an_outage_it_claims_without_a_hint(own_rig: WorkerHarness) -> None:
    rig = own_rig
    rig.script("hello", "echo hello")
    worker = rig.start()
    task = rig.put("hello", ring=False)
    rig.server.restart()
    worker.logged("redis=lost")
    assert rig.result(task).stdout == b"hello\n"


def test_a_redis_that_hangs_and_executes_late_what_was_given_up(own_rig: WorkerHarness) -> None:
    """The claim was sent, timed out and is asked for again; the server executes both."""
    rig = own_rig
    ledger = rig.directory / "ledger"
    rig.script("note", f"echo $KINGTASK_ID $KINGTASK_ATTEMPT >> {ledger}")
    worker = rig.start(concurrency=2)
    tasks = rig.put_all([TaskSpec(name="note") for _ in range(3)], ring=False)
    os.kill(rig.server.pid, signal.SIGSTOP)
    rig.wakeups.ready()
    worker.logged("claim=failed kind=lost")
    os.kill(rig.server.pid, signal.SIGCONT)
    assert {rig.result(task).state for task in tasks} == {"succeeded"}
    assert len(ledger.read_text().split("\n")[:-1]) == 3
    for task in tasks:
        assert [a.reason for a in rig.get(task).attempts if a.reason != "released"] == [""]


def test_connections_cut_again_and_again_under_load(own_rig: WorkerHarness) -> None:
    rig = own_rig
    ledger = rig.directory / "ledger"
    rig.script("note", f"echo $KINGTASK_ID $KINGTASK_ATTEMPT >> {ledger}")
    rig.start(concurrency=4, period=0.05)
    tasks = rig.put_all([TaskSpec(name="note") for _ in range(600)])
    for task in tasks[::60]:
        rig.result(task)
        rig.store.client.client_kill_filter(_type="normal", skipme=True)
    assert {rig.result(task).state for task in tasks} == {"succeeded"}
    lines = ledger.read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines)), "one execution for each attempt"
    assert {line.split()[0] for line in lines} == set(tasks)
    for task in tasks:
        assert [a.reason for a in rig.get(task).attempts if a.reason != "released"] == [""]


def test_a_full_redis_still_learns_how_it_ended(own_rig: WorkerHarness) -> None:
    rig = own_rig
    gated(rig)
    rig.script(
        "large",
        f"echo up > {rig.directory}/up; until [ -e {rig.directory}/gate ]; do :; done; head -c 500000 /dev/zero",
    )
    rig.start()
    task = rig.put("large")
    rig.exists("up")
    rig.store.client.config_set("maxmemory", "1mb")
    (rig.directory / "gate").touch()
    result = rig.result(task)
    assert (result.state, len(result.stdout), result.stdout_size) == ("succeeded", 4096, 500_000)
    assert len(result.attempts) == 1


def test_a_lease_that_was_given_away_stops_the_process_at_once(rig: WorkerHarness) -> None:
    gated(rig)
    worker = rig.start(renew=0.2, kill_grace=3600)
    task = rig.put("gated", "x")
    pid = int(rig.exists("up.x"))
    rig.store.client.zadd(f"{rig.store.keys.prefix}running", {task: 1})
    rig.tick()
    worker.logged(f"attempt=fenced task={task} attempt=1")
    until(lambda: not alive(pid), "the end of the first process")
    rig.wakeups.ready()
    (rig.directory / "gate.x").touch()
    result = rig.result(task)
    assert (result.state, [attempt.reason for attempt in result.attempts]) == ("succeeded", ["lost", ""])


def test_a_worker_that_was_stopped_for_long_learns_what_it_lost(rig: WorkerHarness) -> None:
    """What it still runs is stopped at once, what ended meanwhile is not recorded, what comes then is done."""
    gated(rig)
    worker = rig.start(renew=0.2, kill_grace=3600)
    runs, ends = rig.put("gated", "runs"), rig.put("gated", "ends")
    pid = int(rig.exists("up.runs"))
    rig.exists("up.ends")
    worker.signal(signal.SIGSTOP)
    (rig.directory / "gate.ends").touch()
    rig.store.client.zadd(f"{rig.store.keys.prefix}running", {runs: 1, ends: 1})
    rig.tick()
    other = rig.start()
    rig.wakeups.ready()
    assert rig.result(ends).attempts[-1].worker == other.name
    until(lambda: rig.get(runs).attempt == 2, "another attempt")
    worker.signal(signal.SIGCONT)
    worker.logged(f"finish=fenced task={ends} attempt=1")
    until(lambda: not alive(pid), "the end of the process that belongs to nobody")
    assert rig.get(runs).state == "running"
    (rig.directory / "gate.runs").touch()
    assert [attempt.reason for attempt in rig.result(runs).attempts] == ["lost", ""]
    assert [attempt.reason for attempt in rig.get(ends).attempts] == ["lost", ""]
    other.stop()
    assert rig.run("gated", "ends").state == "succeeded"


def test_an_end_under_a_lease_that_was_given_away_is_not_recorded(rig: WorkerHarness) -> None:
    gated(rig)
    worker = rig.start(renew=7.5)
    task = rig.put("gated", "x")
    rig.exists("up.x")
    rig.store.client.zadd(f"{rig.store.keys.prefix}running", {task: 1})
    rig.tick()
    assert rig.get(task).state == "ready"
    (rig.directory / "gate.x").touch()
    worker.logged(f"finish=fenced task={task} attempt=1")
    assert rig.get(task).stdout == b""
    rig.wakeups.ready()
    result = rig.result(task)
    assert [attempt.reason for attempt in result.attempts] == ["lost", ""]


def test_leases_are_renewed_while_a_task_runs(rig: WorkerHarness) -> None:
    gated(rig)
    rig.start(lease=1, renew=0.1)
    task = rig.put("gated", "x")
    rig.exists("up.x")
    running = f"{rig.store.keys.prefix}running"
    first = rig.store.client.zscore(running, task)
    assert first is not None
    until(lambda: (rig.store.client.zscore(running, task) or 0) > first + 1500, "a lease that moves ahead")
    rig.tick()
    assert rig.get(task).state == "running"
    (rig.directory / "gate.x").touch()
    assert len(rig.result(task).attempts) == 1


def test_what_may_be_started_only_once_waits_for_the_replicas(tmp_path: Path) -> None:
    with RedisServer(tcp=True, **FAST_REPLICATION) as primary, primary.replica() as replica:
        rig = WorkerHarness(tmp_path, primary)
        rig.script("hello", "echo $1 >> $0.ran")
        worker = rig.start(ack="replicas", ack_timeout=0.2, period=0.1)
        replica.pause()
        once = rig.put("hello", "once", on_lost="fail")
        worker.logged("claim=unconfirmed")
        again = rig.result(rig.put("hello", "again"))
        assert again.state == "succeeded"
        assert "once" not in (rig.bin / "hello.ran").read_text()
        replica.resume()
        result = rig.result(once)
        assert {attempt.reason for attempt in result.attempts} == {"released", ""}
        assert (rig.bin / "hello.ran").read_text().count("once") == 1
        rig.close()


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize(
    "fault",
    [
        "vfork:error=EAGAIN",
        "vfork:error=ENOMEM",
        "pidfd_open:error=EMFILE",
        "memfd_create:error=ENFILE",
        "pipe2:error=EMFILE",
    ],
)
def test_what_the_kernel_refuses_now_and_then_fails_no_task(rig: WorkerHarness, fault: str) -> None:
    rig.script("copy", "cat")
    # -DD: the worker is the child that the test ends, not strace, which would leave it behind.
    trace = f"-DD -f -qq -o {os.devnull} -e trace=clone,{fault.partition(':')[0]} -e inject={fault}:when=25"
    fork = "-e inject=clone:error=EAGAIN"  # what Python falls back to
    worker = rig.start(program=["strace", *trace.split(), *fork.split(), sys.executable], period=0.1)
    tasks = rig.put_all([TaskSpec(name="copy", stdin=b"x") for _ in range(36)])
    results = [rig.result(task) for task in tasks]
    assert {(result.state, result.stdout) for result in results} == {("succeeded", b"x")}
    worker.logged("spawn=failed")
    assert {attempt.reason for result in results for attempt in result.attempts} == {"released", ""}


def test_a_host_that_cannot_start_processes_hands_back_and_recovers(rig: WorkerHarness) -> None:
    rig.script("hello", "echo hello")
    worker = rig.start(period=0.1)
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    task = rig.put("hello")
    worker.logged("spawn=failed")
    until(lambda: rig.get(task).state == "ready", "the task handed back")
    until(lambda: "Too many open files" in unfit(rig), "a sign of life that says so")
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    result = rig.result(task)
    assert result.stdout == b"hello\n"
    assert {attempt.reason for attempt in result.attempts} == {"released", ""}
    until(lambda: unfit(rig) == "", "a sign of life that says that it recovered")


def test_a_stop_during_an_outage_waits_for_redis_and_delivers(own_rig: WorkerHarness) -> None:
    rig = own_rig
    gated(rig)
    worker = rig.start(drain_timeout=3600)
    task = rig.put("gated", "x")
    pid = int(rig.exists("up.x"))
    rig.server.kill()
    worker.logged("redis=lost")
    worker.signal(signal.SIGTERM)
    worker.logged("worker=draining")
    (rig.directory / "gate.x").touch()
    until(lambda: not alive(pid), "the end of the program")
    rig.server.start()
    assert worker.wait() == 0
    assert rig.get(task).stdout == b"through x\n"


def test_a_stop_without_redis_is_bounded(own_rig: WorkerHarness) -> None:
    rig = own_rig
    gated(rig)
    worker = rig.start(drain_timeout=0.1, kill_grace=0.1)
    task = rig.put("gated", "x")
    rig.exists("up.x")
    rig.server.kill()
    worker.logged("redis=lost")
    assert worker.stop() == 0
    assert not [pid for pid in marked(f"KINGTASK_ID={task}") if alive(pid)]
    assert "unconfirmed=1" in worker.log


def test_redis_may_come_later_than_the_worker(own_rig: WorkerHarness) -> None:
    rig = own_rig
    rig.script("hello", "echo hello")
    task = rig.put("hello", ring=False)
    rig.server.stop()
    worker = rig.start()
    worker.logged("redis=unreachable")
    rig.server.start()
    assert rig.result(task).stdout == b"hello\n"
    assert rig.store.stats().workers[0].name == worker.name
