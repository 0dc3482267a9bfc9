"""Turn a file into a checked configuration, or into an error that names file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from kingtask.config import document
from kingtask.config.checks import InvalidSetting
from kingtask.config.settings import BrokerConfig, Settings, WorkerConfig
from kingtask.errors import InvalidRequest
from kingtask.ownership import others_may_change
from kingtask.validation import convert, nearest

C = TypeVar("C", BrokerConfig, WorkerConfig)


def load_broker(path: str | Path) -> BrokerConfig:
    """Load the broker's configuration. Raises ConfigurationError naming file, line and key."""
    return _load(path, BrokerConfig)


def load_worker(path: str | Path) -> WorkerConfig:
    """Load the worker's configuration. Raises ConfigurationError naming file, line and key."""
    return _load(path, WorkerConfig)


def _load(path: str | Path, kind: type[C]) -> C:
    file = document.read(path)
    known = kind.__struct_fields__
    for key in file.values:
        if key not in known:
            raise file.error(key, f"{key}: unknown key; {_hint(key, known)}")
    try:
        config = convert(document.with_lists(file.values, kind.lists), kind)
        config.check()
    except (InvalidRequest, InvalidSetting) as error:
        raise file.error(error.field, str(error)) from None
    if config.guarded and (found := others_may_change(path)):
        raise file.error(None, found)
    return config


def exposed(path: str | Path, config: Settings) -> list[str]:
    """Return who else may change what the file, or a path in it, means, where that is no error: a line each."""
    found = () if config.guarded else (others_may_change(path), *map(": ".join, config.exposed()))
    return [f"{path}: {text}" for text in found if text]


def _hint(key: str, known: tuple[str, ...]) -> str:
    for daemon, kind in (("broker", BrokerConfig), ("worker", WorkerConfig)):
        if key in kind.__struct_fields__:
            return f"it belongs in the configuration of the {daemon}"
    meant = nearest(key, known)
    return f"did you mean {meant}?" if meant else f"expected one of {', '.join(sorted(known))}"
