"""Another user, limits, niceness, umask and a clean environment: what an attempt has of them, and who stops it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kingtask.config import load_worker
from kingtask.task import TaskSpec
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.sandbox.isolate import Isolation
from tests.processes import alive, until
from tests.servers import RedisServer
from tests.worker.intruder import SHEBANG
from tests.worker.open_rig import needs_root, open_rig, refused, someone
from tests.worker.rig import WorkerHarness
from tests.worker.test_orphans import DAEMON, NAMELESS, gone, only_the_guard

pytestmark = needs_root

MIB = 1_048_576


@pytest.fixture
def rig(server: RedisServer) -> Iterator[WorkerHarness]:
    with open_rig(server) as made:
        yield made


def python(rig: WorkerHarness, name: str, text: str) -> None:
    rig.script(name, text, shebang=SHEBANG)


def test_an_attempt_is_another_user_with_nothing_of_the_workers(rig: WorkerHarness) -> None:
    rig.script("who", "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs|Uid|Gid)' /proc/self/status")
    rig.start(run_as=someone())
    uid, gid, groups, *status = rig.run("who").stdout.decode().splitlines()
    assert (uid, gid, groups) == (someone()["user"],) * 3
    found = dict(line.split(":", 1) for line in status)
    for name in ("Uid", "Gid"):
        assert found[name].split() == [uid] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"].strip() == "1"


def test_the_outputs_and_the_input_can_be_opened_by_their_names(rig: WorkerHarness) -> None:
    rig.script("names", "cat /dev/stdin > /dev/stdout; echo error > /dev/stderr")
    rig.start(run_as=someone())
    result = rig.run("names", stdin=b"input", stderr="keep")
    assert (result.stdout, result.stderr) == (b"input", b"error\n")


def test_a_user_with_an_entry_has_the_groups_and_the_home_of_it(rig: WorkerHarness) -> None:
    rig.script("who", "id -un; id -gn; id -G; echo $HOME $USER $LOGNAME $SHELL")
    rig.start(run_as={"user": "nobody"}, environment=["PATH"])
    expected = subprocess.run(
        ["sh", "-c", "id -un nobody; id -gn nobody; id -G nobody; getent passwd nobody"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    home, shell = expected.pop().split(":")[5:7]
    assert rig.run("who").stdout.decode().splitlines() == [*expected, f"{home} nobody nobody {shell}"]


def test_a_worker_that_may_not_change_the_user_does_not_start_and_says_what_it_needs(rig: WorkerHarness) -> None:
    bounded = ("/usr/bin/setpriv", "--bounding-set=-setuid,-kill", sys.executable)
    with pytest.raises(AssertionError):
        rig.start(program=bounded, run_as=someone())
    assert "run_as: with run_as the worker needs CAP_SETUID CAP_KILL: start it as root" in rig.workers[-1].log
    said = refused(rig, run_as=someone(), limits={"open_files": 1_048_576}) if no_resource_right() else ""
    assert not said or "prlimit: failed to set the NOFILE" in said


def no_resource_right() -> bool:
    return not int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16) >> 24 & 1


def test_a_worker_does_not_start_if_the_user_cannot_get_at_the_executables(rig: WorkerHarness) -> None:
    rig.bin.chmod(0o750)
    assert f"can't cd to {rig.bin}" in refused(rig, run_as=someone())


def test_a_worker_that_is_not_root_lends_none_of_its_rights(rig: WorkerHarness) -> None:
    """As with `AmbientCapabilities=` in a unit: what it has it would pass on, were that not stopped."""
    rights = ",".join(f"+{name}" for name in ("setuid", "setgid", "kill", "dac_override", "chown", "fowner"))
    own = someone(1)["user"]
    as_user = ["/usr/bin/setpriv", f"--reuid={own}", f"--regid={own}", "--clear-groups"]
    program = [*as_user, f"--inh-caps={rights}", f"--ambient-caps={rights}", sys.executable]
    rig.script("caps", "id -u; grep -h ^Cap[PEIA] /proc/self/status | cut -f2 | sort -u")
    rig.script("sleep", f"trap '' TERM; echo $$ > {rig.directory}/open/it; sleep 300")
    worker = rig.start(program=program, run_as=someone(), private_dir=str(rig.directory / "dirs"), kill_grace=0.01)
    assert rig.run("caps").stdout.decode().split() == [someone()["user"], "0" * 16]
    task = rig.put("sleep")
    pid = int(rig.exists("open/it"))
    rig.cancel(worker, task)
    assert rig.result(task).state == "cancelled"
    gone(pid)
    (rig.directory / "open" / "it").unlink()
    rig.put("sleep")
    pid = int(rig.exists("open/it"))
    worker.kill()
    until(lambda: not alive(pid), "its end with the worker")


def test_without_another_user_it_lends_none_of_them_either() -> None:
    """A unit gives them, and the configuration does without."""
    own = someone(1)["user"]
    rights = "+setuid,+dac_override"  # the latter so that it can be where this interpreter is
    as_user = ["/usr/bin/setpriv", f"--reuid={own}", f"--regid={own}", "--clear-groups"]
    script = (
        "import os, sys; from kingtask import linux\n"
        "linux.clear_ambient_capabilities(); print(linux.missing_capabilities(['SETUID']), flush=True)\n"
        "os.execv('/bin/grep', ['grep', '-h', '^Cap[PEA]', '/proc/self/status'])"
    )
    command = [*as_user, f"--inh-caps={rights}", f"--ambient-caps={rights}", sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert told.split()[0] == "[]"
    assert set(re.findall(r"[0-9a-f]{16}", told)) == {"0" * 16}


def test_with_a_user_for_each_slot_no_two_attempts_have_the_same(rig: WorkerHarness) -> None:
    users = [someone(n)["user"] for n in range(3)]
    rig.script("meet", f"echo > {rig.directory}/open/$1; until [ -e {rig.directory}/go ]; do sleep 0.01; done; id -u")
    rig.start(run_as={"user": users, "group": users[0]}, concurrency=3)
    for _ in range(2):
        tasks = [rig.put("meet", name) for name in "abc"]
        for name in "abc":
            until(lambda name=name: (rig.directory / "open" / name).exists(), name)  # type: ignore[misc]
        (rig.directory / "go").touch()
        assert sorted(rig.result(task).stdout.decode().strip() for task in tasks) == sorted(users)
        (rig.directory / "go").unlink()
        for name in "abc":
            (rig.directory / "open" / name).unlink()


def test_niceness_umask_and_environment(rig: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_KEPT", "yes")
    monkeypatch.setenv("KT_SECRET", "no")
    monkeypatch.setenv("TZ", "UTC")
    rig.script("look", "umask; nice; env")
    rig.start(nice=7, umask="027", environment=["KT_KEPT"])
    umask, nice, *variables = rig.run("look", env={"TASK_A": "b"}).stdout.decode().splitlines()
    assert (umask, nice) == ("0027", str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)))
    names = {line.partition("=")[0] for line in variables if "=" in line}
    assert {"KT_KEPT", "TASK_A", "PATH", "KINGTASK_ID"} <= names
    assert not names & {"KT_SECRET", "TZ", "USER"}


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_bind_and_cannot_be_raised(rig: WorkerHarness) -> None:
    limits = {"memory": 256 * MIB, "cpu_time": 60, "open_files": 64, "processes": 30, "file_size": 1000, "core": 0}
    python(
        rig,
        "show",
        "import json, resource as r\n"
        "names = 'AS', 'CPU', 'NOFILE', 'NPROC', 'FSIZE', 'CORE'\n"
        "print(json.dumps([r.getrlimit(getattr(r, 'RLIMIT_' + name)) for name in names]))\n"
        "try: r.setrlimit(r.RLIMIT_NOFILE, (65, 65))\n"
        "except ValueError: print('refused')\n",
    )
    rig.start(run_as=someone(), limits=limits)
    shown, refusal = rig.run("show").stdout.decode().splitlines()
    wanted = [[value, value] for value in limits.values()]
    wanted[1] = [60, 65]
    assert (json.loads(shown), refusal) == (wanted, "refused")


def test_what_takes_too_much_memory_fails_and_is_told_why(rig: WorkerHarness) -> None:
    python(rig, "list", "x = bytearray(1 << 30)")
    python(
        rig, "quiet", "import os\ntry: x = [bytearray(1 << 20) for _ in range(1000)]\nexcept MemoryError: os.abort()"
    )
    python(rig, "modest", "raise SystemExit(3)")
    rig.start(run_as=someone(), limits={"memory": 512 * MIB, "core": 0})
    for name, code, number in (("list", 1, None), ("quiet", None, signal.SIGABRT)):
        (attempt,) = rig.run(name).attempts
        assert (attempt.reason, attempt.exit_code, attempt.signal) == ("out_of_memory", code, number), attempt.message
        assert "512 MiB each (limits.memory)" in attempt.message
    assert rig.run("modest").reason == "exit"


def test_cpu_time_and_file_size_end_by_signals_that_say_so(rig: WorkerHarness) -> None:
    rig.script("spin", "while :; do :; done")
    rig.script("fill", f"exec head -c 2000 /dev/zero > {rig.directory}/open/filled")
    rig.start(run_as=someone(), limits={"cpu_time": 1, "file_size": 1000, "core": 0})
    filled = rig.run("fill", stderr="keep")
    assert (filled.reason, filled.attempts[0].signal) == ("signal", signal.SIGXFSZ)
    assert (rig.directory / "open" / "filled").stat().st_size == 1000
    spun = rig.run("spin")
    assert (spun.reason, spun.attempts[0].signal) == ("signal", signal.SIGXCPU)
    assert "the 1 s of CPU time that a process may have (limits.cpu_time)" in spun.attempts[0].message


def test_descriptors_run_out_in_the_program_not_in_the_worker(rig: WorkerHarness) -> None:
    python(rig, "hog", "import os\nfor i in range(200):\n    try: os.dup(0)\n    except OSError: break\nprint(i)")
    rig.start(limits={"open_files": 64})
    assert int(rig.run("hog").stdout) < 64


def test_a_process_limit_that_does_not_bind_is_refused(rig: WorkerHarness) -> None:
    assert "limits.processes: it does not bind root" in refused(rig, limits={"processes": 10})


def test_a_fork_bomb_leaves_other_users_alone_and_nothing_behind(rig: WorkerHarness) -> None:
    users = [someone(n)["user"] for n in range(2)]
    rig.script("bomb", "bomb() { bomb & bomb & }; bomb; sleep 300")
    rig.script("fine", "echo $(echo fine)")
    worker = rig.start(run_as={"user": users, "group": users[0]}, concurrency=2, limits={"processes": 20})
    bomb = rig.put("bomb", time_limit_s=1.0)
    rig.running(bomb)
    for _ in range(5):
        assert rig.run("fine").stdout == b"fine\n"
    assert rig.result(bomb).reason in ("time_limit", "exit", "stderr")
    only_the_guard(worker)
    until(lambda: not any(owner(pid) in map(int, users) for pid in pids()), "the end of the bomb")


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def owner(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except FileNotFoundError:
        return -1


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_executed_is_told_as_such(rig: WorkerHarness) -> None:
    rig.script("bad", "", shebang="#!/no/such/interpreter")
    (rig.bin / "plain").write_text("no format\n")
    (rig.bin / "plain").chmod(0o755)
    rig.script("like", "echo setpriv: nothing of the kind >&2; exit 3")
    rig.script("fine", "echo fine")
    rig.start(run_as=someone(), limits={"core": 0})
    for name, why in (("bad", "bad: setpriv: "), ("plain", "plain: the kernel knows no such format")):
        (attempt,) = rig.run(name).attempts
        assert attempt.reason == "exec", (name, attempt.message)
        assert why in attempt.message
    assert rig.run("like").reason == "exit"
    assert rig.run("missing").reason == "missing"
    assert rig.run("fine").stdout == b"fine\n"


@pytest.mark.parametrize("daemon", [DAEMON, NAMELESS], ids=["marked", "nameless"])
def test_a_daemon_of_another_user_does_not_outlive_its_attempt(rig: WorkerHarness, daemon: str) -> None:
    rig.script("daemon", daemon.format(rig.directory / "open"))
    worker = rig.start(run_as=someone())
    assert rig.run("daemon", "it").state == "succeeded"
    gone(int(rig.exists("open/it")))
    only_the_guard(worker)


def test_nor_does_one_among_strangers_that_hides_its_origin(rig: WorkerHarness) -> None:
    """The worker has other children from before its exec; the user tells what is an attempt's."""
    stranger = "(exec sleep 300) & exec"
    rig.script("daemon", NAMELESS.format(rig.directory / "open"))
    rig.start(program=["/bin/sh", "-c", f'{stranger} "$0" "$@"', sys.executable], run_as=someone())
    assert rig.run("daemon", "it").state == "succeeded"
    gone(int(rig.exists("open/it")))


