"""The specification of a task: its fields, their limits, and the checks that types cannot express.

A task is one executable and its arguments. It runs at or after one instant, possibly several times.

Inside, times are integers in milliseconds (`*_ms`). People and the wire see instants in epoch seconds (`*_at`) and
durations in seconds (`*_s`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from kingtask.errors import InvalidRequest

DAY_S = 86_400.0

MAX_ARGS = 256
MAX_ARG_BYTES = 131_071
"""execve refuses a single string of 128 KiB with its NUL (MAX_ARG_STRLEN, execve(2))."""
MAX_ARGS_BYTES = 1_048_576
"""All arguments together. The environment always fits beside them into the kernel's 2 MiB (ARG_MAX, execve(2))."""
MAX_STDIN_BYTES = 1_048_576
MAX_ENV = 64
MAX_ENV_BYTES = 32_768
MAX_RETRIES = 64
MAX_INTERVAL_S = 30 * DAY_S
MAX_AHEAD_S = 3653 * DAY_S
MAX_KEEP_S = 365 * DAY_S
MAX_TAGS = 16
MAX_TAG_LENGTH = 64
LATEST_S = 9_999_999_999.0
"""Year 2286. Milliseconds passed as seconds are later, so that mistake is refused."""

NAME_PATTERN = r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){0,3}\Z"
QUEUE_PATTERN = r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z"
ID_PATTERN = r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"

TaskName = Annotated[
    str,
    msgspec.Meta(
        pattern=NAME_PATTERN,
        description="the name of an executable (letters, digits, . _ -; up to four parts joined by /, each of at most"
        " 64 characters and not beginning with . or -)",
    ),
]
QueueName = Annotated[
    str,
    msgspec.Meta(
        pattern=QUEUE_PATTERN,
        description="the name of a queue (letters, digits, . _ -; at most 64 characters, not beginning with . or -)",
    ),
]
TaskId = Annotated[
    str,
    msgspec.Meta(pattern=ID_PATTERN, description="a UUID in lower case such as 6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"),
]
Instant = Annotated[
    float,
    msgspec.Meta(ge=0, le=LATEST_S, description=f"an instant in epoch seconds, a number from 0 to {LATEST_S:,.0f}"),
]
Interval = Annotated[float, msgspec.Meta(ge=0, le=MAX_INTERVAL_S)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TAG_LENGTH)]


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task as a client requests it; the fields of the wire, in PROTOCOL.md's order."""

    id: TaskId | None = None
    name: TaskName
    args: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_ARGS)] = ()
    start_at: Instant = 0.0
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_AHEAD_S)] = 0.0
    retry: Annotated[tuple[Interval, ...], msgspec.Meta(max_length=MAX_RETRIES)] = ()
    queue: QueueName = "default"
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    time_limit_s: Annotated[float, msgspec.Meta(ge=0.001, le=MAX_INTERVAL_S)] | None = None
    stdin: Annotated[bytes, msgspec.Meta(max_length=MAX_STDIN_BYTES)] = b""
    env: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_ENV)] = {}
    keep_result_s: Annotated[float, msgspec.Meta(ge=1, le=MAX_KEEP_S)] | None = None
    expires_at: Instant | None = None
    stderr: Literal["fail", "keep"] | None = None
    on_lost: Literal["retry", "fail"] = "retry"
    tags: Annotated[tuple[Tag, ...], msgspec.Meta(max_length=MAX_TAGS)] = ()


OPTIONS: dict[str, str] = {
    "at" if field == "start_at" else field.removesuffix("_s"): field
    for field in TaskSpec.__struct_fields__
    if field not in ("id", "name", "args")
}
"""The fields that every client offers as options, by the names of the options, which have no unit."""


_ENV_NAME = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,127}\Z")

