"""Every command that README and the guide show is run against a real `kingtask dev`, and its output is compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kingtask.cli.dev_stack import free_ports
from tests.docs.blocks import Block, blocks, matches, promised_output, steps
from tests.docs.venv import ROOT, make
from tests.faults.cases import CASES
from tests.processes import until
from tests.servers import die_with_parent

README = ROOT / "README.md"
GUIDE = ROOT / "kingtask" / "GUIDE.md"
PATIENCE_S = 60


class DevInstallation:
    """A directory to work in, with `kingtask dev` running its `tasks`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tasks").mkdir()
        make(directory)
        port = free_ports()
        self.env = {
            **os.environ,
            "PATH": f"{directory}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "KINGTASK_BROKER": f"127.0.0.1:{port}",
            "COLUMNS": "120",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }
        command = [sys.executable, "-m", "kingtask", "dev", "--port", str(port)]
        command += ["--bin-path", "tasks", "--data", "data"]
        self.log = directory / "dev.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - as for every server that a test starts
            )
        until(self._ready, "kingtask dev is ready", PATIENCE_S)

    def _ready(self) -> bool:
        said = self.log.read_text()
        assert self.process.poll() is None, said
        return "ready: " in said

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.stdout

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)


def shown(page: Path) -> list[Block]:
    return sorted(blocks(page, "console") + blocks(page, "python"), key=lambda block: block.line)


PARTS = [part for part in sorted(GUIDE.with_name("guide").glob("*.md")) if shown(part)]


def test_the_parts_that_show_something() -> None:
    assert {part.stem for part in PARTS} == {"access", "command-line", "executables", "python"}


@pytest.mark.parametrize("page", [README, *PARTS], ids=lambda page: page.name)
def test_what_the_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    """In the page's order, since later commands build on earlier ones; before a part, what its index prepares."""
    found = [*(shown(GUIDE) if page in PARTS else []), *shown(page)]
    installation = DevInstallation(tmp_path)
    try:
        wrong = [complaint for block in found for complaint in check(block, installation)]
    finally:
        installation.close()
    assert not wrong, "\n\n".join(wrong)


def check(block: Block, installation: DevInstallation) -> Iterator[str]:
    if block.language == "python":
        (installation.directory / "block.py").write_text(block.text)
        printed = installation.run(f"{sys.executable} block.py")
        if not matches(promised_output(block), printed):
            yield f"{block}: python block promised\n{promised_output(block)}but printed\n{printed}"
        return
    for step in steps(block):
        printed = installation.run(step.command)
        if not matches(step.expected, printed):
            yield f"{block}: $ {step.command}\nshown:\n{step.expected}printed:\n{printed}"


def test_the_cases_that_show_the_guarantees_exist() -> None:
    guarantees = README.read_text("utf-8").partition("## Guarantees")[2].partition("\n## ")[0]
    named = set(re.findall(r"\bF\d+-?", guarantees))
    assert len(named) > 10
    assert named <= set(CASES)


def test_what_was_shown_of_a_deployment_names_cases_that_exist():
    shown = (ROOT / "deploy" / "README.md").read_text("utf-8").partition("## What was shown")[2].partition("\n## ")[0]
    named = set(re.findall(r"\bF\d+-?", shown))
    assert len(named) > 10
    assert named <= set(CASES)
