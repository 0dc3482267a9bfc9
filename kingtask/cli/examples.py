"""The example executables that come with the package."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

ANY_PYTHON = b"#!/usr/bin/env python3\n"
LONGEST_INTERPRETER = 120
"""Kernels before 5.1 read 127 bytes of the first line (execve(2))."""


def install(directory: Path) -> Path:
    """Copy the examples into a directory and make them executable; return the directory.

    They cannot run inside the package: an installer may drop the x bit or keep the package in an archive, and python3
    may not be on the path of a virtual environment's user.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for source in (files("kingtask") / "examples").iterdir():
        if source.is_file():
            target = directory / source.name
            target.unlink(missing_ok=True)
            target.write_bytes(_with_our_python(source.read_bytes()))
            target.chmod(0o755)
    return directory


def _with_our_python(text: bytes) -> bytes:
    interpreter = sys.executable.encode()
    if not text.startswith(ANY_PYTHON) or b" " in interpreter or not 0 < len(interpreter) <= LONGEST_INTERPRETER:
        return text
    return b"#!" + interpreter + b"\n" + text.removeprefix(ANY_PYTHON)
