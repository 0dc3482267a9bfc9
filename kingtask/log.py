"""The daemons' log: one line per event, `key=value` pairs or JSON, to stderr and, if wished, to a file.

    time=2026-03-01T12:00:00.123Z level=warning program=broker from=kingtask.store redis=unreachable address=…
    {"time":"2026-03-01T12:00:00.123Z","level":"warning","program":"broker","from":"kingtask.store",
     "event":"redis=unreachable","address":"…"}

Modules log through `logging.getLogger("kingtask.…")` and write their pairs as the message, the event first and words
for people behind a colon at the end; `event` makes fields of it. Whatever a message holds (a peer's bytes, a traceback)
stays on its line: control characters are escaped. The file may be moved or removed while it is written (logrotate); a
disk that is full costs lines, never the daemon.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from kingtask.errors import ConfigurationError

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
"""What ends a line or talks to a terminal."""


Format = Literal["text", "json"]

lines: dict[str, int] = dict.fromkeys(("debug", "info", "warning", "error", "critical"), 0)
"""How many were logged since the start, by level."""


class LineFormatter(logging.Formatter):
    """One record as one line of pairs."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += f' traceback="{self.formatException(record.exc_info)}"'
        level = record.levelname.lower()
        text = f"time={_time(record)} level={level} program={self._program} from={record.name} {text}"
        return text.translate(_ESCAPES)


class JsonFormatter(logging.Formatter):
    """One record as one JSON object; in ASCII, so that nothing in it ends the line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "program": self._program,
            "from": record.name,
        }
        for name, value in event(str(record.msg), record.args).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, separators=(",", ":"), default=str)


class _Shape(NamedTuple):
    """What the text of an event is made of: names and formats of its fields, and the words at its end."""

    event: str
    fields: tuple[tuple[str, str], ...]
    words: str


_PAIR = re.compile(r"\s*([a-z_]+|%s)=((?:%[-#0-9.]*[a-z]|[^\s:%])+)")
_CONVERSION = re.compile(r"%[-#0-9.]*[a-z]")


@lru_cache(maxsize=256)
def _shape(message: str) -> _Shape | None:
    pairs = []
    at = 0
    while match := _PAIR.match(message, at):
        pairs.append((match[1], match[2]))
        at = match.end()
    rest = message[at:]
    if not pairs or (rest and not rest.startswith(": ")):
        return None
    (name, value), *others = pairs
    return _Shape(f"{name}={value}", tuple(others), rest.removeprefix(": "))


def event(message: str, args: Any) -> dict[str, Any]:
    """The fields of an event: numbers stay numbers. What does not read as one is a `message`, whole."""
    shape = _shape(message)
    left = list(args) if isinstance(args, tuple) else []
    if shape is None or (args and not left):
        return {"message": message % args if args else message}
    found: dict[str, Any] = {"event": _filled(shape.event, left)}
    for name, value in shape.fields:
        found[name] = _filled(value, left)
    if shape.words:
        found["message"] = _filled(shape.words, left)
    return found


def _filled(text: str, left: list[Any]) -> Any:
    """`text` with what it takes of `left`; a value alone stays what it is."""
    taken = [left.pop(0) for _ in _CONVERSION.findall(text)]
    if len(taken) == 1 and _CONVERSION.fullmatch(text):
        value = taken[0]
        return value if isinstance(value, str | int | float) else text % value
    return text % tuple(taken)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return f"{at.removesuffix('+00:00')}Z"


class _ToStderr(logging.StreamHandler[TextIO]):
    """Counts what is logged. To the journal it says how bad each line is (sd-daemon(3))."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._journal = _is_journal(self.stream)

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        lines[level] = lines.get(level, 0) + 1
        text = super().format(record)
        return f"<{_PRIORITIES.get(level, 5)}>{text}" if self._journal else text


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3)."""


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd connected this stream to the journal: it says which one (systemd.exec(5))."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


class LogFile(logging.handlers.WatchedFileHandler):
    """A file that is opened anew when it was moved away. That it cannot be written is said once, on stderr."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._failed = False
        self._reported = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        try:
            super().emit(record)
        except OSError:  # from opening it anew, e.g. when the directory is gone
            self.handleError(record)
        if not self._failed:
            self._reported = False

    def reopen(self) -> None:
        """Open it anew: for whoever moved it away and says so, instead of waiting for the next line."""
        try:
            self.reopenIfNeeded()
        except OSError:
            self.handleError(logging.makeLogRecord({}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        self._failed = True
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            logging.getLogger("kingtask.log").error("log=unwritable path=%s error=%r", self.baseFilename, str(error))


_installed: list[logging.Handler] = []
_format: Format = "text"


def setup(
    program: str,
    level: str = "info",
    log_path: str | None = None,
    *,
    log_format: Format | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send all logging to stderr (or `stream`), and to `<log_path>/<program>.log` if a directory is given.

    `level` (debug, info, warning, error) is kingtask's own; libraries are heard from `warning` on. Calling it again
    replaces what was set up before, but for a format that is not given. Raises ConfigurationError if the file cannot be
    written.
    """
    global _format
    handlers: list[logging.Handler] = [_ToStderr(stream)]
    if log_path is not None:
        handlers.append(_open(Path(log_path), program))
    _format = log_format or _format
    root = logging.getLogger()
    while _installed:
        handler = _installed.pop()
        root.removeHandler(handler)
        handler.close()
    number = logging.getLevelNamesMapping()[level.upper()]
    for handler in handlers:
        handler.setFormatter(JsonFormatter(program) if _format == "json" else LineFormatter(program))
        root.addHandler(handler)
        _installed.append(handler)
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("kingtask").setLevel(number)
    logging.captureWarnings(True)


def reopen() -> None:
    """Open the file anew if it was moved away; without it the next line does. Raises nothing."""
    for handler in _installed:
        if isinstance(handler, LogFile):
            handler.reopen()


def _open(directory: Path, program: str) -> LogFile:
    if not directory.is_dir():
        raise ConfigurationError(f"log_path: expected a directory, but {directory} is none; create it or leave it out")
    path = directory / f"{program}.log"
    try:
        return LogFile(path)
    except OSError as error:
        raise ConfigurationError(f"log_path: cannot write {path}: {error.strerror}") from None
