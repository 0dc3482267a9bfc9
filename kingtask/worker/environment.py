"""The environment of an executable, as kingtask/guide/executables.md documents it. Pure.

Of the worker's own environment only PASSED goes on (or what `environment` names), so that its secrets and its
interpreter's settings do not. Then come the request's variables, then KINGTASK_*, which a request can therefore not
forge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kingtask.config.sandbox_settings import PASSED

DEFAULTS = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}

WORKER_MARK = "KINGTASK_WORKER"
TASK_MARK = "KINGTASK_ID"
ATTEMPT_MARK = "KINGTASK_ATTEMPT"
"""What the guard knows a process by."""
DIRECTORY = "KINGTASK_DIR"


def base(own: Mapping[str, str], *, worker: str, brokers: str, passed: Sequence[str] | None = None) -> dict[str, str]:
    """The part that is the same for all attempts of a worker. `brokers` as a client takes them: joined by commas."""
    found = {name: own[name] for name in (PASSED if passed is None else passed) if own.get(name)}
    return {**DEFAULTS, **found, WORKER_MARK: worker, "KINGTASK_BROKER": brokers}


def of_attempt(
    common: Mapping[str, str],
    request: Mapping[str, str],
    *,
    task_id: str,
    number: int,
    queue: str,
    due_ms: int,
    deadline_ms: int,
    directory: str | None = None,
) -> dict[str, str]:
    """`due_ms` and `deadline_ms` on Redis's clock; the executable sees epoch seconds with three decimals.

    `directory`: the attempt's own, if it has one.
    """
    variables = {
        **common,
        **request,
        WORKER_MARK: common[WORKER_MARK],
        "KINGTASK_BROKER": common["KINGTASK_BROKER"],
        TASK_MARK: task_id,
        ATTEMPT_MARK: str(number),
        "KINGTASK_QUEUE": queue,
        "KINGTASK_DUE_AT": f"{due_ms / 1000:.3f}",
        "KINGTASK_DEADLINE": f"{deadline_ms / 1000:.3f}",
    }
    return variables if directory is None else {**variables, DIRECTORY: directory, "TMPDIR": directory}
