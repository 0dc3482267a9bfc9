"""The example executables, as they are installed for `dev` and `demo`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kingtask.cli.examples import install


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return install(tmp_path_factory.mktemp("examples"))


def run(path, *args, **env):
    command = [str(path), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **env})


def test_all_are_executable_and_at_least_three_languages(examples):
    files = list(examples.iterdir())
    assert all(os.access(file, os.X_OK) for file in files)
    interpreters = {file.read_text().splitlines()[0].split("/")[-1].split()[0] for file in files}
    assert len(interpreters) >= 3
    assert any("python" in interpreter for interpreter in interpreters)
    assert "sh" in interpreters


def test_python_ones_run_with_the_python_that_runs_kingtask(examples):
    assert (examples / "slow").read_text().startswith(f"#!{sys.executable}\n")


def test_installing_again_replaces(examples):
    (examples / "example").write_text("changed")
    (examples / "example").chmod(0o600)
    install(examples)
    assert run(examples / "example", "1", "2").stdout == "3\n"


@pytest.mark.parametrize(
    ("args", "total"),
    [(("12", "45"), 57), (("12", "-45"), -33), (("+1", "007"), 8), (("08", "-09"), -1), (("-0", "0"), 0)],
)
def test_the_original_example_adds(examples, args, total):
    done = run(examples / "example", *args)
    assert (done.stdout, done.stderr, done.returncode) == (f"{total}\n", "", 0)


@pytest.mark.parametrize(
    "args", [(), ("1",), ("1", "2", "3"), ("1", "x"), ("", "1"), ("1.5", "1"), ("-n", "1"), ("$(id)", "1")]
)
def test_the_original_example_complains_on_stderr_with_exit_status_0(examples, args):
    done = run(examples / "example", *args)
    assert (done.stdout, done.returncode) == ("", 0)
    assert done.stderr.count("\n") == 1


def test_flaky_fails_twice(examples):
    outcomes = [run(examples / "flaky", KINGTASK_ATTEMPT=str(n)) for n in (1, 2, 3)]
    assert [done.returncode for done in outcomes] == [1, 1, 0]
    assert outcomes[0].stderr
    assert not outcomes[2].stderr


def test_clock_prints_nanoseconds(examples):
    assert len(run(examples / "clock").stdout.strip()) == 19
