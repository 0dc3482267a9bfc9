"""kingtask runs executables asynchronously: now, at a given instant, or again after a failure."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kingtask.client.aio import AsyncClient as AsyncClient
    from kingtask.client.blocking import Client as Client
    from kingtask.client.handles import AsyncTask as AsyncTask
    from kingtask.client.handles import Outcome as Outcome
    from kingtask.client.handles import Task as Task
    from kingtask.errors import Busy as Busy
    from kingtask.errors import ClientClosed as ClientClosed
    from kingtask.errors import ConfigurationError as ConfigurationError
    from kingtask.errors import IdConflict as IdConflict
    from kingtask.errors import InvalidRequest as InvalidRequest
    from kingtask.errors import KingtaskError as KingtaskError
    from kingtask.errors import NoAnswer as NoAnswer
    from kingtask.errors import NotConfirmed as NotConfirmed
    from kingtask.errors import PermissionDenied as PermissionDenied
    from kingtask.errors import RequestRefused as RequestRefused
    from kingtask.errors import ResultTimeout as ResultTimeout
    from kingtask.errors import TaskFailed as TaskFailed
    from kingtask.errors import TaskNotFound as TaskNotFound
    from kingtask.errors import Unavailable as Unavailable
    from kingtask.errors import WrongState as WrongState
    from kingtask.task import Attempt as Attempt
    from kingtask.task import Result as Result
    from kingtask.task import State as State
    from kingtask.task import TaskSpec as TaskSpec

__version__ = "1.0.0"

_HOMES = {
    "client.aio": "AsyncClient",
    "client.blocking": "Client",
    "client.tasks": "AsyncTask Outcome Task",
    "errors": "Busy ClientClosed ConfigurationError IdConflict InvalidRequest KingtaskError NoAnswer NotConfirmed"
    " PermissionDenied RequestRefused ResultTimeout TaskFailed TaskNotFound Unavailable WrongState",
    "task": "Attempt Result State TaskSpec",
}

__all__ = [name for names in _HOMES.values() for name in names.split()]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> object:
    """Import what is public when it is first asked for: the command line and the daemons start without the rest."""
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
