"""Settings that isolate executables from the worker and from each other: users, limits, directories.

`worker/sandbox` applies them. Users are looked up when the file is read, so that `--check`, `doctor` and the start of a
worker report the same errors.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterable
from functools import lru_cache
from itertools import filterfalse
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from kingtask.errors import ConfigurationError

PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Variables of the worker's environment that tasks get, unless `environment` lists others."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Variable = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!KINGTASK_)[A-Za-z_][A-Za-z0-9_]{0,127}\Z",
        description="the name of a variable: letters, digits and _, not KINGTASK_*",
    ),
]
VariablePattern = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9_*]{1,128}\Z",
        description="the name of a variable, in which * stands for any characters",
    ),
]
VariablePatterns = Annotated[tuple[VariablePattern, ...], msgspec.Meta(max_length=64)]
Mask = Annotated[
    str, msgspec.Meta(pattern=r"\A0?[0-7]{3}\Z", description='three octal digits in quotes, such as "027"')
]


class RunAs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names or numbers. With several users, attempts that run at the same time have different ones."""

    user: Name | Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=1024)]
    group: Name | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of each process; `processes` counts all processes of the user (setrlimit(2))."""

    memory: Annotated[int, msgspec.Meta(ge=16_777_216, le=2**50)] | None = None
    cpu_time: Annotated[int, msgspec.Meta(ge=1, le=31_536_000)] | None = None
    open_files: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] | None = None
    processes: Annotated[int, msgspec.Meta(ge=1, le=4_194_304)] | None = None
    file_size: Annotated[int, msgspec.Meta(ge=0, le=2**50)] | None = None
    core: Annotated[int, msgspec.Meta(ge=0, le=2**50)] | None = None


class UnixIdentity(NamedTuple):
    """A user as the kernel and the environment know it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    """All of them, the primary one included."""
    home: str
    shell: str


def identities(run_as: RunAs) -> list[UnixIdentity]:
    """Look up the users. Raises ConfigurationError that begins with the key."""
    group = None if run_as.group is None else _gid(run_as.group)
    found: dict[int, UnixIdentity] = {}
    for name in [run_as.user] if isinstance(run_as.user, str) else run_as.user:
        identity = _identity(name, group)
        if identity.uid == 0:
            raise ConfigurationError("run_as: root would keep every right; expected a user of its own for tasks")
        if identity.uid in found:
            raise ConfigurationError(f"run_as: {name} is the same user as {found[identity.uid].name}")
        found[identity.uid] = identity
    return list(found.values())


def _identity(name: str, group: int | None) -> UnixIdentity:
    try:
        entry = pwd.getpwuid(_number(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if not name.isdecimal():
            raise ConfigurationError(
                f"run_as: there is no user {name!a} on this host; useradd --system {name}, or correct the name"
            ) from None
        if group is None:
            raise ConfigurationError(f"run_as: {name} has no entry, so its group must be given: `group:`") from None
        return UnixIdentity(name, _number(name), group, (group,), "/", "/bin/sh")
    gid = entry.pw_gid if group is None else group
    groups = tuple(dict.fromkeys((gid, *os.getgrouplist(entry.pw_name, gid))))
    return UnixIdentity(entry.pw_name, entry.pw_uid, gid, groups, entry.pw_dir or "/", entry.pw_shell or "/bin/sh")


def _gid(name: str) -> int:
    if name.isdecimal():
        return _number(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigurationError(
            f"run_as: there is no group {name!a} on this host; groupadd --system {name}, or correct the name"
        ) from None


def _number(text: str) -> int:
    number = int(text)
    if number >= 2**32 - 1:
        raise ConfigurationError(f"run_as: {text[:64]} is not the number of a user or group")
    return number


def first_unlisted(names: Iterable[str], patterns: tuple[str, ...]) -> str | None:
    """Return the first name of a variable that no pattern matches; None if there is none."""
    return next(filterfalse(_joined(patterns).match, names), None)


@lru_cache(maxsize=1024)
def _joined(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


def may_read(path: Path, identity: UnixIdentity) -> bool:
    """True if the file's mode lets the user read it; the directories above are not checked."""
    entry = path.stat()
    if entry.st_uid == identity.uid:
        return bool(entry.st_mode & stat.S_IRUSR)
    return bool(entry.st_mode & (stat.S_IRGRP if entry.st_gid in identity.groups else stat.S_IROTH))
