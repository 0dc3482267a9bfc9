"""Exit statuses of `kingtask`, and the status of each error; kingtask/guide/command-line.md has the same table."""

from __future__ import annotations

from enum import IntEnum

from kingtask.errors import (
    ConfigurationError,
    KingtaskError,
    NoAnswer,
    PermissionDenied,
    RequestRefused,
    ResultTimeout,
    StoreError,
    TaskFailed,
    TaskNotFound,
)


class Exit(IntEnum):
    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    NO_ANSWER = 4
    PERMISSION = 5
    REFUSED = 6
    NOT_FOUND = 7
    NOT_CONFIRMED = 8
    PENDING = 9
    OUTPUT = 74
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done; for submit --wait and wait: the task succeeded",
    Exit.TASK_FAILED: "the task ended, but not in `succeeded`; for doctor and demo: something is wrong",
    Exit.USAGE: "the command line is wrong, nothing was sent",
    Exit.CONFIGURATION: "a configuration file, a broker's address or the environment is wrong",
    Exit.NO_ANSWER: (
        "no broker answered in time, or it refuses for now (busy, full, Redis unreachable): try later, with the same id"
    ),
    Exit.PERMISSION: "refused: a permission is missing, or the key does not fit",
    Exit.REFUSED: "refused by the broker for good, nothing was stored",
    Exit.NOT_FOUND: "no such task (it never existed, or its record has expired)",
    Exit.NOT_CONFIRMED: "nobody knows whether the task is stored; send it again with the same id",
    Exit.PENDING: "the task has not ended within the time given; it goes on",
    Exit.OUTPUT: "the output could not be written (disk full, …)",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.BROKEN_PIPE: "the reader of the output closed the pipe (SIGPIPE)",
}


def exit_for(error: KingtaskError) -> Exit:
    """Return the exit status that stands for an error."""
    if isinstance(error, RequestRefused):
        if error.stored == "unknown":
            return Exit.NOT_CONFIRMED
        if error.retryable:  # and the client has tried again for all of --timeout
            return Exit.NO_ANSWER
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


_STATUSES: tuple[tuple[type[KingtaskError], Exit], ...] = (
    (ConfigurationError, Exit.CONFIGURATION),
    (PermissionDenied, Exit.PERMISSION),
    (TaskNotFound, Exit.NOT_FOUND),
    (RequestRefused, Exit.REFUSED),
    (NoAnswer, Exit.NO_ANSWER),
    (StoreError, Exit.NO_ANSWER),
    (ResultTimeout, Exit.PENDING),
    (TaskFailed, Exit.TASK_FAILED),
    (KingtaskError, Exit.REFUSED),
)
"""The first kind that fits counts. A request that the command line itself finds wrong is a usage error before this."""