ENV_REFUSED_PREFIXES = ("KINGTASK_", "LD_", "DYLD_", "XDG_")
ENV_REFUSED = frozenset(
    "PATH HOME USER LOGNAME SHELL TMPDIR IFS ENV BASH_ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND"
    " GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH HOSTALIASES"
    " PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONEXECUTABLE PYTHONINSPECT PYTHONPLATLIBDIR"
    " PYTHONPYCACHEPREFIX PYTHONWARNINGS PYTHONBREAKPOINT PYTHONCASEOK PERL5LIB PERLLIB PERL5OPT PERL5DB PERLIO_DEBUG"
    " RUBYLIB RUBYOPT GEM_PATH GEM_HOME"
    " NODE_PATH NODE_OPTIONS NODE_EXTRA_CA_CERTS CLASSPATH JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_HOME"
    " LUA_PATH LUA_CPATH LUA_INIT PHPRC PHP_INI_SCAN_DIR GUILE_LOAD_PATH TCLLIBPATH ERL_LIBS ERL_FLAGS R_LIBS R_PROFILE"
    " DOTNET_STARTUP_HOOKS CORECLR_PROFILER_PATH ZDOTDIR".split()
)
"""Variables that choose the code of an interpreter or the loader, or where programs search for their files.

A client may choose arguments, not code. No such list is complete, so `task_env` of a worker names what may be set.
"""


def check_spec(spec: TaskSpec, now_s: float, place: str) -> None:
    """Check the rules that types cannot express; `now_s` is epoch seconds, `place` the spec's path in the request.

    Raises InvalidRequest naming the field, the value and what was expected.
    """
    _check_args(spec.args, place)
    if spec.env:
        _check_env(spec.env, place)
    if spec.start_at and spec.delay_s:
        raise _invalid(place, "delay_s", f"expected start_at or delay_s, not both, got {spec.delay_s!r}")
    if spec.start_at > now_s + MAX_AHEAD_S:
        raise _invalid(place, "start_at", f"expected at most 10 years ahead, got {spec.start_at!r}")
    if spec.expires_at is not None and spec.expires_at < spec.start_at:
        raise _invalid(place, "expires_at", f"expected an instant after start_at, got {spec.expires_at!r}")


def _check_args(args: tuple[str, ...], place: str) -> None:
    total = 0
    for i, arg in enumerate(args):
        size = len(arg) if arg.isascii() else _utf8_bytes(arg, place, f"args[{i}]")
        total += size + 1
        if size > MAX_ARG_BYTES:
            raise _invalid(place, f"args[{i}]", f"expected at most {MAX_ARG_BYTES:,} bytes, got {size:,}")
        if "\0" in arg:
            raise _invalid(place, f"args[{i}]", "expected no NUL character (an argument cannot hold one)")
    if total > MAX_ARGS_BYTES:
        raise _invalid(place, "args", f"expected at most {MAX_ARGS_BYTES:,} bytes in all, got {total:,}")


def _check_env(env: dict[str, str], place: str) -> None:
    total = 0
    for name, value in env.items():
        where = f"env[{name[:64]!a}]"
        if not _ENV_NAME.match(name):
            raise _invalid(place, where, "expected a name of letters, digits and _ that does not begin with a digit")
        if name in ENV_REFUSED or name.startswith(ENV_REFUSED_PREFIXES):
            raise _invalid(place, where, "this name may not be set by a client (it decides which code is run)")
        if "\0" in value:
            raise _invalid(place, where, "expected no NUL character")
        total += len(name) + _utf8_bytes(value, place, where) + 2
    if total > MAX_ENV_BYTES:
        raise _invalid(place, "env", f"expected at most {MAX_ENV_BYTES:,} bytes in all, got {total:,}")


def _utf8_bytes(text: str, place: str, field: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # only from a Python caller: the wire has no lone surrogates
        raise _invalid(place, field, f"expected text, got {text[:64]!a}, which UTF-8 cannot hold") from None


def _invalid(place: str, field: str, message: str) -> InvalidRequest:
    path = f"{place}.{field}" if place else field
    return InvalidRequest(f"{path}: {message}", field=path)
