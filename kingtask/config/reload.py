"""Reload the configuration of a running daemon (SIGHUP): apply every live key, or nothing if the file is wrong.

A key is either `live`, or it keeps its value until a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic

import msgspec

from kingtask.config.checks import InvalidSetting
from kingtask.config.load import C
from kingtask.errors import ConfigurationError
from kingtask.event import Event

log = logging.getLogger("kingtask.config")


class Reload(Generic[C]):
    """Reads and applies the file on SIGHUP; blocks the loop for about 15 ms."""

    def __init__(self, config: C, read: Callable[[], C], apply: Callable[[C], None]) -> None:
        """`config` is in force now. `apply` may raise ConfigurationError, and then has changed nothing."""
        self.config: C = config
        self._read: Callable[[], C] = read
        self._apply: Callable[[C], None] = apply
        self._around: tuple[Callable[[], None], Callable[[], None]] | None = None
        """Called before and after a reload; None: not now."""
        self._requested = False
        self.done = 0
        self.refused = 0
        self.problem = ""
        """Why the last reload was refused; empty if it was applied."""

    @property
    def note(self) -> str:
        """Suffix of the status line."""
        return f"; the last reload was refused: {self.problem}" if self.problem else ""

    def ask(self) -> None:
        """Handle the signal. Before `start` the reload is deferred until then."""
        self._requested = True
        if self._around is not None:
            self._run(*self._around)

    def start(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        """Allow reloads from now on; `begun` and `ended` are called around each one."""
        self._around = begun, ended
        if self._requested:
            self._run(begun, ended)

    def stop(self) -> None:
        """Ignore later signals: the daemon is stopping."""
        self._around = None

    def _run(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        self._requested = False
        begun()
        try:
            changed, later = self._merge(self._read())
        except ConfigurationError as error:
            self.refused += 1
            self.problem = str(error)
            log.error(Event("reload=refused", "the configuration stays as it was", error=self.problem))  # noqa: TRY400 - a typing mistake needs no traceback
        else:
            self.done += 1
            self.problem = ""
            log.info(Event("reload=done", changed=",".join(changed) or "nothing"))
            if later:
                log.warning(Event("reload=partial", "these take effect with a restart", keys=",".join(later)))
        ended()

    def _merge(self, new: C) -> tuple[list[str], list[str]]:
        """Apply the live keys that changed. Return them, and the changed keys that need a restart."""
        old = self.config
        differing = sorted(key for key in old.__struct_fields__ if getattr(new, key) != getattr(old, key))
        changed = [key for key in differing if key in old.live]
        merged = msgspec.structs.replace(old, **{key: getattr(new, key) for key in changed})
        try:
            merged.check()
        except InvalidSetting as error:
            raise ConfigurationError(f"{error}; some of the changes need a restart") from None
        self._apply(merged)
        self.config = merged
        return changed, [key for key in differing if key not in old.live]
