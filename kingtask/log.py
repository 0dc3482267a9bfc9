"""The daemons' log: one line per event, `key=value` pairs, to stderr and, if wished, to a file.

    time=2026-03-01T12:00:00.123Z level=warning program=broker from=kingtask.store redis=away address=…

Modules log through `logging.getLogger("kingtask.…")` and write their pairs as the message. Whatever a message holds
(a peer's bytes, a traceback) stays on its line: control characters are escaped. The file may be moved or removed
while it is written (logrotate); a disk that is full costs lines, never the daemon.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from kingtask.errors import ConfigurationError

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
"""What ends a line or talks to a terminal."""


class LineFormatter(logging.Formatter):
    """One record as one line."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        text = record.getMessage()
        if record.exc_info:
            text += f' traceback="{self.formatException(record.exc_info)}"'
        level = record.levelname.lower()
        text = f"time={at}Z level={level} program={self._program} from={record.name} {text}"
        return text.translate(_ESCAPES)


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

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        self._failed = True
        if not self._reported:
            self._reported = True
            error = sys.exc_info()[1]
            logging.getLogger("kingtask.log").error("log=unwritable path=%s error=%r", self.baseFilename, str(error))


_installed: list[logging.Handler] = []


def setup(program: str, level: str = "info", log_path: str | None = None, *, stream: TextIO | None = None) -> None:
    """Send all logging to stderr (or `stream`), and to `<log_path>/<program>.log` if a directory is given.

    `level` (debug, info, warning, error) is kingtask's own; libraries are heard from `warning` on. Calling it again
    replaces what was set up before. Raises ConfigurationError if the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    if log_path is not None:
        handlers.append(_open(Path(log_path), program))
    root = logging.getLogger()
    while _installed:
        handler = _installed.pop()
        root.removeHandler(handler)
        handler.close()
    number = logging.getLevelNamesMapping()[level.upper()]
    for handler in handlers:
        handler.setFormatter(LineFormatter(program))
        root.addHandler(handler)
        _installed.append(handler)
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("kingtask").setLevel(number)
    logging.captureWarnings(True)


def _open(directory: Path, program: str) -> LogFile:
    if not directory.is_dir():
        raise ConfigurationError(f"log_path: expected a directory, but {directory} is none; create it or leave it out")
    path = directory / f"{program}.log"
    try:
        return LogFile(path)
    except OSError as error:
        raise ConfigurationError(f"log_path: cannot write {path}: {error.strerror}") from None
