"""Every exception of kingtask, in one tree. Each answers the question: what can the caller do now?

KingtaskError
├── ConfigurationError     correct the configuration file or the option that it names
├── RequestRefused         a broker refused; see `retryable` and `stored`
│   ├── InvalidRequest     correct the request (also raised before anything is sent)
│   ├── PermissionDenied   ask the operator
│   ├── TaskNotFound       the task never existed, or its record has expired
│   ├── IdConflict         another task has this id: choose a new one
│   ├── WrongState         the task is not in a state that allows it
│   ├── Busy               try again later
│   ├── Unavailable        nothing was stored: Redis is unreachable or full, or the broker stops: try again later
│   └── NotConfirmed       stored or not: Redis or its replicas did not answer in time: send the same id again
├── NoAnswer               no broker answered in time: if `stored` is "unknown", send the same id again
├── ClientClosed           the client was closed: make a new one
├── ResultTimeout          the task has not ended yet: wait longer
├── TaskFailed             the task ended in another state than `succeeded`; carries the Result
└── StoreError             Redis refused or did not answer a call (broker and worker only)
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from kingtask.result import Result

Stored = Literal["no", "unknown"]


def describe_error(error: Exception) -> str:
    """Format a third-party exception without its repr, which may contain the input (as UnicodeDecodeError's does)."""
    return f"{type(error).__name__}: {error}"


class KingtaskError(Exception):
    """Root of all errors that kingtask raises."""

    id: str | None = None
    """The id of the task in a client's call, if it has one; after a failed submit, send it again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all attributes, whatever the constructor takes."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class ConfigurationError(KingtaskError):
    """A configuration file, option or environment variable is wrong; the text names it and the remedy."""


class RequestRefused(KingtaskError):
    """A broker's error reply. `code` is the wire code of PROTOCOL.md."""

    code = "internal"
    retryable = False
    stored: Stored = "unknown"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retryable: bool | None = None,
        stored: Stored | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.code = self.code if code is None else code
        self.retryable = self.retryable if retryable is None else retryable
        self.stored = self.stored if stored is None else stored


class InvalidRequest(RequestRefused):
    """The request breaks a rule of PROTOCOL.md; `field` is the path of the offending place."""

    code = "invalid_request"
    stored: Stored = "no"


class PermissionDenied(RequestRefused):
    code = "permission_denied"
    stored: Stored = "no"


class TaskNotFound(RequestRefused):
    code = "not_found"
    stored: Stored = "no"


class IdConflict(RequestRefused):
    code = "id_conflict"
    stored: Stored = "no"


class WrongState(RequestRefused):
    code = "wrong_state"
    stored: Stored = "no"


class Busy(RequestRefused):
    code = "busy"
    retryable = True
    stored: Stored = "no"


class Unavailable(RequestRefused):
    code = "unavailable"
    retryable = True
    stored: Stored = "no"


class NotConfirmed(RequestRefused):
    code = "not_confirmed"
    retryable = True


REFUSALS: dict[str, type[RequestRefused]] = {
    code: kind
    for kind, codes in (
        (InvalidRequest, "invalid_request malformed bad_frames too_big too_deep unsupported_version unknown_op"),
        (PermissionDenied, "permission_denied"),
        (TaskNotFound, "not_found"),
        (IdConflict, "id_conflict"),
        (WrongState, "wrong_state"),
        (Busy, "busy rate_limited"),
        (Unavailable, "unavailable store_full"),
        (NotConfirmed, "not_confirmed"),
        (RequestRefused, "internal"),
    )
    for code in codes.split()
}
"""Every wire code with its exception; PROTOCOL.md lists the same codes (tested)."""


class NoAnswer(KingtaskError):
    """No broker answered before the deadline.

    `stored` is "no" if nothing ever left this process, else a submit may or may not be stored: resend it with the same
    id.
    """

    def __init__(self, message: str, *, stored: Stored = "unknown") -> None:
        super().__init__(message)
        self.stored: Stored = stored


class ClientClosed(KingtaskError):
    """The client was closed before this call; nothing was sent."""


class ResultTimeout(KingtaskError):
    """The task did not end within the timeout. It goes on."""


class TaskFailed(KingtaskError):
    """The task ended in another state than `succeeded`; `result` says how."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.describe())
        self.result = result
        self.id = result.id


class StoreError(KingtaskError):
    """A call to Redis failed. `stored` says whether it may have taken effect, `kind` names the failure."""

    def __init__(self, kind: str, message: str, *, stored: Stored = "no") -> None:
        super().__init__(message)
        self.kind = kind
        self.stored: Stored = stored
