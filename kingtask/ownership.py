"""Other users that may change what a path means: its file, or the directories and links that lead there."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

PACKAGED_USER = "kingtask"
"""The user of the packaged daemons (deploy/systemd). Root trusts it, because root checks their configuration."""

Step = tuple[Path, Path | None]
"""A directory and the entry that is looked up in it; or a directory or file by itself."""


def others_may_change(
    path: str | os.PathLike[str], *, depth: int = 0, uids: Collection[int] = (), gids: Collection[int] = ()
) -> str:
    """Return who besides root and this process's user may change what the path means, with a remedy; "" for nobody.

    `depth`: the levels of entries below the directory that count too. `uids` and `gids` are never trusted. A path that
    this process cannot follow is left to its reader.
    """
    users = {0, os.geteuid()}
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            users.add(pwd.getpwnam(PACKAGED_USER).pw_uid)
    with contextlib.suppress(OSError):
        for place, entry in _steps(Path(path), depth):
            with contextlib.suppress(OSError):  # removed meanwhile, or without access lists
                who, changed, command = _writer(place, entry, users.difference(uids), gids)
                meaning = "" if changed == Path(path) else f", and so change what {path} means"
                if who:
                    return f"{who} may write to {changed}{meaning}; {command} {changed}"
    return ""


def _steps(path: Path, depth: int) -> Iterator[Step]:
    """Yield each directory on the way with its entry, then what the path leads to, then what is below that."""
    path.stat()  # raises OSError for a circle of links
    here = Path("/")
    parts = path.absolute().parts[1:]
    for i, part in enumerate(parts, 1):
        entry = here / part
        yield here, entry
        if entry.is_symlink():
            yield from _steps(Path(here, entry.readlink(), *parts[i:]), depth)
            return
        here = here.parent if part == ".." else entry
    yield here, None
    yield from _below(here, depth)


def _below(directory: Path, depth: int) -> Iterator[Step]:
    for entry in list(os.scandir(directory)) if depth and os.access(directory, os.R_OK) else ():
        with contextlib.suppress(OSError):  # a link to nothing, or an entry removed meanwhile
            if not entry.is_symlink():
                yield Path(entry.path), None
                yield from _below(Path(entry.path), depth - 1 if entry.is_dir() else 0)
            else:
                # A directory elsewhere may be anybody's: `find` refuses what is in it.
                yield from (step for step in _steps(Path(entry.path), 0) if step[1] or not step[0].is_dir())


def _writer(place: Path, entry: Path | None, users: set[int], gids: Collection[int]) -> tuple[str, Path, str]:
    """Return who else may write, "" for nobody; to what; and the command that ends it."""
    status = place.stat()
    if status.st_uid not in users:
        return _user(status.st_uid), place, "chown root"
    if not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "", place, ""
    if entry is not None and status.st_mode & stat.S_ISVTX:
        # In a sticky directory, such as /tmp, only its owner and that of an entry may replace the entry.
        owner = entry.lstat().st_uid
        return "" if owner in users else _user(owner), entry, "chown -h root"
    if status.st_mode & stat.S_IWOTH:
        return "every user", place, "chmod o-w"
    group, members = _group(status.st_gid)
    # With an access list the group bits are the upper bound of its entries (acl(5)).
    if status.st_gid in gids or not members <= users or "system.posix_acl_access" in os.listxattr(place):
        return f"the group {group}", place, "chmod g-w"
    return "", place, ""


def _user(uid: int) -> str:
    return next((user.pw_name for user in pwd.getpwall() if user.pw_uid == uid), str(uid))


def _group(gid: int) -> tuple[str, set[int]]:
    """Return the name of a group and its users. A group without an entry may have any."""
    try:
        name, _, _, names = grp.getgrgid(gid)
    except KeyError:
        return str(gid), {-1}
    return name, {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid or user.pw_name in names}
