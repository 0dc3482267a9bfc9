"""Programs at the edge of what a kernel allows, in a worker process: how each is named, and that the worker goes on."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import sys
from pathlib import Path

from kingtask.result import Result
from kingtask.task import TaskSpec
from tests.processes import descriptors, until
from tests.worker.rig import WorkerHarness

SIGNALS_THAT_END = sorted(
    set(range(1, signal.SIGRTMAX + 1))
    - {
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),  # ignored
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),  # stop
    }
)
KILLS_ITSELF = """
import os, resource, signal, sys
number = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if number not in (signal.SIGKILL, 32, 33):
    signal.signal(number, signal.SIG_DFL)
os.kill(os.getpid(), number)
"""


def test_each_signal_that_ends_a_program_by_its_number(rig: WorkerHarness) -> None:
    rig.script("killed", KILLS_ITSELF, shebang=f"#!{sys.executable} -IS")
    rig.start()
    tasks = rig.put_all([TaskSpec(name="killed", args=(str(number),)) for number in SIGNALS_THAT_END])
    results = [rig.result(task) for task in tasks]
    assert [result.signal for result in results] == SIGNALS_THAT_END
    assert {(result.state, result.reason, result.exit_code) for result in results} == {("failed", "signal", None)}


def test_each_exit_status_by_its_number(rig: WorkerHarness) -> None:
    """126, 127 and 128 + n are what shells say; here they are statuses like any other."""
    rig.script("exits", "echo so far; exit $1")
    rig.start()
    statuses = [1, 2, 99, 100, 101, 125, 126, 127, 128, 128 + signal.SIGTERM, 254, 255]
    tasks = rig.put_all([TaskSpec(name="exits", args=(str(status),)) for status in statuses])
    results = [rig.result(task) for task in tasks]
    assert [result.exit_code for result in results] == statuses
    assert {(result.state, result.signal, result.stdout) for result in results} == {("failed", None, b"so far\n")}
    assert {result.reason for result in results if result.exit_code != 100} == {"exit"}


# ── what cannot be executed ──────────────────────────────────────────────────────────────────────────────────────────


def elf(*, machine: int, loader: bytes = b"") -> bytes:
    """A program header of a 64-bit ELF for another machine, or with a loader that does not exist (elf(5))."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + (1).to_bytes(4, "little")
    head += (0x400000).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8) + bytes(4)
    head += b"".join(number.to_bytes(2, "little") for number in (64, 56, 1, 64, 0, 0))
    kind = 3 if loader else 1
    size = len(loader) + 1 if loader else 120
    at = 120 if loader else 0
    program = kind.to_bytes(4, "little") + (5).to_bytes(4, "little") + at.to_bytes(8, "little")
    program += (0x400000).to_bytes(8, "little") * 2 + size.to_bytes(8, "little") * 2 + (0x1000).to_bytes(8, "little")
    return head + program + loader + b"\0"


OWN_MACHINE = int.from_bytes(Path(sys.executable).read_bytes()[18:20], "little")
OTHER_MACHINE = 0x15  # PowerPC 64


