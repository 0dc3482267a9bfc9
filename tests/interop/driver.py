"""A client in another language, as a process that does what it is told.

A command is a line with the hex of a msgpack map `{"do": …}`, the answer likewise: `{"ok": value}`, or `{"error": …,
"kind": …}` with kind `refused` (error is the broker's map), `no_answer`, `pending` or `usage` (a wrong argument).
Msgpack, which every client has.
"""

from __future__ import annotations

import select
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from tests.servers import die_with_parent

ANSWER_S = 50.0
"""Less than the minute that a client asks for in one `wait`: one that finds out only when it asks again is too late."""


class Told(Exception):
    """The client raised one of its errors."""

    def __init__(self, kind: str, error: Any) -> None:
        super().__init__(kind, error)
        self.kind = kind
        self.error = error

    @property
    def code(self) -> str | None:
        return self.error["code"] if self.kind == "refused" else None


class DriverProcess:
    def __init__(self, command: Sequence[str], place: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the driver)
        self.process = subprocess.Popen(
            command,
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self._errors.close()

    def tell(self, do: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgpack.packb({"do": do, **fields}).hex().encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, within_s: float = ANSWER_S) -> Any:
        """Raises Told if the client did; fails if there is no answer in time."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], within_s)[0], f"no answer within {within_s:g} s"
        line = self.process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"the driver ended: {self._errors.read().decode(errors='replace')[-4000:]}")
        answer = msgpack.unpackb(bytes.fromhex(line.decode()))
        if "kind" in answer:
            raise Told(answer["kind"], answer["error"])
        return answer["ok"]

    def ask(self, do: str, **fields: Any) -> Any:
        self.tell(do, **fields)
        return self.answer()
