"""A container that is booted like a host: its own systemd, no network but loopback, nothing of it left afterwards.

Its root directory is the image behind an overlay in memory. Commands are run in its namespaces, and told with what they
print, so that the log of a run shows each step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import alive, children_of, until
from tests.servers import die_with_parent
from tests.systemd.image import Unable

BOOT_S = 120.0
PATIENCE_S = 120.0
TOP = "/srv/kingtask"
"""The working directory of commands."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_NO_INDEX": "1",  # there is no network
    "PIP_FIND_LINKS": f"{TOP}/wheels",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
SHOWN = 2_000
"""Characters of an output."""


class Container:
    """`shared` is there as TOP, for reading."""

    def __init__(self, image: Path, shared: Path) -> None:
        self._command = [
            *("systemd-nspawn", "--boot", f"--directory={image}", "--volatile=overlay", "--private-network"),
            *("--register=no", "--keep-unit", "--link-journal=no", "--console=pipe", "--kill-signal=SIGRTMIN+3"),
            *(f"--machine=kingtask-{uuid.uuid4().hex[:8]}", f"--bind-ro={shared}:{TOP}"),
        ]
        self.log = shared / "console.log"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # On a machine with cgroups of version 1 as well: as is usual today, and the worker needs.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl is all it calls
            )
        try:
            until(self._booted, lambda: f"the container to be booted: {self.console}", BOOT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        nspawn, self._nspawn = self._nspawn, None
        if nspawn is None:
            return
        nspawn.terminate()  # it shuts down
        try:
            nspawn.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()
        until(lambda: not alive(self._leader), "the end of the container")

    @property
    def console(self) -> str:
        return self.log.read_text(errors="replace")[-SHOWN:]

    def _booted(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise Unable(f"systemd-nspawn ended with {self._nspawn.returncode}: {self.console}")
        children = children_of(self._nspawn.pid)
        if not children:
            return False
        self._leader = children[0]
        return self._enter("systemctl is-system-running").stdout.strip() in ("running", "degraded")

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, script: str, *, status: int | None = 0, user: str = "", stdin: str = "") -> str:
        """Run lines of sh, as root unless said otherwise; returns what they print. `status` None: any."""
        print("".join(f"\n{user or 'root'}# {line}" for line in script.strip().splitlines()), flush=True)
        done = self._enter(script, user=user, stdin=stdin)
        printed = done.stdout + done.stderr
        print(printed[-SHOWN:], file=sys.stdout, flush=True)
        assert status is None or done.returncode == status, f"{script}: status {done.returncode}: {printed}"
        return printed

    def until(self, script: str, what: str) -> str:
        """Run it again and again until it ends with 0; returns what it printed then."""
        print(f"\nroot# until {script}", flush=True)

        def succeeded() -> str:
            done = self._enter(script)
            return done.stdout or "done" if done.returncode == 0 else ""

        printed = until(succeeded, lambda: f"{what}: {self._enter(script)}\n{self.journal()}", PATIENCE_S)
        print(printed[-SHOWN:], flush=True)
        return printed

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self._enter(f"systemctl show --value --property {name} {unit}").stdout.strip()

    def journal(self, unit: str = "kingtask-*") -> str:
        return self._enter(f"journalctl --no-pager --output cat --unit '{unit}' | tail -n 200").stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        print(f"\nroot# cat > {path}\n{text}", flush=True)
        done = self._enter(f"install -D -m {mode:o} /dev/stdin {path}", stdin=text)
        assert done.returncode == 0, done.stderr

    def _enter(self, script: str, *, user: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
        switch = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        command = ["nsenter", f"--target={self._leader}", "--all", "--", *switch]
        return subprocess.run(
            [*command, "sh", "-euc", f"cd {TOP}\n{script}"],
            input=stdin,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=10 * PATIENCE_S,
            check=False,
        )