def device(path: Path) -> bool:
    try:
        os.mknod(path, 0o755 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:  # not permitted here
        return False
    return True


def test_what_the_kernel_does_not_execute_has_its_reason(rig: WorkerHarness) -> None:
    written = {
        "empty": (b"", "exec", "first line such as #!/bin/sh"),
        "text": (b"echo hi\n", "exec", "first line such as #!/bin/sh"),
        "other-machine": (elf(machine=OTHER_MACHINE), "exec", "knows no such format"),
        "half-elf": (elf(machine=OWN_MACHINE)[:30], "exec", "knows no such format"),
        "no-loader": (elf(machine=OWN_MACHINE, loader=b"/no/loader"), "exec", "dynamic loader"),
        "no-interpreter": (b"#!/no/such/thing\n", "exec", "'#!/no/such/thing'"),
        "crlf": (b"#!/bin/sh\r\necho hi\r\n", "exec", "CR LF"),
        "interpreter-directory": (b"#!/etc\n", "not_executable", "interpreter"),
        "interpreter-plain": (b"#!/etc/passwd\n", "not_executable", "interpreter"),
        "nameless": (b"#!\n", "exec", ""),
        "itself": (f"#!{rig.bin}/itself\n".encode(), "exec", "symbolic links"),
        "endless-line": (b"#!/" + b"x" * 100_000, "exec", ""),
        "one-nul": (b"\0", "exec", ""),
    }
    expected = {name: (reason, words) for name, (_, reason, words) in written.items()}
    for name, (content, _, _) in written.items():
        (rig.bin / name).write_bytes(content)
        (rig.bin / name).chmod(0o755)
    for name, mode in {"plain": 0o644, "setuid": 0o4755, "setgid": 0o2755}.items():
        rig.script(name, "").chmod(mode)
    expected |= dict.fromkeys(("setuid", "setgid"), ("not_executable", "another user"))
    expected["plain"] = ("not_executable", "chmod +x")
    (rig.bin / "directory").mkdir()
    expected["directory"] = ("not_executable", "is a directory")
    os.mkfifo(rig.bin / "fifo", 0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(rig.bin / "socket"))
        others = ["fifo", "socket"] + ["device"] * device(rig.bin / "device")
        expected |= dict.fromkeys(others, ("not_executable", "not a regular file"))
        worker = rig.start()
        before = descriptors(worker.pid)
        found = {name: rig.run(name) for name in expected}
    wrong = {name: describe_error(result) for name, result in found.items() if not matches(result, *expected[name])}
    assert wrong == {}
    until(lambda: descriptors(worker.pid) == before, "no descriptor more")


def describe_error(result: Result) -> tuple[str, str, str]:
    return result.state, result.reason, result.attempts[-1].message


def matches(result: Result, reason: str, words: str) -> bool:
    state, found, message = describe_error(result)
    return (state, found) == ("failed", reason) and words in message and bool(message)


def test_a_missing_program_is_tried_again_as_the_list_says_and_may_come_later(rig: WorkerHarness) -> None:
    rig.start()
    task = rig.put("later", retry=(0.001, 0.001, 0.001))
    until(lambda: rig.find(task, state="scheduled"), "its first failure")
    rig.script("later", "echo here")

    def ticked() -> bool:
        rig.tick()
        rig.wakeups.ready()
        return rig.get(task).ended

    until(ticked, "its end")
    assert [attempt.reason for attempt in rig.get(task).attempts] == ["missing", ""]


def test_arguments_that_the_host_has_no_room_for(rig: WorkerHarness) -> None:
    """With a small stack the kernel takes less than the protocol does (execve(2))."""
    rig.script("count", "echo $#")
    worker = rig.start(program=["/bin/sh", "-c", 'ulimit -s 512; exec "$@"', "sh", sys.executable])
    result = rig.run("count", *["x" * 100_000] * 10)
    assert describe_error(result)[:2] == ("failed", "exec")
    assert "too long for this system" in describe_error(result)[2]
    assert rig.run("count", "1", "2").stdout == b"2\n"
    assert worker.stop() == 0


# ── what they do to themselves and to what is around them ────────────────────────────────────────────────────────────


def test_one_that_deletes_itself_has_run_and_is_missing_then(rig: WorkerHarness) -> None:
    rig.script("once", 'rm "$0"; echo done')
    rig.start()
    assert rig.run("once").stdout == b"done\n"
    assert rig.run("once").reason == "missing"


def test_one_that_deletes_its_working_directory_leaves_a_worker_that_waits_for_it(rig: WorkerHarness) -> None:
    """Nothing is charged to tasks; when the directory is back, they run."""
    place = rig.directory / "work"
    place.mkdir()
    rig.script("rmdir", 'rmdir "$PWD"; echo gone')
    rig.script("where", "pwd")
    worker = rig.start(work_dir=str(place), period=0.05)
    assert rig.run("rmdir").stdout == b"gone\n"
    task = rig.put("where")
    worker.logged("work_dir")
    place.mkdir()
    result = rig.result(task)
    assert (result.stdout.decode(), {attempt.reason for attempt in result.attempts}) == (f"{place}\n", {"released", ""})


def test_the_working_directory_that_the_worker_was_started_in_may_go(rig: WorkerHarness) -> None:
    place = rig.directory / "started-in"
    place.mkdir()
    root = Path(__file__).parents[2]
    rig.script("rmdir", f"rmdir {place}; echo gone")
    rig.script("fine", "echo fine")
    rig.start(program=["/bin/sh", "-c", f'cd {place}; PYTHONPATH={root} exec "$@"', "sh", sys.executable])
    assert rig.run("rmdir").stdout == b"gone\n"
    assert rig.run("fine").stdout == b"fine\n"


def test_one_that_does_not_read_what_it_is_sent(rig: WorkerHarness) -> None:
    rig.script("deaf", "echo done")
    rig.script("closes", "exec <&-; echo done")
    rig.start()
    for name in ("deaf", "closes"):
        assert rig.run(name, stdin=bytes(1_048_576)).stdout == b"done\n"


def test_one_that_closes_its_outputs_runs_on_to_its_own_end(rig: WorkerHarness) -> None:
    go = rig.directory / "go"
    rig.script(
        "mute", f"echo before; exec >&- 2>&-; echo up > {rig.directory}/up; until [ -e {go} ]; do :; done; exit 7"
    )
    rig.start()
    task = rig.put("mute")
    rig.exists("up")
    rig.run("missing")  # it was seen meanwhile that nothing can come any more
    assert rig.get(task).state == "running"
    go.touch()
    result = rig.result(task)
    assert (result.exit_code, result.reason, result.stdout) == (7, "exit", b"before\n")


def test_what_is_written_is_kept_though_it_fails(rig: WorkerHarness) -> None:
    rig.script("report", "echo the report; exit 1")
    rig.start()
    result = rig.run("report")
    assert (result.state, result.exit_code, result.stdout) == ("failed", 1, b"the report\n")


def test_any_bytes_are_a_result(rig: WorkerHarness) -> None:
    rig.script("both", "tee /dev/stderr")
    rig.start(stderr="keep")
    for content in (b"\0" * 3, b"\xff\xfe\xed\xa0\x80", b"\x1b]0;x\x07\x1b[31m", b"\r\r\n\x85\n", b"x" * 500_000):
        result = rig.run("both", stdin=content)
        assert (result.state, result.stdout, result.stderr) == ("succeeded", content, content)


CONTROLLED = """
import fcntl, os, sys, termios
primary, secondary = os.openpty()
os.set_inheritable(primary, True)
fcntl.ioctl(secondary, termios.TIOCSCTTY, 0)
os.close(os.open("/dev/tty", os.O_RDWR))
os.execv(sys.executable, [sys.executable, "-m", "tests.worker.launch", sys.argv[1]])
"""
OPENS = """
import os
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    print(error.errno)
"""


def test_the_worker_s_terminal_is_not_the_program_s(rig: WorkerHarness) -> None:
    rig.script("opens", OPENS, shebang=f"#!{sys.executable} -IS")
    worker = rig.start("-c", CONTROLLED)
    assert Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[4] != "0", "it has one"
    assert int(rig.run("opens").stdout) == errno.ENXIO


# ── many, and by the millisecond ─────────────────────────────────────────────────────────────────────────────────────


def test_at_its_limit_to_the_millisecond_one_of_two_things_has_happened(rig: WorkerHarness) -> None:
    """It ended, or it was stopped, and that not before its time."""
    text = "import sys, time; time.sleep(float(sys.argv[1]))"
    rig.script("sleep", text, shebang=f"#!{sys.executable} -IS")
    rig.start(kill_grace=60)
    limit_s = 0.2
    specs = [
        TaskSpec(name="sleep", args=(f"{limit_s + by / 1000:.3f}",), time_limit_s=limit_s) for by in range(-60, 4, 2)
    ]
    for task in rig.put_all(specs):
        result = rig.result(task)
        attempt = result.attempts[0]
        if result.reason:
            assert (result.state, result.reason) == ("failed", "time_limit")
            assert attempt.ended_at - attempt.started_at >= limit_s - 0.002
        else:
            assert (result.state, result.signal, result.exit_code) == ("succeeded", None, 0)
