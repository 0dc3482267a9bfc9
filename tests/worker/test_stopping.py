"""How a worker goes: drained, hurried, killed; and how what it runs is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kingtask.store import functions
from kingtask.task import TaskSpec
from tests.processes import alive, marked, until
from tests.worker.rig import WorkerHarness

PARK = "echo $$ > {0}/parked.$1; exec sleep 300"


def park(rig: WorkerHarness, *names: str, text: str = PARK, **fields: Any) -> dict[str, int]:
    """Tasks that run until they are ended, by id with the number of their process."""
    rig.script("park", text.format(rig.directory))
    tasks = rig.put_all([TaskSpec(name="park", args=(name,), **fields) for name in names])
    return {task: int(rig.exists(f"parked.{name}")) for task, name in zip(tasks, names, strict=True)}


# ── cancel ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_ends_the_task_and_its_children(rig: WorkerHarness) -> None:
    worker = rig.start(kill_grace=60)
    text = "sleep 300 & echo $! > {0}/child; echo $$ > {0}/parked.$1; wait"
    ((task, pid),) = park(rig, "a", text=text).items()
    rig.store.ask(functions.cancel(rig.policy, task))
    rig.wakeups.cancel(worker.name, task)
    result = rig.result(task)
    assert (result.state, result.reason, result.attempts[0].signal) == ("cancelled", "cancelled", signal.SIGTERM)
    assert not alive(pid)
    child = int(rig.exists("child"))
    until(lambda: not alive(child), "the end of the child")


def test_cancel_without_a_hint_is_seen_at_the_next_renewal(rig: WorkerHarness) -> None:
    rig.start(renew=0.1)
    ((task, _),) = park(rig, "a").items()
    rig.store.ask(functions.cancel(rig.policy, task))
    assert rig.result(task).state == "cancelled"


def test_a_false_hint_stops_nothing(rig: WorkerHarness) -> None:
    worker = rig.start()
    rig.script("long", f"echo up > {rig.directory}/up; until [ -e {rig.directory}/on ]; do :; done; echo whole")
    task = rig.put("long")
    rig.exists("up")
    rig.wakeups.cancel(worker.name, task)
    rig.wakeups.cancel(worker.name, "no such task")
    other = rig.run("missing")  # the hints are dealt with: they came before this
    assert other.ended
    (rig.directory / "on").touch()
    assert rig.result(task).stdout == b"whole\n"


def test_cancelled_but_faster(rig: WorkerHarness) -> None:
    """A success that came before the worker heard of it stands."""
    rig.start()
    rig.script("quick", f"echo up > {rig.directory}/up; until [ -e {rig.directory}/on ]; do :; done")
    task = rig.put("quick")
    rig.exists("up")
    rig.store.ask(functions.cancel(rig.policy, task))
    (rig.directory / "on").touch()
    assert rig.result(task).state == "succeeded"


# ── drain ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_waits_for_what_runs_and_claims_nothing_more(rig: WorkerHarness) -> None:
    worker = rig.start(concurrency=1)
    rig.script("long", f"echo up > {rig.directory}/up; until [ -e {rig.directory}/on ]; do :; done; echo whole")
    first = rig.put("long")
    rig.exists("up")
    worker.signal(signal.SIGTERM)
    worker.logged("worker=draining")
    # Its heartbeat serves no queue any more.
    until(lambda: rig.store.stats().workers[0].facts["queues"] == [], "a heartbeat without queues")
    second = rig.put("long")
    (rig.directory / "on").touch()
    assert worker.wait() == 0
    assert rig.get(first).stdout == b"whole\n"
    assert rig.get(second).state == "ready"
    assert "worker=stopped" in worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_goes_at_once(rig: WorkerHarness, number: int) -> None:
    worker = rig.start()
    guard = worker.guard
    worker.signal(number)
    assert worker.wait() == 0
    until(lambda: not alive(guard), "the end of the guard")


def test_what_outlasts_the_drain_is_released_uncounted(rig: WorkerHarness) -> None:
    worker = rig.start(drain_timeout=0.2, kill_grace=60)
    parked = park(rig, "a", "b")
    assert worker.stop() == 0
    for task, pid in parked.items():
        assert not alive(pid)
        result = rig.get(task)
        assert (result.state, [attempt.reason for attempt in result.attempts]) == ("ready", ["released"])
        assert rig.store.client.hget(rig.store.keys.task(task), "failures") is None
    rig.script("park", "echo again")
    rig.start()
    assert {rig.result(task).stdout for task in parked} == {b"again\n"}


def test_what_may_run_only_once_is_interrupted_instead(rig: WorkerHarness) -> None:
    worker = rig.start(drain_timeout=0.2)
    ((task, _),) = park(rig, "a", on_lost="fail", retry=(1.0, 1.0)).items()
    assert worker.stop() == 0
    result = rig.get(task)
    assert (result.state, result.reason) == ("failed", "interrupted")


def test_a_second_signal_ends_the_wait(rig: WorkerHarness) -> None:
    worker = rig.start(drain_timeout=3600)
    ((task, pid),) = park(rig, "a").items()
    worker.signal(signal.SIGTERM)
    worker.logged("worker=draining")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not alive(pid)
    assert rig.get(task).state == "ready"


def test_a_third_signal_ends_the_grace(rig: WorkerHarness) -> None:
    worker = rig.start(drain_timeout=3600, kill_grace=3600)
    text = "trap '' TERM; echo $$ > {0}/parked.$1; while :; do sleep 300; done"
    ((task, pid),) = park(rig, "a", text=text).items()
    worker.signal(signal.SIGINT)
    worker.logged("worker=draining")
    worker.signal(signal.SIGINT)
    worker.logged("worker=stopping")
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0
    assert not alive(pid)
    assert rig.get(task).attempts[0].signal == signal.SIGKILL


def test_a_drain_of_hundreds_hands_back_what_waits_and_loses_nothing(rig: WorkerHarness) -> None:
    rig.script("brief", "echo done")
    worker = rig.start(concurrency=8)
    tasks = rig.put_all([TaskSpec(name="brief") for _ in range(400)])
    rig.result(tasks[20])
    assert worker.stop() == 0
    states = {rig.get(task).state for task in tasks}
    assert states <= {"succeeded", "ready"}
    rig.start(concurrency=8)
    assert {rig.result(task).stdout for task in tasks} == {b"done\n"}
    assert all(len([a for a in rig.get(task).attempts if a.reason != "released"]) == 1 for task in tasks)


# ── kill ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_outlives_a_killed_worker(rig: WorkerHarness) -> None:
    """Neither a group, nor a session of its own, nor what was started in the last moment."""
    text = "setsid sleep 300 & trap '' TERM INT HUP; sleep 300 & echo $$ > {0}/parked.$1; wait"
    for round_ in range(3):
        worker = rig.start(concurrency=4)
        guard = worker.guard
        mark = f"KINGTASK_WORKER={worker.name}"
        parked = park(rig, *(f"{round_}.{i}" for i in range(4)), text=text)
        until(
            lambda: len([pid for pid in marked(mark) if alive(pid)]) == 12,  # noqa: B023
            "all of them, none of which is in the middle of its exec",
        )
        worker.kill()
        until(lambda: not any(alive(pid) for pid in marked(mark)), "the end of everything it had started")  # noqa: B023
        until(lambda: not alive(guard), "the end of the guard")  # noqa: B023
        for task in parked:
            rig.store.ask(functions.cancel(rig.policy, task))


def test_a_program_without_our_environment_does_not_outlive_a_killed_worker_either(rig: WorkerHarness) -> None:
    worker = rig.start()
    text = "echo $$ > {0}/parked.$1; exec env -i sleep 300"
    ((_, pid),) = park(rig, "a", text=text).items()
    until(lambda: Path(f"/proc/{pid}/environ").read_bytes() == b"", "a program without environment")
    worker.kill()
    until(lambda: not alive(pid), "its end")


def test_a_worker_killed_while_it_starts_programs_leaves_none(rig: WorkerHarness) -> None:
    """Killed at a random moment between fork, exec and the entry into the guard's table."""
    rig.script("park", f"echo > {rig.directory}/up; exec sleep 300")
    for _ in range(5):
        worker = rig.start(concurrency=64)
        mark = f"KINGTASK_WORKER={worker.name}"
        rig.put_all([TaskSpec(name="park") for _ in range(64)])
        until((rig.directory / "up").exists, "a first program")
        worker.kill()
        (rig.directory / "up").unlink()
        until(lambda: not any(alive(pid) for pid in marked(mark)), "the end of everything it had started")  # noqa: B023
        rig.store.client.delete(f"{rig.store.keys.prefix}ready:default")


