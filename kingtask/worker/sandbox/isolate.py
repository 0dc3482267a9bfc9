"""Isolates attempts from the worker: another user, limits, a scratch directory, a launcher.

A vfork cannot change the user or the limits of the child, and a fork copies the worker (measured: 1.6 ms of the loop's
CPU time, against 0.2 ms). So small programs of the system run before the executable. Each becomes the next by
execve(2), which keeps the pid and the outputs:

    nice -n N prlimit LIMITS setpriv USER LAUNCHER… env VARIABLES… EXECUTABLE ARGUMENTS…

The variables that a client may set do not affect the first three (`task.ENV_REFUSED`). They may affect a launcher, so
with a launcher env(1) sets them behind it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from kingtask import linux
from kingtask.config import WorkerConfig
from kingtask.config.sandbox_settings import Limits, UnixIdentity
from kingtask.errors import ConfigurationError
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.exec.spawn import Manner
from kingtask.worker.sandbox.scratch import ScratchDirs

SEARCHED = "/usr/bin:/bin:/usr/sbin:/sbin"
CPU_GRACE_S = 5
"""Between XCPU, which names the limit, and KILL."""
PROBE_S = 30.0
NEEDED = ("SETUID", "SETGID", "KILL")
NEEDED_FOR_DIRS = ("CHOWN", "DAC_OVERRIDE", "FOWNER")
OWN_TOOLS = ("nice", "prlimit", "setpriv", "env")
CANNOT_EXECUTE = (126, 127)
"""Exit statuses of OWN_TOOLS when the next program cannot be executed."""


class Sandbox(NamedTuple):
    """The user and the scratch directory of one attempt."""

    identity: UnixIdentity | None
    directory: str | None


class Isolation:
    """The isolation of all attempts of a worker."""

    def __init__(self, config: WorkerConfig, scratch: ScratchDirs | None) -> None:
        """Raises ConfigurationError."""
        self._scratch = scratch
        self.limits = config.limits or Limits()
        self.launcher = config.launcher or ()
        self.umask = -1 if config.umask is None else int(config.umask, 8)
        users = config.load_identities()
        self.uids = frozenset(user.uid for user in users)
        self._users = deque(users)
        self._shared = len(users) < 2
        self._env = shutil.which("env", path=SEARCHED)
        nice = [_tool("nice", "nice"), "-n", str(config.nice)] if config.nice else []
        limited = _prlimit(self.limits)
        self._before = {user: [*nice, *limited, *_setpriv(user)] for user in [*users, None]}
        named = {"nice": nice, "prlimit": limited, "setpriv": users, "env": self.launcher}
        self._tools = [name for name, used in named.items() if used]
        self._tools += [command.rpartition("/")[2] for command in self.launcher[:1]]

    @classmethod
    def make(cls, config: WorkerConfig, worker: str, remove: Callable[[str], None]) -> Self | None:
        """Check that the host permits what is configured; None if no isolation is. Raises ConfigurationError.

        `remove` removes a tree in the background. Also removes the scratch directories of dead workers.
        """
        parts = (config.run_as, config.limits, config.umask, config.private_dir, config.launcher)
        if not config.nice and all(part is None for part in parts):
            return None
        _check_rights(config)
        scratch = None
        if config.private_dir is not None:
            try:
                scratch = ScratchDirs(config.private_dir, worker, remove)
            except OSError as error:
                raise ConfigurationError(f"private_dir: {config.private_dir}: {error.strerror}") from None
        made = cls(config, scratch)
        made._probe(config)
        if scratch is not None:
            scratch.remove_abandoned()
        return made

    # ── an attempt ──────────────────────────────────────────────────────────────────────────────────────────────────

    def acquire(self) -> Sandbox:
        """Take a user and make a directory, until `release`. Raises Shortage."""
        if self.uids and not self._users:  # never fall back to the worker's own user
            raise Shortage("run_as: each of the users runs something already")
        identity = self._users[0] if self._users else None
        directory = None if self._scratch is None else self._scratch.make(identity)
        if not self._shared:
            self._users.popleft()
        return Sandbox(identity, directory)

    def release(self, sandbox: Sandbox) -> None:
        if sandbox.identity is not None and not self._shared:
            self._users.append(sandbox.identity)
        if sandbox.directory is not None and self._scratch is not None:
            self._scratch.release(sandbox.directory)

    def manner(self, sandbox: Sandbox, request: Mapping[str, str]) -> Manner:
        """How to execute an attempt. With a launcher, env(1) sets the variables of `request` behind it."""
        words = [*self._before[sandbox.identity], *self.launcher]
        if self.launcher and request and self._env is not None:
            words += [self._env, *(f"{name}={value}" for name, value in request.items())]
        user = sandbox.identity
        return Manner(words, self.umask, None if user is None else (user.uid, user.gid))

    def variables(self, sandbox: Sandbox) -> dict[str, str]:
        """The variables that describe the attempt's user; they replace those of the worker's."""
        user = sandbox.identity
        if user is None:
            return {}
        return {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}

    def not_executed(self, returncode: int, stderr: bytes) -> str:
        """The message of a program before the executable that could not execute the next one; else empty."""
        tool, _, words = stderr.partition(b": ")
        name = tool.decode("utf-8", "replace").rpartition("/")[2]
        if name not in self._tools or (returncode not in CANNOT_EXECUTE and name in OWN_TOOLS):
            return ""
        return f"{name}: {words.decode('utf-8', 'replace').strip()}" if returncode > 0 else ""

    # ── the start of the worker ─────────────────────────────────────────────────────────────────────────────────────

    def _probe(self, config: WorkerConfig) -> None:
        """Run a trial attempt once as each user, without the launcher. Raises ConfigurationError."""
        directories = [*config.bin_path, *(config.work_dir or config.private_dir or "/",)]
        if self.launcher and self._env is None:
            raise ConfigurationError(f"launcher: there is no env (coreutils) in {SEARCHED}")
        for user, before in self._before.items():
            if not before or (user is None) != (not self.uids):
                continue
            script = 'for directory; do cd "$directory" || exit; done'
            try:
                subprocess.run(
                    [*before, "/bin/sh", "-c", script, "sh", *directories],
                    env={"PATH": SEARCHED, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=PROBE_S,
                    check=True,
                )
            except subprocess.CalledProcessError as error:
                why = error.stderr.decode(errors="replace").strip() or f"status {error.returncode}"
            except (OSError, subprocess.TimeoutExpired) as error:
                why = str(error)
            else:
                continue
            key, whom = ("limits", "this user") if user is None else ("run_as", user.name)
            raise ConfigurationError(f"{key}: nothing could be run as {whom} with these limits: {why}")


def _check_rights(config: WorkerConfig) -> None:
    processes = config.limits is not None and config.limits.processes is not None
    if processes and os.geteuid() == 0 and config.run_as is None and config.launcher is None:
        raise ConfigurationError("limits.processes: it does not bind root; add run_as")
    if config.run_as is None:
        return
    for key, capabilities in {"run_as": NEEDED, "private_dir": NEEDED_FOR_DIRS}.items():
        lacking = [] if getattr(config, key) is None else linux.missing_capabilities(capabilities)
        if lacking:
            raise ConfigurationError(
                f"{key}: with run_as the worker needs {' '.join(lacking)}: start it as root, or give it these"
                f" (AmbientCapabilities={' '.join(lacking)} in its unit)"
            )


def _prlimit(limits: Limits) -> list[str]:
    cpu = limits.cpu_time
    options = {
        "as": limits.memory,
        "cpu": None if cpu is None else f"{cpu}:{cpu + CPU_GRACE_S}",
        "nofile": limits.open_files,
        "nproc": limits.processes,
        "fsize": limits.file_size,
        "core": limits.core,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return [_tool("prlimit", "limits"), *words, "--"] if words else []


def _setpriv(user: UnixIdentity | None) -> list[str]:
    if user is None:
        return []
    identity = [f"--reuid={user.uid}", f"--regid={user.gid}", f"--groups={','.join(map(str, user.groups))}"]
    # Without inheritable capabilities there are no ambient ones either.
    return [_tool("setpriv", "run_as"), *identity, "--inh-caps=-all", "--no-new-privs", "--"]


def _tool(name: str, key: str) -> str:
    path = shutil.which(name, path=SEARCHED)
    if path is None:
        package = "coreutils" if name == "nice" else "util-linux"
        raise ConfigurationError(f"{key}: there is no {name} ({package}) in {SEARCHED}; install it")
    return path
