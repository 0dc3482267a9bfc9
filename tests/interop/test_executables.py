"""The same task written in several languages: whatever the executable is, the record is the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kingtask import TaskFailed
from tests.integration.rig import StackHarness
from tests.interop.languages import HERE, require, run
from tests.processes import PATIENCE_S

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

ARGS = ("", " ", "-n", "a b", "ü ☃ \U0001f600", "line\nend", "\"'\\$(x)`*")
STDIN = bytes(range(256)) * 4_096
EXPECTED = "".join(f"<{arg}>\n" for arg in ARGS) + f"{len(STDIN)}\nwörd\n"


class Written(NamedTuple):
    source: str
    needs: str
    compiler: tuple[str, ...] = ()
    """Gets the source and the path of the executable; none: the source is the executable."""


LANGUAGES = {
    "sh": Written("task.sh", "sh"),
    "python": Written("task.py", "python3"),
    "perl": Written("task.pl", "perl"),
    "node": Written("task.js", "node"),
    "c": Written("task.c", "cc", ("cc", "-Wall", "-Werror", "{source}", "-o", "{path}")),
    "go": Written("task.go", "go", ("go", "build", "-o", "{path}", "{source}")),
    "rust": Written("task.rs", "rustc", ("rustc", "{source}", "-o", "{path}")),
    "java": Written("Task.java", "javac", ("javac", "-d", "{path}.classes", "{source}")),
}
JAVA = """#!/bin/sh
exec java -Dsun.jnu.encoding=UTF-8 -cp "$0.classes" Task "$@"
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as rig:
        rig.start_broker()
        rig.start_worker()
        yield rig


@pytest.fixture(params=LANGUAGES)
def name(request: pytest.FixtureRequest, rig: StackHarness) -> str:
    """The task in one language, put where the worker finds it."""
    written = LANGUAGES[request.param]
    require("" if shutil.which(written.needs) else f"{request.param}: no {written.needs}")
    source, path = HERE / "executables" / written.source, rig.bin_path / request.param
    if request.param == "java":
        rig.executable("java", JAVA)
    if written.compiler:
        run(tuple(part.format(source=source, path=path) for part in written.compiler), rig.directory)
    else:
        shutil.copy(source, path)
    return str(request.param)


def test_arguments_stdin_and_environment_arrive_and_the_output_is_kept(name: str, rig: StackHarness):
    result = rig.client().submit(name, ARGS, stdin=STDIN, env={"TASK_WORD": "wörd"}).wait(PATIENCE_S)
    assert (result.state, result.reason, result.stderr) == ("succeeded", "", b"")
    assert result.stdout == EXPECTED.encode()


def test_its_exit_status_decides(name: str, rig: StackHarness):
    client = rig.client()
    with pytest.raises(TaskFailed) as caught:
        client.submit(name, env={"TASK_WORD": "", "TASK_STATUS": "3"}).result(PATIENCE_S)
    assert (caught.value.result.reason, caught.value.result.exit_code) == ("exit", 3)
    assert caught.value.result.stdout == b"0\n\n"
    task = client.submit(name, env={"TASK_WORD": "", "TASK_STATUS": "100"}, retry=[0.01])
    result = task.wait(PATIENCE_S)
    assert (result.reason, result.exit_code, result.attempt) == ("no_retry", 100, 1)
