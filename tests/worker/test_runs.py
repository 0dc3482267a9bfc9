"""A worker process and what it runs: what arrives, what comes back, how each end is named."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from kingtask.task import TaskSpec
from tests.processes import alive, descriptors, marked, until
from tests.slowlog import Calls
from tests.worker.rig import WorkerHarness
from tests.worker.test_spawn import HOSTILE_ARGUMENTS


def test_a_task_from_hint_to_result(rig: WorkerHarness) -> None:
    rig.script("sum", 'echo $(($1 + $2)); echo "adding" >&2')
    worker = rig.start()
    task = rig.put("sum", "12", "-45", stderr="keep")
    result = rig.result(task)
    assert (result.state, result.stdout, result.stderr, result.reason) == ("succeeded", b"-33\n", b"adding\n", "")
    (attempt,) = result.attempts
    assert (attempt.number, attempt.worker, attempt.exit_code, attempt.signal) == (1, worker.name, 0, None)
    assert attempt.stderr_tail == b"adding\n"
    assert result.due_at <= attempt.started_at <= attempt.ended_at


def test_without_a_hint_the_worker_polls_after_period(rig: WorkerHarness) -> None:
    rig.script("hello", "echo hello")
    rig.start(period=0.05)
    for _ in range(3):
        assert rig.run("hello", ring=False).stdout == b"hello\n"


def test_told_too_early_a_worker_looks_once_more(rig: WorkerHarness) -> None:
    """The broker may tell of a task before Redis has it."""
    rig.start()
    rig.wakeups.idle()
    with Calls(rig.server.client()) as calls:
        assert rig.wakeups.soon()
        until(lambda: calls.made()["claim"] >= 2, "a second look")
        rig.wakeups.idle()
        assert calls.made()["claim"] == 2


def test_arguments_and_input_arrive_byte_for_byte(rig: WorkerHarness) -> None:
    rig.script(
        "show",
        "import os, sys; print(repr(([os.fsencode(a) for a in sys.argv[1:]], sys.stdin.buffer.read())))",
        shebang=f"#!{sys.executable}",
    )
    rig.start()
    arguments = HOSTILE_ARGUMENTS[:-1]
    data = bytes(range(256)) * 1000
    result = rig.run("show", *arguments, stdin=data)
    assert eval(result.stdout) == ([argument.encode() for argument in arguments], data)
    assert eval(rig.run("show").stdout) == ([], b"")


def test_the_environment_is_the_documented_one(rig: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the worker")
    rig.script("env", "import json, os; print(json.dumps(dict(os.environ)))", shebang=f"#!{sys.executable}")
    worker = rig.start(task_run_time=60)
    task = rig.put("env", env={"TASK_A": "b c\nd", "TRACEPARENT": "00-1"}, queue="default")
    result = rig.result(task)
    found = json.loads(result.stdout)
    assert "SECRET" not in found
    assert {name: found[name] for name in found if name.startswith("KINGTASK_")} == {
        "KINGTASK_ID": task,
        "KINGTASK_ATTEMPT": "1",
        "KINGTASK_QUEUE": "default",
        "KINGTASK_DUE_AT": f"{result.due_at:.3f}",
        "KINGTASK_DEADLINE": f"{result.attempts[0].started_at + 60:.3f}",
        "KINGTASK_WORKER": worker.name,
        "KINGTASK_BROKER": f"ipc://{rig.directory}/broker",
    }
    assert (found["TASK_A"], found["TRACEPARENT"]) == ("b c\nd", "00-1")
    assert found["PATH"] == os.environ["PATH"]


def test_a_large_result(rig: WorkerHarness) -> None:
    rig.script("large", "head -c 900000 /dev/zero | tr '\\0' x")
    rig.start()
    assert rig.run("large").stdout == b"x" * 900_000


def test_a_flood_costs_bounded_memory_and_its_ends_are_kept(rig: WorkerHarness) -> None:
    rig.script("flood", "echo begin; head -c 200000000 /dev/zero; echo; echo the end")
    worker = rig.start(max_output_bytes=100_000)
    rig.run("flood")
    before = high_water_kib(worker.pid)
    result = rig.run("flood")
    assert (len(result.stdout), result.stdout_size, result.truncated) == (100_000, 200_000_015, True)
    assert result.stdout.startswith(b"begin\n\0")
    assert result.stdout.endswith(b"\0\nthe end\n")
    assert high_water_kib(worker.pid) - before < 4096


@pytest.mark.parametrize("limit", [0, 1, 1000, 1001])
def test_both_ends_of_a_long_output_byte_for_byte(rig: WorkerHarness, limit: int) -> None:
    rig.script("count", "seq 100000; seq 100000 >&2")
    rig.start(max_output_bytes=limit, stderr="keep")
    written = b"".join(b"%d\n" % i for i in range(1, 100_001))
    result = rig.run("count")
    for kept, size, cut in (
        (result.stdout, result.stdout_size, result.stdout_cut),
        (result.stderr, result.stderr_size, result.stderr_cut),
    ):
        assert (len(kept), size) == (limit, len(written))
        assert cut is not None
        assert kept == written[:cut] + written[len(written) - (limit - cut) :]
        assert 0 <= cut - (limit - cut) <= 1


def high_water_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    ("text", "state", "reason", "exit_code", "signal_number"),
    [
        ("exit 0", "succeeded", "", 0, None),
        ("exit 3", "failed", "exit", 3, None),
        ("exit 100", "failed", "no_retry", 100, None),
        ("exit 255", "failed", "exit", 255, None),
        ("kill -KILL $$", "failed", "signal", None, signal.SIGKILL),
        ("kill -SEGV $$", "failed", "signal", None, signal.SIGSEGV),
        ("echo oops >&2", "failed", "stderr", 0, None),
        ("echo oops >&2; exit 5", "failed", "exit", 5, None),
    ],
)
def test_each_end_by_its_name(
    rig: WorkerHarness, text: str, state: str, reason: str, exit_code: int | None, signal_number: int | None
) -> None:
    rig.script("task", text)
    rig.start()
    result = rig.run("task")
    assert (result.state, result.reason, result.exit_code, result.signal) == (state, reason, exit_code, signal_number)


def test_signals_that_the_parent_ignored_or_blocked_change_nothing(rig: WorkerHarness) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'tests.worker.launch', sys.argv[1]])"
    )
    rig.script("fail", "exit 7")
    rig.script("look", "grep -E '^Sig(Blk|Ign)' /proc/self/status")
    worker = rig.start("-c", program)
    assert rig.run("fail").exit_code == 7
    blocked, ignored = (int(mask, 16) for mask in rig.run("look").stdout.split()[1::2])
    assert blocked == 0
    assert not ignored & 1 << (signal.SIGCHLD - 1)
    assert worker.stop() == 0


def test_who_keeps_stderr(rig: WorkerHarness) -> None:
    rig.script("warn", "echo careful >&2")
    rig.start(queues=["strict"])
    rig.start(queues=["lax"], stderr="keep")
    found = {
        (queue, stderr): rig.run("warn", queue=queue, stderr=stderr).reason
        for queue in ("strict", "lax")
        for stderr in (None, "fail", "keep")
    }
    assert {key for key, reason in found.items() if reason == "stderr"} == {
        ("strict", None),
        ("strict", "fail"),
        ("lax", "fail"),
    }


def test_a_failure_is_tried_again_as_the_list_says_and_100_is_not(rig: WorkerHarness) -> None:
    rig.script("third", "[ $KINGTASK_ATTEMPT = 3 ] || exit $1; echo at last")
    rig.start()
    first, second = rig.put("third", "1", retry=(0.001, 0.001)), rig.put("third", "100", retry=(0.001, 0.001))

    def ticked() -> bool:
        rig.tick()
        rig.wakeups.ready()
        return all(rig.get(task).ended for task in (first, second))

    until(ticked, "both ends")
    result = rig.get(first)
    assert (result.stdout, [attempt.reason for attempt in result.attempts]) == (b"at last\n", ["exit", "exit", ""])
    assert [attempt.reason for attempt in rig.get(second).attempts] == ["no_retry"]


def test_what_cannot_be_run_yields_a_result(rig: WorkerHarness) -> None:
    outside = rig.directory / "outside"
    outside.write_text("#!/bin/sh\n")
    outside.chmod(0o755)
    (rig.bin / "link").symlink_to(outside)
    (rig.bin / "directory").mkdir()
    rig.script("plain", "").chmod(0o644)
    rig.script("format", "", shebang="echo")
    rig.script("interpreter", "", shebang="#!/no/such/interpreter")
    rig.script("crlf", "", shebang="#!/bin/sh\r")
    rig.start()
    names = [
        "missing",
        "../outside",
        "/bin/sh",
        "a/../../x",
        "link",
        "directory",
        "plain",
        "format",
        "interpreter",
        "crlf",
    ]
    found = {name: rig.run(name) for name in names}
    assert {name: result.state for name, result in found.items()} == dict.fromkeys(names, "failed")
    assert {name: result.reason for name, result in found.items()} == {
        "missing": "missing",
        **dict.fromkeys(["../outside", "/bin/sh", "a/../../x", "link", "directory", "plain"], "not_executable"),
        **dict.fromkeys(["format", "interpreter", "crlf"], "exec"),
    }
    assert all(result.attempts[0].message for result in found.values())
    assert "CR LF" in found["crlf"].attempts[0].message
    assert rig.run("missing", "x" * 100_000).reason == "missing"  # and the worker is still there


def test_a_record_that_makes_no_sense_costs_one_failure(rig: WorkerHarness) -> None:
    rig.script("fine", "echo fine")
    rig.start()
    task = rig.put("fine", ring=False)
    rig.store.client.hset(rig.store.keys.task(task), "s", b"\xc1garbage")
    rig.wakeups.ready()
    reason = until(lambda: rig.store.client.hget(rig.store.keys.task(task), "reason"), "an end")
    assert reason == b"exec"
    assert rig.run("fine").stdout == b"fine\n"


def test_as_many_at_once_as_there_are_slots(rig: WorkerHarness) -> None:
    # Each waits until all four are there, so they end only if they really run together.
    rig.script(
        "meet", f"echo > {rig.directory}/here.$1; while [ $(ls {rig.directory}/here.* | wc -l) -lt 4 ]; do :; done"
    )
    rig.start(concurrency=4)
    tasks = rig.put_all([TaskSpec(name="meet", args=(str(i),)) for i in range(4)])
    assert {rig.result(task).state for task in tasks} == {"succeeded"}


def test_never_more_at_once_than_there_are_slots(rig: WorkerHarness) -> None:
    rig.script("count", f"cd {rig.directory}; mkdir now.$1; ls -d now.* | wc -l; rmdir now.$1")
    rig.start(concurrency=3)
    tasks = rig.put_all([TaskSpec(name="count", args=(str(i),)) for i in range(60)])
    assert {int(rig.result(task).stdout) for task in tasks} <= {1, 2, 3}


def test_queues_in_the_order_listed_then_priority_then_first_in_first_out(rig: WorkerHarness) -> None:
    rig.script("note", f"echo $1 >> {rig.directory}/order")
    specs = [
        TaskSpec(name="note", args=("low1",), queue="low"),
        TaskSpec(name="note", args=("low2",), queue="low", priority=9),
        TaskSpec(name="note", args=("high1",), queue="high"),
        TaskSpec(name="note", args=("high2",), queue="high"),
        TaskSpec(name="note", args=("other",), queue="other"),
    ]
    tasks = rig.put_all(specs, ring=False)
    rig.start(queues=["high", "low"], concurrency=1)
    for task in tasks[:4]:
        rig.result(task)
    assert (rig.directory / "order").read_text().split() == ["high1", "high2", "low2", "low1"]
    assert rig.get(tasks[4]).state == "ready"


def test_the_time_limit_ends_the_grandchildren_too(rig: WorkerHarness) -> None:
    rig.script("tree", f"sleep 300 & sh -c 'sleep 300; true' & echo $! > {rig.directory}/tree; wait")
    rig.start(kill_grace=60)
    task = rig.put("tree", time_limit_s=0.3)
    rig.exists("tree")
    result = rig.result(task)
    assert (result.state, result.reason, result.signal) == ("failed", "time_limit", signal.SIGTERM)
    assert "0.3 s" in result.attempts[0].message
    until(lambda: not any(alive(pid) for pid in marked(f"KINGTASK_ID={task}")), "the end of its descendants")
    attempt = result.attempts[0]
    assert attempt.ended_at - attempt.started_at > 0.29  # Redis's clock as seen from there may move a little


def test_the_worker_s_own_limit_and_one_who_ignores_term(rig: WorkerHarness) -> None:
    rig.script("deaf", "trap '' TERM; echo deaf; while :; do sleep 300; done")
    rig.start(task_run_time=0.2, kill_grace=0.3)
    result = rig.run("deaf")
    assert (result.reason, result.signal, result.stdout) == ("time_limit", signal.SIGKILL, b"deaf\n")
    assert result.attempts[0].ended_at - result.attempts[0].started_at > 0.49


def test_a_grandchild_that_holds_the_pipes_does_not_hold_the_slot(rig: WorkerHarness) -> None:
    rig.script("leave", "sleep 300 & echo left")
    rig.start(concurrency=1)
    for _ in range(2):
        result = rig.run("leave")
        assert (result.state, result.stdout) == ("succeeded", b"left\n")
        assert "left a process behind" in result.attempts[0].message
        until(lambda: not any(alive(pid) for pid in marked(f"KINGTASK_ID={result.id}")), "the end of what it left")  # noqa: B023


def test_a_thousand_attempts_leave_nothing_behind(rig: WorkerHarness) -> None:
    rig.script("brief", "echo $1")
    rig.script("failing", "echo no >&2; exit 1")
    rig.script("daemon", "setsid sh -c 'sleep 300 &' </dev/null >/dev/null 2>&1")
    worker = rig.start()
    mix = [TaskSpec(name=name, args=("x",), stdin=b"y") for name in ("brief", "failing", "missing", "daemon")]
    for task in rig.put_all(mix * 3):
        rig.result(task)
    until(lambda: worker.children() == [worker.guard], "no children")
    before = descriptors(worker.pid)
    for task in rig.put_all(mix * 250):
        rig.result(task)
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")
    assert descriptors(worker.pid) == before


def test_what_the_worker_says_of_itself(rig: WorkerHarness) -> None:
    worker = rig.start(queues=["a", "b"], concurrency=3, name="rack7")
    (peer,) = until(lambda: rig.store.stats().workers, "a heartbeat")
    assert peer.name == worker.name
    assert worker.name.startswith(f"rack7.{worker.pid}.")
    assert peer.facts == {
        "host": os.uname().nodename,
        "pid": worker.pid,
        "version": peer.facts["version"],
        "queues": ["a", "b"],
        "slots": 3,
        "busy": 0,
        "bin_path": [str(rig.bin)],
        "unfit": "",
    }


def test_a_task_wakes_one_worker(rig: WorkerHarness) -> None:
    """It claims on the hint; it has room when the task ends, and those that heard nothing do not claim."""
    rig.script("quick", "")
    for _ in range(3):
        rig.start(concurrency=2)
    rig.wakeups.idle(3)
    claims = 0
    with rig.server.client().monitor() as monitor:
        for _ in range(10):
            rig.run("quick")
            rig.wakeups.idle(3)
        rig.server.client().ping()
        for seen in monitor.listen():
            claims += bool(re.match(r"FCALL \w*claim", seen["command"], re.IGNORECASE))
            if seen["command"] == "PING":
                break
    assert claims == 10
