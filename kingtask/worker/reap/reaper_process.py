"""The guard's own process: waits for the end of a worker and kills what the worker was running.

Meanwhile it removes the directories that the worker names, and in the end the one that holds them (`private`).

Run as a program, by the path of this file and without site-packages (8 MB, 10 ms to start), so it imports nothing but
the standard library. A worker of a former release may start it, after an upgrade in place: its arguments stay as they
are. Standard input is a pipe whose only writer is the worker: its end is the worker's end, however it
came about. The worker's process groups are in a file in memory.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

CGROUP_KILL = "cgroup.kill"
PASSES = 3
"""Looks through /proc until this many in a row found nothing: a child may be on its way to its exec."""
MAX_PASSES = 100
PAUSE_S = 0.02
LOOK_S = 0.02
"""Between looks whether a removal has ended, while others wait."""
REMOVE = ("nice", "rm", "-rf", "--one-file-system", "--")
OPEN_AND_REMOVE = """
rm -rf --one-file-system -- "$@" 2>/dev/null && exit
find "$@" -xdev -type d ! -perm -u=rwx -exec chmod u+rwx {} \\; 2>/dev/null
exec rm -rf --one-file-system -- "$@"
"""
REMOVE_OWN = ("nice", "sh", "-c", OPEN_AND_REMOVE, "sh")
"""Others than root cannot enter the directories that they have closed to themselves."""
TOGETHER = 100
"""Paths removed by one process."""
DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(worker_mark: str, table: int, cgroup: str = "", private: str = "") -> None:
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    name_itself()
    if attend(private):  # the worker ends in order: nothing is left to be killed
        return
    content = os.pread(table, os.fstat(table).st_size, 0)
    leaders = [pid for pid in memoryview(content).cast("i") if pid > 0]
    below = descendants(leaders)  # looked up first: once a parent is gone, nothing leads to its children
    kill_groups(leaders)
    for pid in below:
        kill(pid, lambda pid: facts(pid)[1] == below[pid])
    kill_marked([worker_mark.encode()])
    if cgroup:
        leave_cgroup(cgroup)
        end_cgroup(cgroup)
    if private:
        remove([private])


def attend(private: str) -> bool:
    """Wait for the worker's end, and remove meanwhile what it names. True if it ends in order, and nothing runs."""
    text = b""
    paths: list[str] = []
    remover = 0
    while True:
        if remover and os.waitpid(remover, os.WNOHANG)[0]:
            remover = 0
        if paths and not remover:
            remover = remove(paths[:TOGETHER])
            del paths[:TOGETHER]
        if not select.select([0], [], [], LOOK_S if remover else None)[0]:
            continue
        read = os.read(0, 65_536)
        if not read:
            return False
        *ended, text = (text + read).split(b"\0")
        paths += [os.fsdecode(path) for path in ended if path]
        if b"" in ended:
            if private:
                remove([*paths, private])
            return True


def remove(paths: Sequence[str]) -> int:
    """Begin to remove these trees; returns the process that does it, 0 if there is none."""
    command = REMOVE if os.geteuid() == 0 else REMOVE_OWN
    try:
        return os.posix_spawnp(command[0], [*command, *paths], os.environ)
    except OSError:  # this host is short of something: the next worker does it
        return 0


def name_itself() -> None:
    """What `ps` and `top` show."""
    try:
        with open("/proc/self/comm", "w") as file:  # noqa: PTH123 - pathlib would cost 2 MB here
            file.write("kingtask-guard")
    except OSError:  # it is only a name
        return


def descendants(leaders: Sequence[int]) -> dict[int, int]:
    """Every process below these, by number, with the instant of its start."""
    children: dict[int, list[int]] = {}
    starts = {}
    for pid in processes():
        try:
            parent, starts[pid] = facts(pid)
        except OSError:  # gone meanwhile
            continue
        children.setdefault(parent, []).append(pid)
    found: dict[int, int] = {}
    look_at = list(leaders)
    while look_at:
        for pid in children.get(look_at.pop(), ()):
            found[pid] = starts[pid]
            look_at.append(pid)
    return found


def kill_groups(leaders: Sequence[int]) -> None:
    for group in leaders:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:  # gone already
            continue


def kill_marked(marks: Sequence[bytes]) -> int:
    """KILL every process that was started with all these `NAME=value` in its environment; returns how many."""

    def is_marked(pid: int) -> bool:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            environment = file.read().split(b"\0")
        return all(mark in environment for mark in marks)

    killed = quiet = 0
    for _ in range(MAX_PASSES):
        found = sum(kill(pid, is_marked) for pid in processes())
        killed += found
        quiet = 0 if found else quiet + 1
        if quiet == PASSES:
            break
        time.sleep(PAUSE_S)
    return killed


def kill(pid: int, condition: Callable[[int], bool]) -> bool:
    """KILL it if the condition holds for it; True if so."""
    try:
        pidfd = os.pidfd_open(pid)  # taken first, so that the signal cannot reach a later process with this number
    except OSError:
        return False
    try:
        if not condition(pid):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:  # gone meanwhile, or another user's
        return False
    else:
        return True
    finally:
        os.close(pidfd)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def facts(pid: int) -> tuple[int, int]:
    """Its parent, and the instant of its start in clock ticks (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        stat = file.read().rpartition(b")")[2].split()
    return int(stat[1]), int(stat[19])


def leave_cgroup(path: str) -> None:
    """A guard that took the place of another was started in there."""
    try:
        with open(f"{path}/../cgroup.procs", "w") as file:  # noqa: PTH123
            file.write("0")
    except OSError:  # then it is ended along with the rest, as the last thing in there
        return


def end_cgroup(path: str) -> None:
    """KILL all that is in a cgroup, and remove it. Takes as long as the kernel needs to bury them, at most seconds."""
    try:
        with open(f"{path}/{CGROUP_KILL}", "w") as file:  # noqa: PTH123
            file.write("1")
    except OSError:  # gone
        return
    for _ in range(MAX_PASSES):
        for directory, _, _ in os.walk(path, topdown=False):  # a task may have made some below
            try:
                os.rmdir(directory)  # noqa: PTH106
            except OSError:  # they are dying
                break
        if not os.path.exists(path):  # noqa: PTH110
            return
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
