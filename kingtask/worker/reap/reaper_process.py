"""The reaper process: waits for the end of its worker, then kills what the worker was running.

Meanwhile it removes the directories that the worker names, and at the end the one that holds them (`scratch`).

It is started by START without site-packages, and imports nothing but the standard library and `procfs` (10 MB, 15 ms
to start). After an upgrade in place a worker of the former release starts it: its arguments stay as they are. Standard
input is a pipe to which only the worker can write, so its end is the worker's end, however that came about. The
worker's process groups are in a file in memory.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from kingtask import procfs

START = (
    "import sys; sys.path.append(sys.argv[1]); from kingtask.worker.reap import reaper_process;"
    " reaper_process.main(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])"
)
"""For `python -I -S -c`; then come the directory that holds the package, and the arguments of `main`."""
NAME = "kingtask-reaper"
"""At most 15 bytes (proc_pid_comm(5))."""
CGROUP_KILL = "cgroup.kill"
PASSES = 3
"""Scans of /proc in a row that must find nothing: a child may be between its fork and its exec."""
MAX_PASSES = 100
PAUSE_S = 0.02
"""Between two scans; between two polls of a removal that runs."""
REMOVE = ("nice", "rm", "-rf", "--one-file-system", "--")
OPEN_AND_REMOVE = """
rm -rf --one-file-system -- "$@" 2>/dev/null && exit
find "$@" -xdev -type d ! -perm -u=rwx -exec chmod u+rwx {} \\; 2>/dev/null
exec rm -rf --one-file-system -- "$@"
"""
REMOVE_OWN = ("nice", "sh", "-c", OPEN_AND_REMOVE, "sh")
"""A user other than root must open the directories that have no permissions for their owner."""
BATCH = 100
"""Paths removed by one process."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(worker_mark: str, table: int, cgroup: str = "", scratch: str = "") -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    procfs.set_own_name(NAME)
    if serve(scratch):
        return
    content = os.pread(table, os.fstat(table).st_size, 0)
    leaders = [pid for pid in memoryview(content).cast("i") if pid > 0]
    below = procfs.descendants(leaders)  # before the kill: once a parent is gone, nothing leads to its children
    for group in leaders:
        with contextlib.suppress(OSError):  # gone already
            os.killpg(group, signal.SIGKILL)
    kill_all(below)
    kill_marked(worker_mark.encode())
    if cgroup:
        leave_cgroup(cgroup)
        end_cgroup(cgroup)
    if scratch:
        remove([scratch])


def serve(scratch: str) -> bool:
    """Remove the directories that the worker names, until it ends. True if it ends in order: then nothing runs."""
    text = b""
    paths: list[str] = []
    remover = 0
    while True:
        if remover and os.waitpid(remover, os.WNOHANG)[0]:
            remover = 0
        if paths and not remover:
            remover = remove(paths[:BATCH])
            del paths[:BATCH]
        if not select.select([0], [], [], PAUSE_S if remover else None)[0]:
            continue
        read = os.read(0, 65_536)
        if not read:
            return False
        *ended, text = (text + read).split(b"\0")
        paths += [os.fsdecode(path) for path in ended if path]
        if b"" in ended:
            if scratch:
                remove([*paths, scratch])
            return True


def remove(paths: Sequence[str]) -> int:
    """Start a process that removes these trees; return its pid, 0 if none could be started."""
    command = REMOVE if os.geteuid() == 0 else REMOVE_OWN
    try:
        return os.posix_spawnp(command[0], [*command, *paths], os.environ)
    except OSError:  # out of processes or memory: the next worker removes them
        return 0


def kill_all(found: Mapping[int, int]) -> None:
    """KILL these processes, given as `procfs.descendants` returns them; spare a later process with the same pid."""
    for each in found:
        kill(each, lambda pid: procfs.parent_and_start(pid)[1] == found[pid])


def kill_marked(mark: bytes) -> int:
    """KILL every process that was started with this `NAME=value` in its environment; return how many."""
    killed = quiet = 0
    for _ in range(MAX_PASSES):
        found = sum(kill(each, lambda pid: mark in procfs.environment(pid)) for each in procfs.processes())
        killed += found
        quiet = 0 if found else quiet + 1
        if quiet == PASSES:
            break
        time.sleep(PAUSE_S)
    return killed


def kill(pid: int, condition: Callable[[int], bool]) -> bool:
    """KILL a process if the condition holds for it; return whether it was killed."""
    with contextlib.suppress(OSError):  # it is gone, or another user's
        pidfd = os.pidfd_open(pid)  # before the check: the signal cannot reach a later process with the same pid
        try:
            if condition(pid):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def leave_cgroup(path: str) -> None:
    """Move this process out: a reaper that replaced a lost one was started in there."""
    with contextlib.suppress(OSError), open(f"{path}/../cgroup.procs", "w") as file:  # noqa: PTH123
        file.write("0")  # else it is killed along with the rest


def end_cgroup(path: str) -> None:
    """KILL everything in a cgroup, and remove it. Blocks until the kernel has removed the processes, at most 2 s."""
    try:
        with open(f"{path}/{CGROUP_KILL}", "w") as file:  # noqa: PTH123
            file.write("1")
    except OSError:  # gone
        return
    for _ in range(MAX_PASSES):
        with contextlib.suppress(OSError):  # processes in there are dying
            for directory, _, _ in os.walk(path, topdown=False):  # a task may have made cgroups below
                os.rmdir(directory)  # noqa: PTH106
        if not os.path.exists(path):  # noqa: PTH110
            return
        time.sleep(PAUSE_S)
