"""Exit statuses of `kingtask`, and the status of each error; kingtask/guide/command-line.md has the same table."""

from __future__ import annotations

from enum import IntEnum
from typing import Self

from kingtask import errors

_FOR_NOW = "for now (busy, full, Redis unreachable)"


class Exit(IntEnum):
    """An exit status and its meaning."""

    meaning: str

    def __new__(cls, status: int, meaning: str) -> Self:
        self = int.__new__(cls, status)
        self._value_ = status
        self.meaning = meaning
        return self

    OK = 0, "done; for submit --wait and wait: the task succeeded"
    TASK_FAILED = 1, "the task ended, but not in `succeeded`; for doctor and demo: something is wrong"
    USAGE = 2, "the command line is wrong, nothing was sent"
    CONFIGURATION = 3, "a configuration file, a broker's address or the environment is wrong"
    NO_ANSWER = 4, f"no broker answered in time, or it refuses {_FOR_NOW}: try later, with the same id"
    PERMISSION = 5, "refused: a permission is missing, or the key does not fit"
    REFUSED = 6, "refused by the broker for good, nothing was stored"
    NOT_FOUND = 7, "no such task (it never existed, or its record has expired)"
    NOT_CONFIRMED = 8, "nobody knows whether the task is stored; send it again with the same id"
    PENDING = 9, "the task has not ended within the time given; it goes on"
    OUTPUT = 74, "the output could not be written (disk full, …)"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    BROKEN_PIPE = 141, "the reader of the output closed the pipe (SIGPIPE)"


_STATUSES: tuple[tuple[type[errors.KingtaskError], Exit], ...] = (
    (errors.ConfigurationError, Exit.CONFIGURATION),
    (errors.PermissionDenied, Exit.PERMISSION),
    (errors.TaskNotFound, Exit.NOT_FOUND),
    (errors.NoAnswer, Exit.NO_ANSWER),
    (errors.StoreError, Exit.NO_ANSWER),
    (errors.ResultTimeout, Exit.PENDING),
    (errors.TaskFailed, Exit.TASK_FAILED),
)
"""A request that the command line itself finds wrong is a usage error before this."""


def exit_for(error: errors.KingtaskError) -> Exit:
    """Return the exit status that stands for an error."""
    if isinstance(error, errors.RequestRefused):
        if error.stored == "unknown":
            return Exit.NOT_CONFIRMED
        if error.retryable:  # and the client has tried again for all of --timeout
            return Exit.NO_ANSWER
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), Exit.REFUSED)
