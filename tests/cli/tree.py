"""A real `kingtask dev` for tests, the command `kingtask` as a process, and what is known of processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kingtask.cli.examples import install
from tests.servers import die_with_parent

KINGTASK = (sys.executable, "-m", "kingtask")
PATIENCE_S = 30.0

Done = subprocess.CompletedProcess[bytes]

EXECUTABLES = {
    "cat": "#!/bin/sh\nexec cat\n",
    "args": '#!/bin/sh\nfor a; do printf "%s\\0" "$a"; done\n',
    "binary": "#!/bin/sh\nprintf '\\377\\000\\033[31m'\n",
    "noisy": "#!/bin/sh\necho out\necho err >&2\n",
    "loudly": '#!/bin/sh\necho "trouble in attempt $KINGTASK_ATTEMPT" >&2\nexit "$1"\n',
    "fails": '#!/bin/sh\necho partly\nexit "$1"\n',
    "killed": "#!/bin/sh\nkill -9 $$\n",
    "count": '#!/bin/sh\nseq "$1"\n',
    "ledger": '#!/bin/sh\necho "$KINGTASK_ID" >> "$TASK_LEDGER"\n',
}


def kingtask(
    *args: str | bytes, broker: str | None = None, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> Done:
    """Run `kingtask ARGS…` to its end."""
    return subprocess.run(
        [*KINGTASK, *args],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env=environment(broker, env),
    )


def environment(broker: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
    # Without bytecode each of some hundred processes would compile everything anew.
    dropped = ("KINGTASK_", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    root = str(Path(__file__).parents[2])
    return {**inherited, "PYTHONPATH": root, **({"KINGTASK_BROKER": broker} if broker else {}), **(more or {})}


class Dev:
    """One `kingtask dev` on a directory of its own, with the examples and EXECUTABLES, on any free port."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.executables = data.parent / f"{data.name}-bin"
        install(self.executables)
        for name, text in EXECUTABLES.items():
            path = self.executables / name
            path.write_text(text)
            path.chmod(0o755)
        self._options = options
        self.lines: list[str] = []
        self.port = 0
        self.process: subprocess.Popen[bytes]

    @property
    def broker(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; return when it says that it is ready."""
        command = [*KINGTASK, "dev", "--data", str(self.data), "--bin-path", str(self.executables), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it does, and it takes no lock
            env=environment(None),
        )
        assert self.process.stdout is not None
        self.lines = []
        ready = threading.Event()
        self._reader = threading.Thread(target=self._follow, args=(self.process.stdout, ready), daemon=True)
        self._reader.start()
        if not ready.wait(PATIENCE_S) or not self.port:
            self.kill()
            raise AssertionError("kingtask dev is not ready:\n" + "".join(self.lines))

    def _follow(self, output: IO[bytes], ready: threading.Event) -> None:
        with output:
            for line in output:
                text = line.decode(errors="replace")
                self.lines.append(text)
                if text.startswith("ready: broker 127.0.0.1:"):
                    self.port = int(text.split(":")[2].split(",")[0])
                    ready.set()
        ready.set()

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """As a crash would. Idempotent."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit status, once all that it wrote was read."""
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return status

    def run(self, *args: str | bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        return kingtask(*args, broker=self.broker, stdin=stdin, env=env)

    def submit(self, *args: str) -> str:
        """Submit; the id."""
        done = self.run("submit", *args)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().strip()

    def until_state(self, task_id: str, state: str) -> None:
        until(lambda: f'"state":"{state}"'.encode() in self.run("get", "--json", task_id).stdout, f"{task_id} {state}")


def until(condition, what: str) -> None:
    """Wait until it holds: each look is a process or a system call of its own, so it needs no pause."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    return {each for child in children(pid) for each in (child, *descendants(child))}


class Watch:
    """Processes that are expected to end."""

    def __init__(self, pids: set[int]) -> None:
        self._pidfds = {}
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended
                self._pidfds[pid] = os.pidfd_open(pid)

    def survivors(self) -> set[int]:
        """Those that have not ended after a while."""
        deadline = time.monotonic() + PATIENCE_S
        left = set()
        for pid, pidfd in self._pidfds.items():
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.add(pid)
            os.close(pidfd)
        return left
