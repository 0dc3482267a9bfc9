"""What stands between the worker and what it runs: another user, limits, a directory of its own, a launcher.

A start by vfork cannot change the user or the limits of the child, and one by fork copies the worker (measured: 1.6 ms
of the loop's CPU time each, against 0.2 ms). So small programs of the system go before the executable, each of which
becomes the next by execve(2), with the process number and the outputs staying:

    nice -n N prlimit LIMITS setpriv USER LAUNCHER… env VARIABLES… EXECUTABLE ARGUMENTS…

What a client may set in the environment decides nothing in the first three (`task.ENV_REFUSED`). A launcher may heed
other variables, so with one the request's come behind it, by env(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from kingtask import linux
from kingtask.config import WorkerConfig
from kingtask.config.sandbox_settings import Limits, UnixIdentity
from kingtask.errors import ConfigurationError
from kingtask.worker.exec.executable import Shortage
from kingtask.worker.exec.spawn import Manner
from kingtask.worker.sandbox.scratch import PrivateDirs

SEARCHED = "/usr/bin:/bin:/usr/sbin:/sbin"
CPU_GRACE_S = 5
"""Between XCPU, which says what it is, and KILL."""
PROBE_S = 30.0
NEEDED = ("SETUID", "SETGID", "KILL")
NEEDED_FOR_DIRS = ("CHOWN", "DAC_OVERRIDE", "FOWNER")
OWN_TOOLS = ("nice", "prlimit", "setpriv", "env")
CANNOT_EXECUTE = (126, 127)
"""Their status when the next program cannot be executed."""


class Place(NamedTuple):
    """What one attempt has to itself until it is given back."""

    identity: UnixIdentity | None
    directory: str | None


class Isolation:
    """That of one worker."""

    def __init__(self, config: WorkerConfig, dirs: PrivateDirs | None) -> None:
        self.dirs = dirs
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
        if self.launcher:
            self._tools.append(self.launcher[0].rpartition("/")[2])

    @classmethod
    def make(cls, config: WorkerConfig, worker: str) -> Self | None:
        """None if nothing of it is configured. Raises ConfigurationError if the host does not permit what is."""
        parts = (config.run_as, config.limits, config.umask, config.private_dir, config.launcher)
        if not config.nice and all(part is None for part in parts):
            return None
        _check_rights(config)
        made = cls(config, None)
        made._probe(config)
        if config.private_dir is not None:
            try:
                made.dirs = PrivateDirs(config.private_dir, worker)
            except OSError as error:
                raise ConfigurationError(f"private_dir: {config.private_dir}: {error.strerror}") from None
        return made

    # ── an attempt ──────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self) -> Place:
        """To be given back. Raises Shortage."""
        identity = None
        if self.uids:
            if not self._users:  # never as the worker's own user
                raise Shortage("run_as: each of the users runs something already")
            identity = self._users[0] if self._shared else self._users.popleft()
        try:
            return Place(identity, None if self.dirs is None else self.dirs.make(identity))
        except Shortage:
            self.give_back(Place(identity, None))
            raise

    def give_back(self, place: Place) -> None:
        if place.identity is not None and not self._shared:
            self._users.append(place.identity)
        if place.directory is not None and self.dirs is not None:
            self.dirs.give_up(place.directory)

    def manner(self, place: Place, request: Mapping[str, str]) -> Manner:
        """How it is executed. With a launcher, the variables of `request` are set behind it."""
        words = [*self._before[place.identity], *self.launcher]
        if self.launcher and request and self._env is not None:
            words += [self._env, *(f"{name}={value}" for name, value in request.items())]
        user = place.identity
        return Manner(words, self.umask, None if user is None else (user.uid, user.gid))

    def variables(self, place: Place) -> dict[str, str]:
        """What the environment says of the user, in the place of the worker's."""
        user = place.identity
        if user is None:
            return {}
        return {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}

    def not_executed(self, returncode: int, stderr: bytes) -> str:
        """What one of the programs before the executable says if it could not become the next; else nothing."""
        tool, _, words = stderr.partition(b": ")
        name = tool.decode("utf-8", "replace").rpartition("/")[2]
        if name not in self._tools or (returncode not in CANNOT_EXECUTE and name in OWN_TOOLS):
            return ""
        return f"{name}: {words.decode('utf-8', 'replace').strip()}" if returncode > 0 else ""

    # ── the start of the worker ─────────────────────────────────────────────────────────────────────────────────────

    def _probe(self, config: WorkerConfig) -> None:
        """Do all that an attempt needs, once as each user, but for the launcher."""
        directories = [*config.bin_path, *(config.work_dir or config.private_dir or "/",)]
        if self.launcher and self._env is None:
            raise ConfigurationError(f"launcher: there is no env (coreutils) in {SEARCHED}")
        for user, before in self._before.items():
            if not before or (user is None) != (not self.uids):
                continue
            script = 'for directory; do cd "$directory" || exit; done'
            try:
                done = subprocess.run(
                    [*before, "/bin/sh", "-c", script, "sh", *directories],
                    env={"PATH": SEARCHED, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=PROBE_S,
                    check=False,
                )
                why = done.stderr.decode(errors="replace").strip() if done.returncode else ""
                why = why or (f"status {done.returncode}" if done.returncode else "")
            except (OSError, subprocess.TimeoutExpired) as error:
                why = str(error)
            if why:
                key, whom = ("limits", "this user") if user is None else ("run_as", user.name)
                raise ConfigurationError(f"{key}: nothing could be run as {whom} with these limits: {why}")


def _check_rights(config: WorkerConfig) -> None:
    processes = config.limits is not None and config.limits.processes is not None
    if processes and os.geteuid() == 0 and config.run_as is None and config.launcher is None:
        raise ConfigurationError("limits.processes: it does not bind root; add run_as")
    if config.run_as is None:
        return
    for key, capabilities in (
        ("run_as", NEEDED),
        ("private_dir", NEEDED_FOR_DIRS if config.private_dir is not None else ()),
    ):
        lacking = linux.missing_capabilities(capabilities)
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


def _setpriv(user: UnixIdentity | None) -> Sequence[str]:
    if user is None:
        return ()
    groups = ",".join(map(str, user.groups))
    return (
        _tool("setpriv", "run_as"),
        f"--reuid={user.uid}",
        f"--regid={user.gid}",
        f"--groups={groups}",
        "--inh-caps=-all",  # and with them the ambient ones
        "--no-new-privs",
        "--",
    )


def _tool(name: str, key: str) -> str:
    path = shutil.which(name, path=SEARCHED)
    if path is None:
        package = "coreutils" if name == "nice" else "util-linux"
        raise ConfigurationError(f"{key}: there is no {name} ({package}) in {SEARCHED}; install it")
    return path
