"""What a task is: its states, its specification and limits, and the result that people read.

A task is one executable and its arguments, run at or after one instant, possibly several times. It moves through
seven states; TRANSITIONS is the only table of allowed moves (`store/kingtask.lua` holds the same one, tested):

    scheduled ─▶ ready ─▶ running ─▶ succeeded | failed
        ▲                   │  │        (a failure with retries left goes back to scheduled,
        └───────────────────┘  └─▶ ready   a lost or released attempt back to ready)
    scheduled, ready ─▶ cancelled | expired;   running ─▶ cancelled

Times inside are integers in milliseconds (`*_ms`); what people and the wire see is epoch seconds (`*_at`) and
durations in seconds (`*_s`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from kingtask.errors import InvalidRequest


class State(StrEnum):
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.READY, State.CANCELLED, State.EXPIRED}),
    State.READY: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.SCHEDULED, State.READY, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}

DAY_S = 86_400.0

MAX_ARGS = 256
MAX_ARG_BYTES = 131_071
"""execve refuses a single string of 128 KiB with its NUL (MAX_ARG_STRLEN, execve(2))."""
MAX_ARGS_BYTES = 1_048_576
"""All arguments together; so far below the kernel's 2 MiB that the environment always fits (ARG_MAX, execve(2))."""
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
"""Year 2286: milliseconds given for seconds are beyond it, so the mistake is named instead of stored."""

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
    """What a client asks for; the fields are those of the wire, in PROTOCOL.md's order."""

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


_ENV_NAME = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,127}\Z")

ENV_REFUSED_PREFIXES = ("KINGTASK_", "LD_", "DYLD_")
ENV_REFUSED = frozenset(
    "PATH IFS ENV BASH_ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH HOSTALIASES"
    " PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONEXECUTABLE PYTHONINSPECT PYTHONPLATLIBDIR"
    " PYTHONPYCACHEPREFIX PYTHONWARNINGS PYTHONBREAKPOINT PYTHONCASEOK PERL5LIB PERLLIB PERL5OPT PERL5DB PERLIO_DEBUG"
    " RUBYLIB RUBYOPT GEM_PATH GEM_HOME"
    " NODE_PATH NODE_OPTIONS NODE_EXTRA_CA_CERTS CLASSPATH JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_HOME"
    " LUA_PATH LUA_CPATH LUA_INIT PHPRC PHP_INI_SCAN_DIR GUILE_LOAD_PATH TCLLIBPATH ERL_LIBS ERL_FLAGS R_LIBS R_PROFILE"
    " DOTNET_STARTUP_HOOKS CORECLR_PROFILER_PATH ZDOTDIR".split()
)
"""Names that decide which code an interpreter or the loader runs; a client may choose arguments, not code."""


def check_spec(spec: TaskSpec, now_s: float, place: str) -> None:
    """Check what the types cannot say; `now_s` is epoch seconds, `place` the spec's path in the request.

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


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt that has ended. `reason` is empty for a success.

    Reasons of a failure: `exit` (non-zero status), `signal`, `time_limit`, `stderr` (wrote to it, and the task does
    not keep it), `missing`, `not_executable`, `exec` (the kernel refused it), `no_retry` (exit status 100), `lost`,
    `interrupted`, `cancelled`, `out_of_memory`, `released` (handed back, not counted).
    """

    number: int
    worker: str
    started_at: float
    ended_at: float
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    stderr_tail: bytes = b""


def head_bytes(kept: int) -> int:
    """How many of `kept` bytes are the beginning of an output that was too long; the others are its end."""
    return kept - kept // 2


def cut_at(kept: bytes, size: int) -> int | None:
    """Where in `kept` something is missing of an output of `size` bytes; None if nothing is."""
    return head_bytes(len(kept)) if size > len(kept) else None


def readable(kept: bytes, size: int) -> str:
    """An output for people: as text, with a line that says how much is missing where something is."""
    cut = cut_at(kept, size)
    if cut is None:
        return kept.decode("utf-8", "replace")
    head, tail = kept[:cut].decode("utf-8", "replace"), kept[cut:].decode("utf-8", "replace")
    return f"{head}\n[… {size - len(kept):,} bytes were not kept …]\n{tail}"


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task as its record says: where it stands and, once it has ended, what came out.

    `stdout` and `stderr` are the bytes kept; `stdout_size` and `stderr_size` what the program really wrote. `dropped`:
    they were kept, and then dropped to make room for those of later tasks (`max_result_bytes`).
    """

    id: str
    name: str
    queue: str
    priority: int
    state: State
    created_at: float
    due_at: float
    args: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    origin: str | None = None
    reason: str = ""
    cancelling: bool = False
    worker: str | None = None
    attempt: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_size: int = 0
    stderr_size: int = 0
    dropped: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def success(self) -> bool:
        return self.state is State.SUCCEEDED

    @property
    def text(self) -> str:
        """stdout as text: bytes that are not UTF-8 as replacement characters, a line where some are missing."""
        return readable(self.stdout, self.stdout_size)

    @property
    def exit_code(self) -> int | None:
        """Exit status of the last attempt, None if it had none."""
        return self.attempts[-1].exit_code if self.attempts else None

    @property
    def signal(self) -> int | None:
        """Number of the signal that ended the last attempt, None if none did."""
        return self.attempts[-1].signal if self.attempts else None

    @property
    def truncated(self) -> bool:
        """True if stdout or stderr was longer than what is kept: head and tail, or nothing if it was `dropped`."""
        return self.stdout_size > len(self.stdout) or self.stderr_size > len(self.stderr)

    @property
    def stdout_cut(self) -> int | None:
        """Where in `stdout` the bytes are missing that were not kept; None if it is whole."""
        return cut_at(self.stdout, self.stdout_size)

    @property
    def stderr_cut(self) -> int | None:
        return cut_at(self.stderr, self.stderr_size)

    def describe(self) -> str:
        """One line for people: how the task stands or ended, and why."""
        verb = "was" if self.state is State.CANCELLED else "has" if self.ended else "is"
        text = f"task {self.id} ({self.name}) {verb} {self.state}"
        if self.reason and self.reason != self.state:
            text += f": {self.reason}"
        last = self.attempts[-1] if self.attempts else None
        if last is not None and not self.success:
            tail = last.message or last.stderr_tail.decode("utf-8", "replace").strip()[-300:]
            text += f" (attempt {last.number}{f': {tail}' if tail else ''})"
        return text
