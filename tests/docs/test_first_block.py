"""README's first steps, exactly as written: one terminal, then another, in a directory that has only `.venv`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docs.blocks import Block, matches, steps
from tests.docs.venv import ROOT, make
from tests.processes import until
from tests.servers import die_with_parent

README = ROOT / "README.md"
PATIENCE_S = 60
PORT = 9595
"""The default, since the page names no other."""


def terminals() -> tuple[Block, Block]:
    """What to type into the first terminal, up to `kingtask dev`, and into the second, up to the first result."""
    part = README.read_text("utf-8").partition("## Ten things people do\n")[2].partition("\n**2.")[0]
    texts = re.findall(r"^```console\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    number = next(number for number, text in enumerate(texts, 1) if "kingtask dev" in text)
    first, second = "".join(texts[:number]), "".join(texts[number:])
    return Block(README, 0, "console", first), Block(README, 0, "console", second)


def in_use() -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", PORT))
        return Path("/run/kingtask/broker.sock").exists()
    return True


@pytest.mark.skipif(in_use(), reason="another broker runs on the default address")
def test_the_first_block_of_readme_works_in_a_fresh_directory(tmp_path: Path) -> None:
    make(tmp_path)
    first, second = terminals()
    environment = {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    log = tmp_path / "dev.log"
    with log.open("wb") as output:
        terminal = subprocess.Popen(
            ["bash", "-ec", "\n".join(step.command for step in steps(first))],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - as for every server that a test starts
        )
    try:
        until(lambda: "ready: " in log.read_text() or terminal.poll() is not None, log.read_text, PATIENCE_S)
        assert log.read_text().startswith("ready: "), log.read_text()
        typed = steps(second)
        done = subprocess.run(
            ["bash", "-ec", "\n".join(step.command for step in typed)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert matches("".join(step.expected for step in typed), done.stderr + done.stdout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(terminal.pid, signal.SIGINT)
        assert terminal.wait(PATIENCE_S) == 0, log.read_text()
