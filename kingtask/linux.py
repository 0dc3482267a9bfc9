"""Linux calls that the standard library does not offer: prctl(2), timerfd_create(2); capabilities and open files."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from collections.abc import Iterable
from pathlib import Path

from kingtask.errors import ConfigurationError

FEWEST_OPEN_FILES = 64
"""With fewer a daemon does not come up (libzmq aborts at 10), or soon accepts nothing more."""
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}
"""Bits of capabilities(7)."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 36, 47, 4
_CLOCK_MONOTONIC = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: the interval, then the first expiry; each in seconds and nanoseconds."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


def set_death_signal(number: int) -> None:
    """Have the kernel send this signal to this process when its parent dies. Safe between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends. Raises OSError where the kernel refuses."""
    _checked("prctl", _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def clear_ambient_capabilities() -> None:
    """Let no program that this process starts inherit its capabilities, unless it is root."""
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Return the capabilities that this process lacks, as `CAP_…`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return [f"CAP_{name}" for name in names if not effective >> CAPABILITIES[name] & 1]


def timerfd_create() -> int:
    """A non-blocking timer on the monotonic clock (os.timerfd_create exists since Python 3.13). Raises OSError."""
    return _checked("timerfd_create", _LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))


def timerfd_start(fd: int, after_ns: int) -> None:
    """Make the timer readable once, after so many nanoseconds (at least 1; 0 would disarm it)."""
    seconds, ns = divmod(max(1, after_ns), 1_000_000_000)
    _LIBC.timerfd_settime(fd, 0, ctypes.byref(_TimerSpec(0, 0, seconds, ns)), None)


def raise_open_files(wanted: int) -> int:
    """Raise the soft limit to `wanted`, at most to the hard limit; return how many of `wanted` are allowed.

    Raises ConfigurationError below FEWEST_OPEN_FILES.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted < FEWEST_OPEN_FILES:
        raise ConfigurationError(
            f"only {wanted} open files are allowed, and at least {FEWEST_OPEN_FILES} are needed: raise ulimit -n, or"
            " LimitNOFILE in the unit"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def open_files_nearly_used_up() -> int | None:
    """The limit of open files if less than a tenth of it is left; else None.

    Costs nothing: every descriptor below the lowest free one is in use (open(2)).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        free = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return limit if error.errno == errno.EMFILE else None
    os.close(free)
    return limit if limit != resource.RLIM_INFINITY and free >= limit * 9 // 10 else None


def lock_directory(path: Path) -> int | None:
    """Lock a directory until the descriptor that is returned is closed, at the latest by the death of this process.

    None if another process has the lock, or the directory is gone.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _checked(call: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
