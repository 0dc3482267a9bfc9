"""A task's variables do not run code of its client: neither through a program that trusts them nor through HOME."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq

from kingtask import protocol
from kingtask.errors import InvalidRequest
from kingtask.result import Result
from tests.integration.rig import StackHarness
from tests.processes import PATIENCE_S

MODULE = """
#include <stdlib.h>
__attribute__((constructor)) static void run(void) { system(getenv("TASK_RUNS")); }
"""
"""A shared library that the client has brought onto the host."""


@pytest.fixture
def rig() -> Iterator[StackHarness]:
    with StackHarness() as running:
        running.start_broker()
        yield running


@pytest.fixture
def mark(rig: StackHarness) -> Path:
    """The file that exists if the client's code has run."""
    return rig.directory / "mark"


def _tar(rig: StackHarness, mark: Path) -> dict[str, str]:
    rig.executable("ordinary", "#!/bin/sh\nexec tar -cf - /etc/hostname 2>/dev/null | wc -c\n")
    return {"TAR_OPTIONS": f"--checkpoint=1 '--checkpoint-action=exec=touch {mark}'"}


def _make(rig: StackHarness, mark: Path) -> dict[str, str]:
    (rig.directory / "Makefile").write_text("all:\n\t@echo made\n")
    rig.executable("ordinary", f"#!/bin/sh\nexec make -C {rig.directory}\n")
    return {"MAKEFLAGS": f"--eval=$(file >{mark})"}  # $(shell …) would need SHELL in the environment


def _repository(rig: StackHarness) -> None:
    subprocess.run(["git", "init", "-q", str(rig.directory / "repository")], check=True)
    rig.executable("ordinary", f"#!/bin/sh\nexec git -C {rig.directory}/repository status\n")


def _git(rig: StackHarness, mark: Path) -> dict[str, str]:
    _repository(rig)
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": f"touch {mark}"}


def _home(rig: StackHarness, mark: Path) -> dict[str, str]:
    _repository(rig)
    (rig.directory / ".gitconfig").write_text(f"[core]\n\tfsmonitor = touch {mark}\n")
    return {"HOME": str(rig.directory)}


def _openssl(rig: StackHarness, mark: Path) -> dict[str, str]:
    source, library = rig.directory / "module.c", rig.directory / "module.so"
    source.write_text(MODULE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    configuration = rig.directory / "openssl.cnf"
    configuration.write_text(
        f"openssl_conf = a\n[a]\nproviders = b\n[b]\nmine = c\n[c]\nmodule = {library}\nactivate = 1\n"
    )
    rig.executable("ordinary", "#!/bin/sh\nexec openssl rand -hex 4\n")
    return {"OPENSSL_CONF": str(configuration), "TASK_RUNS": f"touch {mark}"}


Attack = Callable[[StackHarness, Path], dict[str, str]]
ATTACKS: dict[str, tuple[str, Attack]] = {
    "TAR_OPTIONS": ("tar", _tar),
    "MAKEFLAGS": ("make", _make),
    "GIT_CONFIG_COUNT": ("git", _git),
    "OPENSSL_CONF": ("openssl", _openssl),
}
"""By variable: the program that trusts it, and the variables of a task that uses this."""


def attack(rig: StackHarness, mark: Path, name: str) -> dict[str, str]:
    program, prepare = ATTACKS[name]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} on this host")
    return prepare(rig, mark)


def run(rig: StackHarness, env: dict[str, str]) -> Result:
    return rig.client().submit("ordinary", env=env, stderr="keep", retry=[0.01]).wait(PATIENCE_S)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_task_with_a_variable_outside_task_env_is_not_started(rig: StackHarness, mark: Path, name: str):
    env = attack(rig, mark, name)
    worker = rig.start_worker()
    result = run(rig, env)
    assert not mark.exists()
    assert (result.state, result.reason, result.attempt, result.stdout_size) == ("failed", "env", 1, 0)
    (message,) = [each.message for each in result.attempts]
    assert message == f"the task sets the variable {name}, which task_env in {worker.path} does not allow"


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_succeeds_where_the_operator_allows_every_name(rig: StackHarness, mark: Path, name: str):
    """So the test above fails without `task_env`."""
    env = attack(rig, mark, name)
    rig.start_worker(task_env="*")
    run(rig, env)
    assert mark.exists()


def test_nobody_sets_home_whatever_the_worker_allows(rig: StackHarness, mark: Path):
    env = _home(rig, mark)
    rig.start_worker(task_env="*")
    with pytest.raises(InvalidRequest, match=r"env\['HOME'\]: this name may not be set by a client"):
        run(rig, env)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:  # a client without checks of its own
        socket.linger, socket.rcvtimeo = 0, int(PATIENCE_S * 1000)
        socket.connect(rig.daemons[0].endpoint)
        socket.send(protocol.encode_request(1, "submit", {"task": {"name": "ordinary", "env": env}}))
        reply: dict[str, Any] = protocol.decode_reply(socket.recv())
    assert (reply["error"]["code"], reply["error"]["field"]) == ("invalid_request", "task.env['HOME']")
    assert not mark.exists()


def test_a_name_added_to_task_env_is_allowed_after_a_reload(rig: StackHarness):
    rig.executable("ordinary", '#!/bin/sh\necho "$COLOUR $TASK_COLOUR"\n')
    worker = rig.start_worker()
    client = rig.client()
    refused = run(rig, {"TASK_COLOUR": "blue", "COLOUR": "red"})
    assert refused.reason == "env"
    worker.path.write_text(yaml.safe_dump({**worker.config, "task_env": ["TASK_*", "COL*R"]}))
    worker.signal(signal.SIGHUP)
    worker.until_logged("reload=done changed=task_env")
    assert client.requeue(refused.id).result(PATIENCE_S) == "red blue\n"


def test_without_patterns_no_task_sets_a_variable(rig: StackHarness):
    rig.executable("ordinary", "#!/bin/sh\necho ran\n")
    rig.start_worker(task_env=[])
    assert run(rig, {"TASK_A": ""}).reason == "env"
    assert run(rig, {}).success
