"""Starts a program: a process in a session of its own, with two pipes for its output and a pidfd for its exit.

`subprocess.Popen` without `preexec_fn` uses vfork: 0.12 ms of this process's CPU and no copy of its memory. It returns
after the exec, so its exception is the kernel's answer to execve(2), and the process group exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kingtask.worker.exec.executable import SHORTAGE, Shortage, Unusable


class TextBusy(Exception):
    """The file is open for writing (ETXTBSY): retry in a moment."""


class Unwatched(Exception):
    """The program was started and killed at once: the host had no descriptor left to watch it."""


class Spawned(NamedTuple):
    popen: subprocess.Popen[bytes]
    pidfd: int
    stdout: int
    stderr: int
    """Reading ends, non-blocking."""

    def close(self) -> None:
        for fd in (self.pidfd, self.stdout, self.stderr):
            os.close(fd)


class Manner(NamedTuple):
    """How a program is executed."""

    before: Sequence[str] = ()
    """A command line that executes the words behind it."""
    umask: int = -1
    """−1: inherited."""
    owner: tuple[int, int] | None = None
    """User and group that `before` changes to. They become owners of the pipes, so that /dev/stderr can be opened."""


PLAIN = Manner()


def spawn(
    path: str,
    args: Sequence[str],
    env: Mapping[str, str],
    stdin: int,
    work_dir: str | None = None,
    manner: Manner = PLAIN,
) -> Spawned:
    """Execute `path` with the descriptor `stdin` as standard input; the child inherits no other descriptor.

    Blocks until the exec (about 0.3 ms). Raises Unusable, TextBusy, Shortage or Unwatched, having left nothing behind.
    """
    before = manner.before
    unused: list[int] = []
    try:
        unused += os.pipe2(os.O_CLOEXEC)
        unused += os.pipe2(os.O_CLOEXEC)
        out_read, out_write, err_read, err_write = unused
        os.set_blocking(out_read, False)
        os.set_blocking(err_read, False)
        if before:
            _refuse_text(path)
        if manner.owner is not None:
            for fd in (out_write, err_write):
                with contextlib.suppress(PermissionError):  # without CAP_CHOWN: only /dev/stderr cannot be opened
                    os.fchown(fd, *manner.owner)
        popen = subprocess.Popen(
            [*[word.encode() for word in before], os.fsencode(path), *[arg.encode() for arg in args]],
            env={name.encode(): os.fsencode(value) for name, value in env.items()},  # HOME may be any bytes
            stdin=stdin,
            stdout=out_write,
            stderr=err_write,
            cwd=work_dir,
            start_new_session=True,
            close_fds=True,
            umask=manner.umask,
        )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError as error:
            kill(popen)
            raise Unwatched(error.strerror) from None
        unused = [out_write, err_write]
        return Spawned(popen, pidfd, out_read, err_read)
    except OSError as error:
        if error.errno == errno.ETXTBSY:
            raise TextBusy(f"{path} is being written") from None
        if error.errno in SHORTAGE:
            raise Shortage(error.strerror) from None
        if work_dir is not None and error.filename == work_dir:  # the fault of this host, not of the task
            raise Shortage(f"work_dir {work_dir}: {error.strerror}") from None
        if before and error.errno not in (errno.E2BIG, errno.ENOEXEC):  # likewise
            raise Shortage(f"{before[0]}: {error.strerror}") from None
        raise _unusable(path, error) from None
    except ValueError as error:  # a NUL in an argument, `=` in the name of a variable
        raise Unusable("exec", f"the kernel cannot take these arguments: {error}") from None
    finally:
        for fd in unused:
            os.close(fd)


def input_file(data: bytes) -> int:
    """Return a descriptor from which `data` can be read: a file in memory, so no write can block. Raises Shortage."""
    fd = -1
    try:
        fd = os.memfd_create("kingtask-stdin", os.MFD_CLOEXEC)
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise Shortage(error.strerror) from None
    return fd


def kill(popen: subprocess.Popen[bytes]) -> None:
    """KILL a new child with its group, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def _unusable(path: str, error: OSError) -> Unusable:
    reason, why = "exec", error.strerror or str(error)
    match error.errno:
        case errno.ENOENT if not os.path.exists(path):  # noqa: PTH110 - as in executable.py
            reason, why = "missing", "it is gone"
        case errno.ENOENT:
            why = f"its interpreter does not exist: {_first_line(path)}"
        case errno.EACCES | errno.EPERM:
            reason, why = "not_executable", f"{why}; is the file, its interpreter or the file system (noexec) at fault?"
        case errno.ENOEXEC:
            why = "the kernel knows no such format; a script needs a first line such as #!/bin/sh"
        case errno.E2BIG:
            why = "arguments and environment are too long for this system"
    return Unusable(reason, f"cannot execute {path}: {why}")


def _refuse_text(path: str) -> None:
    """Refuse, as the kernel does, a text without #!: the programs of `before` would have sh run it (execvp(3))."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(128)
    except OSError:  # an executable need not be readable
        return
    if not head.startswith(b"#!") and b"\0" not in head:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            line = file.readline(128)
    except OSError:
        return "unknown"
    if line.endswith(b"\r\n"):
        return f"{line.decode('latin-1')!a} (the line ends in CR LF)"
    return ascii(line.rstrip().decode("latin-1")) if line.startswith(b"#!") else "the dynamic loader of the program"