def test_a_killed_worker_leaves_nothing_of_another_user(rig: WorkerHarness) -> None:
    rig.script(
        "many",
        f"setsid sleep 300 & sleep 300 & echo $! > {rig.directory}/open/it; {DAEMON}; wait".format(
            rig.directory / "open"
        ),
    )
    worker = rig.start(run_as=someone())
    rig.put("many", "daemon")
    found = [int(rig.exists("open/daemon")), int(rig.exists("open/it"))]
    worker.kill()
    for pid in found:
        until(lambda pid=pid: not alive(pid), "its end")  # type: ignore[misc]
    until(lambda: not any(owner(pid) == int(someone()["user"]) for pid in pids()), "the end of all")


def test_the_time_limit_reaches_another_users_processes(rig: WorkerHarness) -> None:
    rig.script("deaf", f"trap '' TERM; sleep 300 & echo $! > {rig.directory}/open/it; wait; wait")
    rig.start(run_as=someone(), kill_grace=0.05, limits={"core": 0})
    task = rig.put_all([TaskSpec(name="deaf", time_limit_s=0.5)])[0]
    pid = int(rig.exists("open/it"))
    assert rig.result(task).reason == "time_limit"
    until(lambda: not alive(pid), "its end")


def test_nothing_ever_runs_as_the_worker_for_want_of_a_user(rig: WorkerHarness) -> None:
    path = rig.directory / "worker.yaml"
    users = [someone(n)["user"] for n in range(2)]
    config = {"bin_path": str(rig.bin), "concurrency": 2, "run_as": {"user": users, "group": users[0]}}
    path.write_text(yaml.safe_dump(config))
    isolation = Isolation.make(load_worker(path), "w", lambda path: None)
    assert isolation is not None
    places = [isolation.acquire(), isolation.acquire()]
    assert [str(place.identity.uid) for place in places if place.identity] == users
    with pytest.raises(Shortage):
        isolation.acquire()
    isolation.release(places[0])
    assert isolation.acquire() == places[0]
