"""The launchers that the guide shows, each with a real worker; and what a launcher gets to see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kingtask
from kingtask.config import load_worker
from tests.docs.blocks import blocks
from tests.processes import until
from tests.servers import RedisServer
from tests.worker.open_rig import needs_root, open_rig, refused, someone
from tests.worker.rig import WorkerHarness
from tests.worker.test_isolate import owner, pids

PART = Path(kingtask.__file__).parent / "guide" / "isolation.md"
SHOWN = [yaml.safe_load(block.text) for block in blocks(PART, "yaml")]
LAUNCHERS = {Path(shown["launcher"][0]).name: shown["launcher"] for shown in SHOWN if "launcher" in shown}


@pytest.fixture
def rig(server: RedisServer) -> Iterator[WorkerHarness]:
    with open_rig(server) as made:
        yield made


def shown(name: str) -> list[str]:
    """The launcher as the guide has it; skips where it cannot work."""
    words: list[str] = LAUNCHERS[name]
    if not Path(words[0]).exists():
        pytest.skip(f"{words[0]} is not installed")
    if name == "systemd-run" and not Path("/run/systemd/system").exists():
        pytest.skip("systemd does not run here")
    tried = subprocess.run([*words, "/bin/true"], capture_output=True, text=True, check=False)
    if name == "bwrap" and "namespace" in tried.stderr:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    assert (tried.returncode, tried.stderr) == (0, "")
    return words


def test_the_guide_shows_three_and_a_configuration_that_loads(tmp_path: Path) -> None:
    assert set(LAUNCHERS) == {"bwrap", "systemd-run", "setpriv"}
    (options,) = [one for one in SHOWN if "run_as" in one]
    (tmp_path / "bin").mkdir(mode=0o755)
    (tmp_path / "dirs").mkdir(mode=0o755)
    options |= {"run_as": {"user": "nobody"}, "private_dir": f"{tmp_path}/dirs", "bin_path": f"{tmp_path}/bin"}
    path = tmp_path / "worker.yaml"
    path.write_text(yaml.safe_dump(options))
    assert load_worker(path).umask == "077"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_it_runs_tasks_and_hands_on_how_they_end(rig: WorkerHarness, name: str) -> None:
    config: dict[str, Any] = {"run_as": someone()} if name == "bwrap" and os.geteuid() == 0 else {}
    rig.script("say", 'cat; echo "$1 $TASK_A"')
    rig.script("fail", "echo no >&2; exit 7")
    rig.script("stay", f"trap 'exit 0' TERM; sleep 3{os.getpid()} & wait")
    worker = rig.start(launcher=shown(name), **config)
    assert rig.run("say", "x y; $B", stdin=b"in\n", env={"TASK_A": "b c", "TASK_B": "="}).stdout == b"in\nx y; $B b c\n"
    failed = rig.run("fail")
    assert (failed.reason, failed.attempts[0].exit_code, failed.stderr) == ("exit", 7, b"no\n")
    task = rig.put("stay")
    mark = f"sleep\x003{os.getpid()}\x00"
    until(lambda: running(mark), "its start")
    rig.cancel(worker, task)
    assert rig.result(task).state == "cancelled"
    until(lambda: not running(mark), "its end")
    task = rig.put("stay")
    until(lambda: running(mark), "its start")
    worker.kill()
    until(lambda: not running(mark), "its end with the worker")


def running(mark: str) -> bool:
    for pid in pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_text() == mark:
                return True
        except OSError:
            continue
    return False


@needs_root
def test_a_sandbox_shuts_off_files_network_and_processes(rig: WorkerHarness) -> None:
    rig.script(
        "look",
        f"echo x > {rig.directory}/open/x || echo read-only; ls /proc | grep -c '^[0-9]'; ls -d /proc/net/dev /tmp/*;"
        " tail -n +3 /proc/net/dev | cut -d: -f1",
    )
    rig.start(run_as=someone(), launcher=shown("bwrap"))
    told, processes, *rest = rig.run("look", stderr="keep").stdout.decode().split()
    assert told == "read-only"
    assert int(processes) < 10
    assert rest == ["/proc/net/dev", "lo"]


def test_a_launcher_sees_nothing_of_what_a_request_sets_and_gets_the_attempts_directory(rig: WorkerHarness) -> None:
    launcher = rig.directory / "launcher"
    launcher.write_text('#!/bin/sh\necho "launched with [$TASK_A] in $KINGTASK_DIR as $KINGTASK_ID" >&2\nexec "$@"\n')
    launcher.chmod(0o755)
    rig.script("show", 'echo "$TASK_A"; pwd -P; echo $KINGTASK_ID')
    rig.start(launcher=[str(launcher)], private_dir=str(rig.directory / "dirs"))
    task = rig.put("show", env={"TASK_A": "secret"}, stderr="keep")
    result = rig.result(task)
    value, place, task_id = result.stdout.decode().split()
    assert (value, task_id) == ("secret", task)
    assert result.stderr.decode() == f"launched with [] in {place} as {task}\n"


def test_a_path_that_looks_like_a_variable_is_not_taken_for_one(rig: WorkerHarness) -> None:
    place = rig.directory / "a=b"
    rig.bin.rename(place)
    rig.bin.symlink_to(place)
    rig.script("fine", "echo fine")
    rig.start(launcher=shown("setpriv"))
    assert rig.run("fine").stdout == b"fine\n"
    assert rig.run("fine", env={"TASK_A": "b"}).reason == "not_executable"


def test_it_comes_behind_the_user_and_the_limits(rig: WorkerHarness) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may run programs as another user")
    launcher = rig.directory / "launcher"
    launcher.write_text('#!/bin/sh\n[ "$(ulimit -n)" = 64 ] && [ "$(id -u)" != 0 ] && exec "$@"\n')
    launcher.chmod(0o755)
    rig.script("fine", "echo fine")
    rig.start(launcher=[str(launcher)], run_as=someone(), limits={"open_files": 64})
    assert rig.run("fine").stdout == b"fine\n"


def test_one_that_cannot_start_the_executable_is_told_apart(rig: WorkerHarness) -> None:
    rig.script("bad", "", shebang="#!/no/such/interpreter")
    rig.start(launcher=shown("setpriv"))
    (attempt,) = rig.run("bad").attempts
    assert attempt.reason == "exec"
    assert re.search(r"cannot execute bad: setpriv: .*No such file", attempt.message)


def test_one_that_is_not_there_is_refused_and_one_that_goes_is_this_hosts_fault(rig: WorkerHarness) -> None:
    assert "launcher[0]: expected the path of a program, got '/no/bwrap'" in refused(rig, launcher=["/no/bwrap"])
    assert "launcher[0]: expected an absolute path, got 'bwrap'" in refused(rig, launcher=["bwrap"])
    launcher = rig.directory / "launcher"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    launcher.chmod(0o755)
    rig.script("fine", "echo fine")
    worker = rig.start(launcher=[str(launcher)], period=0.05)
    away = launcher.rename(rig.directory / "away")
    task = rig.put("fine")
    worker.logged("spawn=failed")
    away.rename(launcher)
    assert rig.result(task).state == "succeeded"


@needs_root
def test_none_of_it_is_left(rig: WorkerHarness) -> None:
    uid = int(someone(5)["user"])
    rig.script("leave", "setsid sleep 300 & sleep 300 &")
    rig.start(run_as=someone(5), launcher=shown("bwrap"), program=[sys.executable])
    assert rig.run("leave").state == "succeeded"
    until(lambda: not any(owner(pid) == uid for pid in pids()), "the end of all")
