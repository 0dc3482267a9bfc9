"""A configuration that is read anew while its daemon runs (SIGHUP): applied as far as that is possible, or not at all.

A key is either `live`, or it takes effect with a restart and keeps its value until then. A file that is wrong changes
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic

import msgspec

from kingtask.config.checks import InvalidSetting
from kingtask.config.load import C
from kingtask.errors import ConfigurationError

log = logging.getLogger("kingtask.config")


class Reload(Generic[C]):
    """Blocks for as long as it takes to read the file (some 15 ms)."""

    def __init__(self, config: C, read: Callable[[], C], apply: Callable[[C], None]) -> None:
        """`config`: what applies now. `apply` may raise ConfigurationError, having changed nothing."""
        self.config: C = config
        self._read: Callable[[], C] = read
        self._apply: Callable[[C], None] = apply
        self._ready = False
        self._asked = False
        self.done = 0
        self.refused = 0
        self.trouble = ""
        """Why the last one was refused; empty if it was not."""

    @property
    def note(self) -> str:
        """For a line of status."""
        return f"; the last reload was refused: {self.trouble}" if self.trouble else ""

    def ask(self) -> None:
        """The signal. Before `start` it is remembered."""
        self._asked = True
        if self._ready:
            self._run()

    def start(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        """The daemon is ready. Both are called around each reload."""
        self._begun, self._ended = begun, ended
        self._ready = True
        if self._asked:
            self._run()

    def stop(self) -> None:
        """The daemon is stopping: nothing is read any more."""
        self._ready = False

    def _run(self) -> None:
        self._asked = False
        self._begun()
        try:
            changed, later = self._merge(self._read())
        except ConfigurationError as error:
            self.refused += 1
            self.trouble = str(error)
            log.error("reload=refused error=%r: what was valid stays so", self.trouble)  # noqa: TRY400 - a person's slip
        else:
            self.done += 1
            self.trouble = ""
            log.info("reload=done changed=%s", ",".join(changed) or "nothing")
            if later:
                log.warning("reload=partial keys=%s: these take effect with a restart", ",".join(later))
        self._ended()

    def _merge(self, new: C) -> tuple[list[str], list[str]]:
        """Apply what may change now; returns the keys that did, and those that have to wait."""
        old = self.config
        differing = sorted(key for key in old.__struct_fields__ if getattr(new, key) != getattr(old, key))
        changed = [key for key in differing if key in old.live]
        merged = msgspec.structs.replace(old, **{key: getattr(new, key) for key in changed})
        try:
            merged.check()
        except InvalidSetting as error:
            raise ConfigurationError(f"{error.field}: {error}; some of what changed needs a restart") from None
        self._apply(merged)
        self.config = merged
        return changed, [key for key in differing if key not in old.live]
