"""What leaves its group, its session, its parent and its environment: nothing of an attempt outlives it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import alive, until
from tests.worker.rig import WorkerHarness, WorkerProcess

DAEMON = "setsid sh -c 'sleep 300 & echo $! > {0}/$1.part; mv {0}/$1.part {0}/$1' sh $1 </dev/null >/dev/null 2>&1"
"""Leaves its session, its parent and the outputs; says who it is in a file of the argument's name."""
NAMELESS = f"env -i PATH=/usr/bin:/bin {DAEMON}"
"""Its environment, too."""


def gone(pid: int) -> None:
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {pid}, reaped")


def started_s(pid: int) -> float:
    """Rounded down to a clock tick, as it is what the worker compares."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def only_the_guard(worker: WorkerProcess) -> None:
    until(lambda: worker.children() == [worker.guard], "no children, no zombies")


@pytest.mark.parametrize("daemon", [DAEMON, NAMELESS], ids=["marked", "nameless"])
def test_a_daemon_does_not_outlive_its_attempt(rig: WorkerHarness, daemon: str) -> None:
    rig.script("daemon", daemon.format(rig.directory))
    worker = rig.start()
    result = rig.run("daemon", "it")
    assert (result.state, result.stderr) == ("succeeded", b"")
    gone(int(rig.exists("it")))
    only_the_guard(worker)
    worker.logged("orphan=killed")


def test_one_that_holds_the_outputs_is_ended_before_they_are_read_to_their_end(rig: WorkerHarness) -> None:
    away = rig.directory / "away"
    rig.script(
        "leave", f"env -i setsid /bin/sh -c 'echo $$ > {away}; /bin/sleep 300' & until [ -s {away} ]; do :; done"
    )
    worker = rig.start()
    result = rig.run("leave")
    assert result.state == "succeeded"
    assert "left a process behind" in result.attempts[0].message
    worker.logged("out_of_reach=no")
    gone(int(rig.exists("away")))
    only_the_guard(worker)


@pytest.mark.parametrize("daemon", [DAEMON, NAMELESS], ids=["marked", "nameless"])
def test_the_helper_of_a_running_attempt_is_left_alone_until_its_end(rig: WorkerHarness, daemon: str) -> None:
    """Others come and go meanwhile; its own end, by the time limit, takes it along."""
    go_on = rig.directory / "go_on"
    rig.script(
        "helped",
        f"{daemon.format(rig.directory)}; until [ -e {go_on} ]; do sleep 0.01; done; kill -0 $(cat {rig.directory}/it)",
    )
    rig.script("other", DAEMON.format(rig.directory))
    worker = rig.start(period=0.05)
    helped = rig.put("helped", "it")
    helper = int(rig.exists("it"))
    for name in ("a", "b"):
        assert rig.run("other", name).state == "succeeded"
        gone(int(rig.exists(name)))
    go_on.touch()
    assert rig.result(helped).state == "succeeded"
    gone(helper)
    only_the_guard(worker)


def test_an_orphan_that_hides_its_attempt_is_killed_once_none_of_the_possible_attempts_runs(rig: WorkerHarness) -> None:
    rig.script("long", f"echo up > {rig.directory}/$1; exec sleep 300")
    rig.script("daemon", NAMELESS.format(rig.directory))
    worker = rig.start(kill_grace=60)
    earlier = rig.put("long", "earlier")
    rig.exists("earlier")
    rig.run("daemon", "it")
    daemon = int(rig.exists("it"))
    until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > started_s(daemon) + 0.02, "a later tick of the clock")
    later = rig.put("long", "later")
    rig.exists("later")
    assert alive(daemon)  # it may be a helper of the first
    rig.cancel(worker, earlier)
    gone(daemon)
    assert rig.get(later).state == "running"


def test_a_chain_of_processes_that_each_live_for_a_moment_is_caught(rig: WorkerHarness) -> None:
    chain = (
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "if os.fork(): sys.exit()\n"
        "os.setsid(); os.closerange(0, 3); os.environ.clear()\n"
        f"open({str(rig.directory / 'up')!r}, 'w').write('up\\n')\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
    )
    path = rig.script("chain", "")
    path.write_text(chain)
    worker = rig.start(period=0.05)
    rig.run("chain")
    only_the_guard(worker)


def test_an_orphan_that_ends_by_itself_is_reaped_while_its_attempt_runs(rig: WorkerHarness) -> None:
    brief = DAEMON.replace("sleep 300", "sleep 0.01")
    rig.script("brief", f"{brief.format(rig.directory)}; echo up > {rig.directory}/up; exec sleep 300")
    worker = rig.start(period=0.05)
    task = rig.put("brief", "it")
    rig.exists("up")
    gone(int(rig.exists("it")))
    assert rig.get(task).state == "running"
    assert len(worker.children()) == 2


def test_orphans_of_children_from_before_the_worker_are_spared(rig: WorkerHarness) -> None:
    """It has a child from before its exec, whose own orphans become the worker's children, too."""
    stranger = (
        f"(until [ -e {rig.directory}/go ]; do sleep 0.01; done; {DAEMON.format(rig.directory)}; exec sleep 300) & exec"
    )
    worker = rig.start(
        program=["/bin/sh", "-c", f'set -- theirs "$@"; {stranger} "{sys.executable}" "$2" "$3" "$4"', "sh"]
    )
    (rig.directory / "go").touch()
    theirs = int(rig.exists("theirs"))
    rig.script("daemon", DAEMON.format(rig.directory))
    rig.run("daemon", "ours")
    gone(int(rig.exists("ours")))
    strangers = [pid for pid in worker.children() if pid != worker.guard]
    try:
        assert len(strangers) == 2
        assert theirs in strangers
        assert worker.stop() == 0
        assert all(alive(pid) for pid in strangers)
    finally:
        for pid in strangers:
            os.kill(pid, signal.SIGKILL)


def test_nothing_of_a_running_attempt_outlives_a_worker_that_gives_up(rig: WorkerHarness) -> None:
    """As when it is killed: what is below the attempts' processes has no name and no session of theirs."""
    away = rig.directory / "away"
    text = f"env -i setsid /bin/sh -c 'echo $$ > {away}; /bin/sleep 300; :' & wait"
    rig.script("leave", text)
    worker = rig.start()
    rig.put("leave")
    pid = int(rig.exists("away"))
    below = until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split(), "its child")
    worker.kill()
    until(lambda: not alive(pid) and not alive(int(below[0])), "the end of what it ran")


NAMED = f"""#!{sys.executable} -IS
import ctypes, os, sys, time
if os.fork():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.001)
    os._exit(0)
os.setsid()
ctypes.CDLL(None).prctl(15, b"x) Z 1 \\xc3", 0, 0, 0)  # PR_SET_NAME
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
with open(sys.argv[1] + ".part", "w") as file:
    print(os.getpid(), file=file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(300)
"""


def test_an_orphan_with_a_misleading_name_is_killed(rig: WorkerHarness) -> None:
    """Of any bytes: a name in UTF-8 may be cut within a character, too."""
    path = rig.script("named", "")
    path.write_text(NAMED)
    worker = rig.start(concurrency=1)
    for number in range(2):
        assert rig.run("named", f"{rig.directory}/{number}").state == "succeeded"
        gone(int(rig.exists(str(number))))
    worker.logged(r"x) Z 1 \\xc3")
    only_the_guard(worker)
