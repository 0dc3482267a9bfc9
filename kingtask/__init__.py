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
    from kingtask.result import Attempt as Attempt
    from kingtask.result import Result as Result
    from kingtask.states import State as State
    from kingtask.task import TaskSpec as TaskSpec

__version__ = "1.0.0"

_HOMES = {
    name: home
    for home, names in {
        "client.aio": "AsyncClient",
        "client.blocking": "Client",
        "client.handles": "AsyncTask Outcome Task",
        "errors": "Busy ClientClosed ConfigurationError IdConflict InvalidRequest KingtaskError NoAnswer NotConfirmed"
        " PermissionDenied RequestRefused ResultTimeout TaskFailed TaskNotFound Unavailable WrongState",
        "result": "Attempt Result",
        "states": "State",
        "task": "TaskSpec",
    }.items()
    for name in names.split()
}
"""Each public name and its module."""

__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that the command line and the daemons start without the rest."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
