"""What the clients hand out: tasks to wait for or cancel, and the outcome of each task of a bulk submit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import msgspec

from kingtask.errors import KingtaskError
from kingtask.result import Result

if TYPE_CHECKING:
    from kingtask.client.aio import AsyncClient
    from kingtask.client.blocking import Client

H = TypeVar("H", bound="Task | AsyncTask")

Accepted = Literal["created", "exists"]


class Task:
    """A task that a broker has accepted. `name` is None if only the id is known here.

    `outcome` is what submitting or requeuing it came to: "created", or "exists" if the id that was given was in use
    for the same task already, possibly from an earlier try of that call; None if it is not known here.
    """

    __slots__ = ("_client", "id", "name", "outcome")

    def __init__(self, client: Client, id: str, name: str | None = None) -> None:  # noqa: A002 - the word for it
        self._client = client
        self.id = id
        self.name = name
        self.outcome: Accepted | None = None

    def wait(self, timeout: float | None = None) -> Result:
        """As Client.wait."""
        return self._client.wait(self.id, timeout)

    def result(self, timeout: float | None = None) -> str:
        """As Client.result."""
        return self._client.result(self.id, timeout)

    def cancel(self) -> str:
        """As Client.cancel."""
        return self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"<Task {self.id}{f' ({self.name})' if self.name else ''}>"


class AsyncTask:
    """A task that a broker has accepted. `name` is None if only the id is known here.

    `outcome` is what submitting or requeuing it came to: "created", or "exists" if the id that was given was in use
    for the same task already, possibly from an earlier try of that call; None if it is not known here.
    """

    __slots__ = ("_client", "id", "name", "outcome")

    def __init__(self, client: AsyncClient, id: str, name: str | None = None) -> None:  # noqa: A002 - the word for it
        self._client = client
        self.id = id
        self.name = name
        self.outcome: Accepted | None = None

    async def wait(self, timeout: float | None = None) -> Result:  # noqa: ASYNC109 - the same call as Task's
        """As AsyncClient.wait."""
        return await self._client.wait(self.id, timeout)

    async def result(self, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """As AsyncClient.result."""
        return await self._client.result(self.id, timeout)

    async def cancel(self) -> str:
        """As AsyncClient.cancel."""
        return await self._client.cancel(self.id)

    def __repr__(self) -> str:
        return f"<AsyncTask {self.id}{f' ({self.name})' if self.name else ''}>"


class Outcome(msgspec.Struct, Generic[H], frozen=True):
    """What became of one task of a bulk submit.

    `exists`: the same task was there already, possibly from an earlier try of this very call. `error`: see `error`;
    the task's id is the one to submit again with.
    """

    task: H
    outcome: Literal["created", "exists", "error"]
    error: KingtaskError | None = None

    def accepted(self) -> H:
        """The task; raises its error if it was not accepted."""
        if self.error is not None:
            raise self.error
        return self.task
