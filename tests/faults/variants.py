"""The product broken on purpose, by a library of its own or a patch: a suite that sees nothing wrong there is blind."""

from __future__ import annotations

from pathlib import Path

from kingtask.broker import relay
from kingtask.store.library import shipped

VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    # A claim takes the task out of `ready` and leaves no lease: what is lost with a worker is lost for good.
    "take_by_pop": (
        ("local ok, problem = pcall(renew, c, id)\n", "local ok, problem = true, nil\n"),
        ("known[id] = true\n  renew(c, id)\n", "known[id] = true\n"),
    ),
    # Whoever reports an attempt is believed.
    "no_fence": ((" or tonumber(task.attempt or 0) ~= number or task.token ~= token then", " then"),),
}
"""By name, what is replaced in the shipped text."""


def unbounded() -> None:
    """In the process of a broker: its relay bounds nothing."""
    relay.RelayedConnection._must_wait = lambda self: False  # type: ignore[method-assign]
    relay.Relay.overfull = lambda self, connection: False  # type: ignore[method-assign]
    relay.RelayedConnection._checks_unread = lambda self: 0  # type: ignore[method-assign]
    relay.Relay.hold = lambda self, connection: None  # type: ignore[method-assign]


PATCHES = frozenset({unbounded.__name__})
"""Functions of this module that are called before a broker starts."""


def write(name: str, directory: Path) -> Path:
    """Write the variant's library; returns its path."""
    text = shipped().template
    for old, new in VARIANTS[name]:
        if text.count(old) != 1:
            raise LookupError(f"variant {name}: the shipped library does not hold this once: {old!r}")
        text = text.replace(old, new)
    path = directory / f"{name}.lua"
    path.write_text(text)
    return path
