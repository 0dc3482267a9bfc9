"""permissions.yaml: the rights of each client. `etc/permissions.yaml` documents the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from kingtask import curve, protocol, task
from kingtask.config import document
from kingtask.config.sandbox_settings import VariablePatterns
from kingtask.errors import InvalidRequest
from kingtask.validation import convert, nearest, show

if TYPE_CHECKING:
    Op = str
else:
    Op = Literal[tuple(op.name for op in protocol.OPS.values() if op.permission)]
_SEGMENT = r"(\*\*|[A-Za-z0-9._*-]{1,64})"
Pattern = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"\A{_SEGMENT}(/{_SEGMENT}){{0,3}}\Z",
        description="a name in which * stands for any characters but /, and ** for any number of parts",
    ),
]
Patterns = Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=1_000)]

Owner = Annotated[str, msgspec.Meta(pattern=rf"\A{curve.NAME.pattern}", description=f"a name of {curve.NAMES}")]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rights of one client; None: no such bound. `owner`: None stands for the client's own name."""

    ops: tuple[Op, ...] | None = None
    queues: Patterns | None = None
    tasks: Patterns | None = None
    env: VariablePatterns | None = None
    max_priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    max_time_limit: Annotated[float, msgspec.Meta(ge=0.001, le=task.MAX_INTERVAL_S)] | None = None
    submits_per_second: Annotated[float, msgspec.Meta(ge=0.01, le=1_000_000)] | None = None
    max_outstanding: Annotated[int, msgspec.Meta(ge=1, le=20_000_000)] | None = None
    max_keep_result: Annotated[float, msgspec.Meta(ge=1, le=task.MAX_KEEP_S)] | None = None
    max_kept_bytes: Annotated[int, msgspec.Meta(ge=1, le=2**40)] | None = None
    max_queues: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    owner: Owner | None = None
    of: Literal["own", "all"] | None = None
    worker: bool = False

    @property
    def bounded(self) -> bool:
        """The client may act only in some queues or on some tasks."""
        return self.queues is not None or self.tasks is not None


_NOTHING = Rule(ops=())


class PermissionsFile(NamedTuple):
    """The content of the file. `default` applies to clients without an entry; None: they have no rights."""

    clients: dict[str, Rule]
    default: Rule | None

    def rule_of(self, client: str) -> tuple[Rule, str]:
        """Return the rule of a client and its place in the file."""
        if client in self.clients:
            return self.clients[client], f"clients.{client}"
        return self.default or _NOTHING, "default"


_LISTS = frozenset({"ops", "queues", "tasks", "env"})
_KEYS = ("clients", "default")


def load(path: str | Path) -> PermissionsFile:
    """Read and check the file. Raises ConfigurationError naming file, line and key."""
    file = document.read(path)
    for key in file.values:
        if key not in _KEYS:
            meant = nearest(key, _KEYS)
            hint = f"did you mean {meant}?" if meant else "expected clients or default"
            raise file.error(key, f"{key}: unknown key; {hint}")
    values = document.with_lists(file.values, ())
    clients = values.get("clients", {})
    if not isinstance(clients, dict):
        raise file.error("clients", f"clients: expected a map of names, got {show(clients)}")
    for name in clients:
        if not curve.NAME.match(name):
            raise file.error(f"clients.{name}", f"clients: expected names of {curve.NAMES}, got {show(name)}")
    return PermissionsFile(
        clients={name: _rule(file, f"clients.{name}", value) for name, value in clients.items()},
        default=_rule(file, "default", values["default"]) if "default" in values else None,
    )


def _rule(file: document.Document, place: str, value: Any) -> Rule:
    if isinstance(value, dict):
        value = document.with_lists(value, _LISTS)
    try:
        return convert({} if value is None else value, Rule, place)
    except InvalidRequest as error:
        raise file.error(error.field or place, error.message.replace("unknown field", "unknown key")) from None


def compiled(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that says whether a pattern matches a name. Its time is linear in the lengths of both."""
    regex = re.compile("|".join(map(_regex, patterns)) or r"(?!)")
    return lambda name: regex.fullmatch(f"{name}/") is not None


def _regex(pattern: str) -> str:
    """`**/` and `/**` also match nothing: `reports/**` matches `reports` too."""
    between = [""]  # the parts before, between and behind those that are `**`, each part with its slash
    for part in pattern.split("/"):
        if part == "**":
            between.append("")
        else:
            between[-1] += _with_gaps([re.escape(text) for text in part.split("*")], "[^/]*") + "/"
    return _with_gaps(between, "(?:[^/]+/)*")


def _with_gaps(pieces: list[str], gap: str) -> str:
    """Join pieces by gaps. A piece in the middle keeps its first place: no later one leaves more room for the rest."""
    first, *rest = pieces
    middle = [f"(?>{gap}?{piece})" for piece in rest[:-1] if piece]
    return first + "".join(middle) + "".join(gap + last for last in rest[-1:])
