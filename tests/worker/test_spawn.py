"""Starting programs: what arrives in them, and each way in which the kernel refuses."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kingtask.worker.exec.executable import Shortage, Unusable
from kingtask.worker.exec.spawn import Spawned, TextBusy, input_file, spawn
from tests.processes import descriptors

HOSTILE_ARGUMENTS = [
    "a b",
    "",
    'it\'s "quoted" \\',
    "two\nlines\r\n",
    "-n",
    "--",
    "$(reboot) `x` ; & | > < * ? ~ $HOME",
    "grüße 你好 🦊",
    "\x01\x1b[31m\x7f",
    "e\u0301",
    "x" * 131_071,
]


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def python(path: Path, text: str) -> str:
    return script(path, f"#!{sys.executable}\n{text}\n")


def outcome(spawned: Spawned) -> tuple[int, bytes, bytes]:
    """Blocks until the end; for small outputs."""
    code = spawned.popen.wait()
    os.set_blocking(spawned.stdout, True)
    os.set_blocking(spawned.stderr, True)
    with os.fdopen(spawned.stdout, "rb") as stdout, os.fdopen(spawned.stderr, "rb") as stderr:
        found = code, stdout.read(), stderr.read()
    os.close(spawned.pidfd)
    return found


def test_arguments_arrive_byte_for_byte(tmp_path: Path, null: int) -> None:
    path = python(tmp_path / "show", "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])")
    arguments = HOSTILE_ARGUMENTS[:-1]
    code, stdout, stderr = outcome(spawn(path, arguments, {"LANG": "C"}, null))
    assert (code, stderr) == (0, b"")
    assert eval(stdout) == [argument.encode() for argument in arguments]


def test_the_longest_argument(tmp_path: Path, null: int) -> None:
    path = script(tmp_path / "length", '#!/bin/sh\nprintf %s "$1" | wc -c\n')
    assert outcome(spawn(path, [HOSTILE_ARGUMENTS[-1]], {"PATH": "/bin:/usr/bin"}, null))[1].strip() == b"131071"


def test_the_child_has_its_own_session_and_nothing_else_of_ours(tmp_path: Path, null: int) -> None:
    path = python(
        tmp_path / "look",
        "import os, signal\n"
        "print(os.getpid() == os.getsid(0) == os.getpgrp(), sorted(os.environ.items()))\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    )
    inheritable = os.dup(null)
    os.set_inheritable(inheritable, True)
    lines = outcome(spawn(path, [], {"A": "b", "LC_ALL": "C.UTF-8"}, null))[1].decode().splitlines()
    os.close(inheritable)
    assert lines[0] == "True [('A', 'b'), ('LC_ALL', 'C.UTF-8')]"
    assert lines[1] == "[0, 1, 2]"
    assert lines[2] == "set()"


def test_what_the_worker_passes_on_may_be_of_any_bytes(tmp_path: Path, null: int) -> None:
    path = script(tmp_path / "home", "#!/bin/sh\necho $HOME\n")
    assert outcome(spawn(path, [], {"HOME": os.fsdecode(b"/r\xff")}, null))[1] == b"/r\xff\n"


@pytest.mark.parametrize("size", [1, 65_537, 1_048_576])
def test_standard_input(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = script(tmp_path / "sum", "#!/bin/sh\nexec md5sum\n")
    stdin = input_file(data)
    code, stdout, _ = outcome(spawn(path, [], {"PATH": "/bin:/usr/bin"}, stdin))
    os.close(stdin)
    expected = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout
    assert (code, stdout) == (0, expected)


def test_the_working_directory(tmp_path: Path, null: int) -> None:
    path = script(tmp_path / "where", "#!/bin/sh\npwd -P\n")
    assert outcome(spawn(path, [], {}, null, "/"))[1] == b"/\n"
    assert outcome(spawn(path, [], {}, null, str(tmp_path)))[1].decode() == f"{tmp_path}\n"
    with pytest.raises(Shortage, match="work_dir /nowhere: No such file"):  # not: a missing executable
        spawn(path, [], {}, null, "/nowhere")


def unusable(path: str, null: int, arguments: list[str] | None = None) -> Unusable:
    with pytest.raises(Unusable) as caught:
        spawn(path, arguments or [], {}, null)
    return caught.value


def test_every_refusal_of_the_kernel_has_its_reason(tmp_path: Path, null: int) -> None:
    before = descriptors()
    cases = [
        (script(tmp_path / "empty", ""), "exec", "#!/bin/sh"),
        (script(tmp_path / "plain", "echo hi\n"), "exec", "#!/bin/sh"),
        (
            script(tmp_path / "interpreter", "#!/no/such/thing\n"),
            "exec",
            "interpreter does not exist: '#!/no/such/thing'",
        ),
        (script(tmp_path / "crlf", "#!/bin/sh\r\necho hi\r\n"), "exec", "CR LF"),
        (script(tmp_path / "mode", "#!/bin/sh\n", 0o644), "not_executable", "Permission denied"),
        (script(tmp_path / "script", f"#!{tmp_path}/plain-interpreter\n"), "exec", "plain-interpreter"),
        (str(tmp_path), "not_executable", "Permission denied"),
        (str(tmp_path / "gone"), "missing", "it is gone"),
        (script(tmp_path / "elf", "\x7fELF" + "x" * 60), "exec", "format"),
    ]
    for path, reason, words in cases:
        error = unusable(path, null)
        assert (error.reason, words in str(error)) == (reason, True), (path, str(error))
    fine = script(tmp_path / "fine", "#!/bin/sh\n")
    assert unusable(fine, null, ["x" * 131_072]).reason == "exec"
    assert "too long" in str(unusable(fine, null, ["x" * 131_072]))
    assert unusable(fine, null, ["a\0b"]).reason == "exec"
    assert descriptors() == before


def test_a_file_that_is_being_written(tmp_path: Path, null: int) -> None:
    path = Path(script(tmp_path / "busy", "#!/bin/sh\n"))
    with path.open("ab"), pytest.raises(TextBusy):
        spawn(str(path), [], {}, null)
    assert outcome(spawn(str(path), [], {}, null))[0] == 0


def take_all(null: int) -> list[int]:
    taken = []
    with contextlib.suppress(OSError):  # EMFILE, in the end
        while True:
            taken.append(os.dup(null))
    return taken


@pytest.mark.parametrize("spare", range(6))
def test_a_host_short_of_descriptors_is_no_fault_of_the_task(tmp_path: Path, null: int, spare: int) -> None:
    path = script(tmp_path / "fine", "#!/bin/sh\n")
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[-1] + 32, hard))
    taken = take_all(null)
    try:
        for fd in taken[:spare]:
            os.close(fd)
        with pytest.raises(Shortage):
            spawn(path, [], {}, null)
    finally:
        for fd in taken[spare:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before
