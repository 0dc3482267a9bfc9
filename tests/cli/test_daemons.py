"""The entry points of the two daemons: how they find their configuration and what they say about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kingtask import __version__
from kingtask.cli.daemons import with_two_dashes

SPELLINGS = [["-c", "{}"], ["-c{}"], ["--config", "{}"], ["--config={}"], ["-config={}"], ["-config", "{}"]]


def run(daemon: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kingtask.cli.daemons", daemon, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_configuration_is_read(tmp_path, spelling):
    path = tmp_path / "broker.yaml"
    path.write_text("addr: 127.0.0.1:9595\n")
    done = run("broker", *(word.format(path) for word in spelling), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout


def test_only_the_original_spelling_is_changed():
    words = ["-config", "-config=a", "--config=b", "-c", "onfig", "-configuration"]
    assert with_two_dashes(words) == ["--config", "--config=a", "--config=b", "-c", "onfig", "-configuration"]


def test_check_finds_what_is_wrong(tmp_path):
    path = tmp_path / "worker.yaml"
    path.write_text(f"bin_path: {tmp_path}\nperoid: 1\n")
    done = run("worker", "-c", str(path), "--check")
    assert done.returncode == 3
    assert f"{path}:2" in done.stderr
    assert "period" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_warns_of_a_path_that_others_may_change(tmp_path):
    path = tmp_path / "worker.yaml"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "bin").symlink_to("/usr/bin")
    path.write_text(f"bin_path: {tmp_path}/open/bin\n")
    done = run("worker", "-c", str(path), "--check")
    assert (done.returncode, done.stdout) == (0, f"{path}: ok\n")
    assert done.stderr == (
        f"warning: {path}: bin_path[0]: every user may write to {tmp_path}/open, and so change what"
        f" {tmp_path}/open/bin means; chmod o-w {tmp_path}/open\n"
    )


@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_version_and_usage(daemon, tmp_path):
    assert run(daemon, "--version").stdout == f"kingtask-{daemon} {__version__}\n"
    assert run(daemon, "broker.yaml").returncode == 2
    missing = run(daemon, "-config=/no/such/file")
    assert missing.returncode == 3
    assert "/no/such/file" in missing.stderr


@pytest.mark.skipif(Path("/etc/kingtask").exists(), reason="an installation has its files there")
@pytest.mark.parametrize("daemon", ["broker", "worker"])
def test_without_a_file_it_is_the_hosts(daemon: str):
    missing = run(daemon)
    assert (missing.returncode, missing.stdout) == (3, "")
    assert f"/etc/kingtask/{daemon}.yaml: cannot be read" in missing.stderr
