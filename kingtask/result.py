"""The result of a task: its state, its outputs and the attempts that have ended, for people and for the wire.

Instants are epoch seconds (`*_at`).
"""

from __future__ import annotations

import msgspec

from kingtask.states import TERMINAL, State

SHOWN_BYTES = 200
"""Bytes of stderr in a message; the attempt's record has a longer tail."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt that has ended. `reason` is empty for a success.

    Reasons of a failure: `exit` (non-zero status), `signal`, `time_limit`, `stderr` (it wrote there, and the task does
    not keep stderr), `missing`, `not_executable`, `exec` (the kernel refused it), `env` (the task sets a
    variable that the worker does not allow), `no_retry` (exit status 100), `lost`, `interrupted`, `cancelled`,
    `out_of_memory`, `released` (by its worker, not counted).
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
    """Return how many of `kept` bytes are the head of an output that was too long; the others are its tail."""
    return kept - kept // 2


def cut_at(kept: bytes, size: int) -> int | None:
    """Return the index in `kept` at which bytes of an output of `size` bytes are missing; None if none are."""
    return head_bytes(len(kept)) if size > len(kept) else None


def readable(kept: bytes, size: int) -> str:
    """Return an output as text for people, with a line in place of missing bytes."""
    cut = cut_at(kept, size)
    if cut is None:
        return kept.decode("utf-8", "replace")
    head, tail = kept[:cut].decode("utf-8", "replace"), kept[cut:].decode("utf-8", "replace")
    return f"{head}\n[… {size - len(kept):,} bytes were not kept …]\n{tail}"


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a task: its state and, once it has ended, its outputs.

    `stdout` and `stderr` are the bytes kept; `stdout_size` and `stderr_size` count what the program wrote. `dropped`:
    the outputs were removed to make room for those of later tasks (`max_result_bytes`, `max_kept_bytes`).
    `request_dropped`: likewise args, stdin, env and tags, so that the task cannot be requeued.
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
    request_dropped: bool = False
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
        """True if some bytes of stdout or stderr are missing: only head and tail are kept, or nothing (`dropped`)."""
        return self.stdout_size > len(self.stdout) or self.stderr_size > len(self.stderr)

    @property
    def stdout_cut(self) -> int | None:
        """Index in `stdout` at which bytes are missing; None if it is complete."""
        return cut_at(self.stdout, self.stdout_size)

    @property
    def stderr_cut(self) -> int | None:
        return cut_at(self.stderr, self.stderr_size)

    def describe(self) -> str:
        """Return one line for people: the state of the task and its reason."""
        verb = "was" if self.state is State.CANCELLED else "has" if self.ended else "is"
        text = f"task {self.id} ({self.name}) {verb} {self.state}"
        if self.reason and self.reason != self.state:
            text += f": {self.reason}"
        last = self.attempts[-1] if self.attempts else None
        if last is not None and not self.success:
            tail = last.message or last.stderr_tail.decode("utf-8", "replace").strip()[-300:]
            text += f" (attempt {last.number}{f': {tail}' if tail else ''})"
        return text
