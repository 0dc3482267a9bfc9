"""The daemons' log: one line per event, as `key=value` pairs or JSON, to stderr and optionally to a file.

    time=2026-03-01T12:00:00.123Z level=warning program=broker from=kingtask.store redis=unreachable address=…
    {"time":"2026-03-01T12:00:00.123Z","level":"warning","program":"broker","from":"kingtask.store",
     "event":"redis=unreachable","address":"…"}

Modules log an `Event` through `logging.getLogger("kingtask.…")`. Every record stays on its line, whatever it holds (a
peer's bytes, a traceback): control characters are escaped. The file may be moved or removed at any time (logrotate). A
full disk costs lines, never the daemon.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from kingtask.errors import ConfigurationError
from kingtask.event import Event

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Characters that end a line or control a terminal."""


Format = Literal["text", "json"]

lines: dict[str, int] = dict.fromkeys(("debug", "info", "warning", "error", "critical"), 0)
"""Number of lines since the start, by level."""


class LineFormatter(logging.Formatter):
    """Formats a record as one line of pairs."""

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


class JsonFormatter(LineFormatter):
    """Formats a record as one JSON object, in ASCII, so that no character ends the line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "program": self._program,
            "from": record.name,
        }
        if isinstance(record.msg, Event):
            said = {"event": record.msg.name, **record.msg.fields}
            if record.msg.words:
                said["message"] = record.msg.words
        else:  # from a library
            said = {"message": record.getMessage()}
        for name, value in said.items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, separators=(",", ":"), default=str)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return f"{at.removesuffix('+00:00')}Z"


class _ToStderr(logging.StreamHandler[TextIO]):
    """Counts lines. For the journal it prefixes each with its priority (sd-daemon(3))."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._journal = _is_journal(self.stream)

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        lines[level] = lines.get(level, 0) + 1
        text = super().format(record)
        return f"<{_PRIORITIES.get(level, 5)}>{text}" if self._journal else text


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Priorities of syslog(3)."""


def _is_journal(stream: TextIO) -> bool:
    """True if systemd connected this stream to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


class LogFile(logging.handlers.WatchedFileHandler):
    """A log file that is reopened after it was moved. A write failure is reported once, on stderr."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._reported = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # from reopening, e.g. if the directory is gone
            self.handleError(record)

    def flush(self) -> None:
        """Write a line out; raises OSError, for `handleError`."""
        super().flush()
        self._reported = False

    def reopen(self) -> None:
        """Reopen the file now, not at the next line."""
        try:
            self.reopenIfNeeded()
        except OSError:
            self.handleError(logging.makeLogRecord({}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            logging.getLogger("kingtask.log").error(Event("log=unwritable", path=self.baseFilename, error=str(error)))


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

    `level` (debug, info, warning, error) applies to kingtask; libraries log from `warning` on. A further call replaces
    the setup, and keeps the format if none is given. Raises ConfigurationError if the file cannot be written.
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
    """Reopen the file if it was moved; otherwise the next line does. Raises nothing."""
    for handler in _installed:
        if isinstance(handler, LogFile):
            handler.reopen()


def _open(directory: Path, program: str) -> LogFile:
    if not directory.is_dir():
        raise ConfigurationError(
            f"log_path: expected a directory, but {directory} is not one; create it or remove log_path"
        )
    path = directory / f"{program}.log"
    try:
        return LogFile(path)
    except OSError as error:
        raise ConfigurationError(f"log_path: cannot write {path}: {error.strerror}") from None
