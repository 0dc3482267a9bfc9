"""The guard's own process: waits for the end of a worker and kills what the worker was running.

Run as a program, by the path of this file and without site-packages (8 MB, 10 ms to start), so it imports nothing but
the standard library. Standard input is a pipe whose only writer is the worker: its end is the worker's end, however it
came about. The worker's process groups are in a file in memory.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

QUIT = b"quit"
"""The worker ends in order: go, and kill nothing. Any other line is a list of marks: kill what carries them."""
PASSES = 3
"""Looks through /proc until this many in a row found nothing: a child may be on its way to its exec."""
MAX_PASSES = 100
PAUSE_S = 0.02
DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(worker_mark: str, table: int) -> None:
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    name_itself()
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line == QUIT:
                return
            kill_marked(line.split(b" "))
    kill_groups(table)
    kill_marked([worker_mark.encode()])


def name_itself() -> None:
    """What `ps` and `top` show."""
    try:
        with open("/proc/self/comm", "w") as file:  # noqa: PTH123 - pathlib would cost 2 MB here
            file.write("kingtask-guard")
    except OSError:  # it is only a name
        return


def kill_groups(table: int) -> None:
    """KILL every process group in the table: 32-bit numbers in this machine's order, 0 for none."""
    content = os.pread(table, os.fstat(table).st_size, 0)
    for group in memoryview(content).cast("i"):
        if group > 0:
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:  # gone already
                continue


def kill_marked(marks: Sequence[bytes]) -> int:
    """KILL every process that was started with all these `NAME=value` in its environment; returns how many."""
    killed = quiet = 0
    for _ in range(MAX_PASSES):
        found = sum(_kill_if_marked(int(name), marks) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
        killed += found
        quiet = 0 if found else quiet + 1
        if quiet == PASSES:
            break
        time.sleep(PAUSE_S)
    return killed


def _kill_if_marked(pid: int, marks: Sequence[bytes]) -> bool:
    try:
        pidfd = os.pidfd_open(pid)  # taken first, so that the signal cannot reach a later process with this number
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            environment = file.read().split(b"\0")
        if not all(mark in environment for mark in marks):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:  # gone meanwhile, or another user's
        return False
    else:
        return True
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
