"""Starting a program: one process in a session of its own, its output in two pipes, its end in a pidfd.

`subprocess.Popen` without `preexec_fn` forks by vfork: 0.12 ms of this process's CPU and no copy of its memory. It
returns after the exec, so its exception is the kernel's answer to execve(2), and the process group exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kingtask.worker.executable import Unusable

SHORTAGE = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""This host is out of processes, descriptors or memory: no fault of the task."""


class Shortage(Exception):
    """The host cannot start a process now; the attempt is given back."""


class TextBusy(Exception):
    """The file is being written (ETXTBSY): worth trying again in a moment."""


class Spawned(NamedTuple):
    popen: subprocess.Popen[bytes]
    pidfd: int
    stdout: int
    stderr: int
    """Reading ends, non-blocking."""


def spawn(path: str, args: Sequence[str], env: Mapping[str, str], stdin: int) -> Spawned:
    """Execute `path`. `stdin` is a descriptor for the child's standard input; all other descriptors stay here.

    Blocks until the exec (some 0.3 ms). Raises Unusable, TextBusy or Shortage; then nothing is left behind.
    """
    out_read = out_write = err_read = err_write = -1
    started = False
    try:
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(out_read, False)
        os.set_blocking(err_read, False)
        popen = subprocess.Popen(
            [path.encode(), *[arg.encode() for arg in args]],
            env={name.encode(): value.encode() for name, value in env.items()},
            stdin=stdin,
            stdout=out_write,
            stderr=err_write,
            start_new_session=True,
            close_fds=True,
        )
        pidfd = _watch(popen)
        started = True
        return Spawned(popen, pidfd, out_read, err_read)
    except OSError as error:
        if error.errno == errno.ETXTBSY:
            raise TextBusy(f"{path} is being written") from None
        if error.errno in SHORTAGE:
            raise Shortage(error.strerror) from None
        raise _unusable(path, error) from None
    except ValueError as error:  # a NUL in an argument, `=` in the name of a variable
        raise Unusable("exec", f"the kernel cannot take these arguments: {error}") from None
    finally:
        for fd in (out_write, err_write) if started else (out_write, err_write, out_read, err_read):
            if fd >= 0:
                os.close(fd)


def input_file(data: bytes) -> int:
    """A descriptor that reads as `data`: a file in memory, so that nothing has to be fed and no write can block.

    Raises Shortage.
    """
    try:
        fd = os.memfd_create("kingtask-stdin", os.MFD_CLOEXEC)
    except OSError as error:
        raise Shortage(error.strerror) from None
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as error:
        os.close(fd)
        raise Shortage(error.strerror) from None
    return fd


def _watch(popen: subprocess.Popen[bytes]) -> int:
    """The pidfd of a child that has just started. Raises Unusable, the child being gone, if it cannot be watched."""
    try:
        return os.pidfd_open(popen.pid)
    except OSError as error:
        # Popen itself needed two more descriptors a moment ago, so this is no common shortage; but it has run.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        raise Unusable("exec", f"it was started, but cannot be watched, and was killed: {error.strerror}") from None


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


def _first_line(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            line = file.readline(128)
    except OSError:
        return "unknown"
    if line.endswith(b"\r\n"):
        return f"{line.decode('latin-1')!a} (the line ends in CR LF)"
    return ascii(line.rstrip().decode("latin-1")) if line.startswith(b"#!") else "the dynamic loader of the program"
