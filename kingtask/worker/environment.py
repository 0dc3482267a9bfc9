"""The environment of an executable, as kingtask/guide/executables.md documents it. Pure.

Of the worker's own environment only PASSED goes on (or what `environment` names), so its secrets and the settings of
its interpreter do not. The request's variables come next, whose names `task_env` bounds, then KINGTASK_*, which a
request therefore cannot forge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kingtask.config.sandbox_settings import PASSED
from kingtask.store.functions import Claimed

DEFAULTS = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}

WORKER_MARK = "KINGTASK_WORKER"
TASK_MARK = "KINGTASK_ID"
ATTEMPT_MARK = "KINGTASK_ATTEMPT"
"""By these `orphans` and the reaper recognize a process."""


def base(own: Mapping[str, str], *, worker: str, brokers: str, passed: Sequence[str] | None = None) -> dict[str, str]:
    """The part that all attempts of a worker share. `brokers` as a client takes them: joined by commas."""
    found = {name: own[name] for name in (PASSED if passed is None else passed) if own.get(name)}
    return {**DEFAULTS, **found, WORKER_MARK: worker, "KINGTASK_BROKER": brokers}


def of_attempt(
    common: Mapping[str, str],
    request: Mapping[str, str],
    claimed: Claimed,
    *,
    deadline_ms: int,
    directory: str | None = None,
) -> dict[str, str]:
    """`deadline_ms` on Redis's clock; the executable sees epoch seconds with three decimals.

    `directory`: the scratch directory, if the attempt has one.
    """
    variables = {
        **common,
        **request,
        WORKER_MARK: common[WORKER_MARK],
        "KINGTASK_BROKER": common["KINGTASK_BROKER"],
        TASK_MARK: claimed.id,
        ATTEMPT_MARK: str(claimed.number),
        "KINGTASK_QUEUE": claimed.queue,
        "KINGTASK_DUE_AT": f"{claimed.due_ms / 1000:.3f}",
        "KINGTASK_DEADLINE": f"{deadline_ms / 1000:.3f}",
    }
    return variables if directory is None else {**variables, "KINGTASK_DIR": directory, "TMPDIR": directory}
