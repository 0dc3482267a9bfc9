"""An executable that tries what it must not: prints what came of each attempt, as JSON. Argument: a worker's facts.

Run by system's Python alone, as another user, so it imports nothing of kingtask's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SHEBANG = "#!/usr/bin/python3 -I" if Path("/usr/bin/python3").exists() else f"#!{sys.executable} -I"
"""An interpreter that other users may execute."""
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def opened(path: str, mode: str) -> None:
    with Path(path).open(mode):
        pass


def own_cgroups() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if " - cgroup" in line]


def into_another_cgroup() -> None:
    for place in own_cgroups():
        with contextlib.suppress(OSError):
            Path(place, "cgroup.procs").write_text(str(os.getpid()))
            return
    raise PermissionError("cgroup")


def redis(command: bytes, place: dict[str, Any]) -> None:
    """Raises PermissionError if the server wants to know who it is."""
    family = socket.AF_UNIX if "path" in place else socket.AF_INET
    with socket.socket(family) as server:
        server.connect(place["path"] if "path" in place else (place["host"], place["port"]))
        server.sendall(command)
        answer = server.recv(200)
    if answer.startswith(b"-NOAUTH"):
        raise PermissionError(answer)


def main(facts: dict[str, Any]) -> None:
    parent, guard = os.getppid(), facts.get("guard", 0)
    tried: dict[str, Callable[[], object]] = {
        "read the worker's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "read the worker's memory": lambda: opened(f"/proc/{parent}/mem", "rb"),
        "list the worker's descriptors": lambda: list(Path(f"/proc/{parent}/fd").iterdir()),
        "trace the worker": lambda: checked(libc.ptrace(PTRACE_SEIZE, parent, 0, 0)),
        "attach to the worker": lambda: checked(libc.ptrace(PTRACE_ATTACH, parent, 0, 0)),
        "end the worker": lambda: os.kill(parent, signal.SIGKILL),
        "stop the worker": lambda: os.kill(parent, signal.SIGSTOP),
        "take the worker's priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
        "have a better priority": lambda: os.nice(-1),
        "be root again": lambda: os.setuid(0),
        "have root's group": lambda: os.setgroups([0]),
        "go into another cgroup": into_another_cgroup,
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        "name the host": lambda: socket.sethostname("intruder"),
        **{f"read {path}": partial(opened, path, "rb") for path in facts["read"]},
        **{f"put something into {path}": Path(path, "new").touch for path in facts["write"]},
        **{f"change {path}": partial(opened, path, "ab") for path in facts["change"]},
        **{f"remove {path}": Path(path).unlink for path in facts["change"]},
    }
    if guard:
        tried["end the guard"] = lambda: os.kill(guard, signal.SIGKILL)
    if "redis" in facts:
        tried["read the record"] = lambda: redis(b"*2\r\n$4\r\nKEYS\r\n$1\r\n*\r\n", facts["redis"])
    outcomes = {}
    for name, act in tried.items():
        if name not in facts.get("only", [name]):
            continue
        try:
            act()
        except PermissionError:
            outcomes[name] = "denied"
        except OSError as error:
            outcomes[name] = str(error)
        else:
            outcomes[name] = "done"
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