def test_the_guard_is_deaf_to_what_stops_the_worker(rig: WorkerHarness) -> None:
    worker = rig.start()
    ((_, pid),) = park(rig, "a").items()
    guard = worker.guard
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)
    assert Path(f"/proc/{guard}/comm").read_text() == "kingtask-reaper\n"
    assert os.getsid(guard) == guard
    worker.kill()
    until(lambda: not alive(pid), "the end of the program")


def test_a_worker_that_lost_track_ends_and_takes_everything_along(rig: WorkerHarness) -> None:
    """Else it would renew, for ever, the lease of an attempt that it no longer knows."""
    program = (
        "import sys; from kingtask import config, log; from kingtask.worker import host, worker\n"
        "def broken(*_): raise RuntimeError('a bug')\n"
        "worker.WorkerState.cancel_hint = broken\n"
        "log.setup('worker'); sys.exit(host.run(config.load_worker(sys.argv[1]), None, sys.argv[1]))"
    )
    worker = rig.start("-c", program)
    ((task, pid),) = park(rig, "a").items()
    rig.wakeups.cancel(worker.name, task)
    assert worker.wait() == 1
    until(lambda: not alive(pid), "the end of what it ran")
    assert "worker=broken error=\"RuntimeError('a bug')\"" in worker.log
    assert rig.get(task).state == "running"  # until its lease has run out


def test_a_lost_guard_is_replaced(rig: WorkerHarness) -> None:
    worker = rig.start(renew=0.1)
    away = rig.directory / "away"
    rig.script("escape", f"setsid sh -c ': > {away}; exec sleep 300' & until [ -e {away} ]; do :; done")
    ((_, first),) = park(rig, "before").items()
    lost = worker.guard
    os.kill(lost, signal.SIGKILL)
    worker.logged("reaper=lost")
    assert worker.guard != lost
    escaped = rig.run("escape").id
    until(lambda: not any(alive(pid) for pid in marked(f"KINGTASK_ID={escaped}")), "the end of the one that got away")
    ((_, second),) = park(rig, "after").items()
    worker.kill()
    until(lambda: not alive(first) and not alive(second), "the end of what ran before and after")


def test_a_guard_that_does_not_answer_holds_nothing_up(rig: WorkerHarness) -> None:
    rig.script("leave", "setsid sleep 300 & echo left")
    worker = rig.start()
    guard = worker.guard
    os.kill(guard, signal.SIGSTOP)
    assert rig.run("leave").stdout == b"left\n"
    assert worker.stop() == 0
    assert not alive(guard)
