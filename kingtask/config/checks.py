"""Checks of paths in a configuration, and the exception that names the wrong key."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from kingtask.errors import ConfigurationError

T = TypeVar("T")
MAX_SECRET_BYTES = 4096


class InvalidSetting(ConfigurationError):
    """A value breaks a rule; `field` is its key, with which the text begins."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def for_key(field: str, action: Callable[[], T]) -> T:
    """Run `action`; its ConfigurationError becomes an InvalidSetting of `field`."""
    try:
        return action()
    except ConfigurationError as error:
        raise InvalidSetting(field, str(error).removeprefix(f"{field}: ")) from None


def about_path(field: str, text: str | None, read: Callable[[Path], object]) -> None:
    if text is not None:
        for_key(field, partial(read, absolute(field, text)))


def absolute(field: str, text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise InvalidSetting(field, f"expected an absolute path, got {text!r} (here that would be {Path.cwd() / path})")
    return path


def check_bin_path(field: str, text: str) -> None:
    path = absolute(field, text)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidSetting(field, f"cannot use {text}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise InvalidSetting(field, f"expected the directory of the executables, but {text} is not a directory")
    if mode & stat.S_IWOTH:
        raise InvalidSetting(
            field, f"every user may put programs into {text}, which the worker would run; chmod o-w {text}"
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise InvalidSetting(field, f"this user may not read {text}")
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        raise InvalidSetting(
            field, f"{text} is mounted noexec, so nothing in it can be executed; name another directory"
        )


def secret(path: Path) -> str:
    """Read the single line of a file that only its owner and group may read. Raises ConfigurationError."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigurationError(f"{path} is not a regular file")
        if mode & stat.S_IRWXO:
            raise ConfigurationError(f"every user may read or change {path}; chmod 640 {path}")
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES + 1).decode().strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    if not text or len(text) > MAX_SECRET_BYTES or len(text.splitlines()) > 1:
        raise ConfigurationError(f"expected one line, the password, in {path}")
    return text
