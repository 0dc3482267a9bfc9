"""The client for sh does what those in other languages do, as far as a shell can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kingtask import Client
from kingtask.errors import TaskNotFound
from tests.integration.keyed import Keyed
from tests.integration.rig import StackHarness
from tests.interop.languages import HERE
from tests.interop.programs import PROGRAMS, RAW, STRANGE
from tests.processes import PATIENCE_S, until
from tests.servers import free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

Keys = dict[str, str]
"""The variables that name the files."""


@pytest.fixture(scope="module")
def rig() -> Iterator[StackHarness]:
    with StackHarness() as rig:
        for name, text in PROGRAMS.items():
            rig.executable(name, text)
        rig.start_broker()
        rig.start_worker()
        yield rig


def start(brokers: list[str], script: str, *arguments: str, keys: Keys | None = None) -> subprocess.Popen[bytes]:
    """A script that has the functions."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["sh", "-eu", "-c", f". ./kingtask.sh\n{script}", "sh", *arguments],
        cwd=HERE / "sh",
        env={**os.environ, "PATH": path, "KINGTASK_BROKER": ",".join(brokers), **(keys or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def sh(rig: StackHarness, script: str, *arguments: str, read: bytes = b"", keys: Keys | None = None) -> bytes:
    process = start([rig.daemons[0].config["addr"]], script, *arguments, keys=keys)
    output, errors = process.communicate(read, timeout=4 * PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    return output


def test_arguments_arrive_byte_for_byte(rig: StackHarness):
    output = sh(rig, 'id=$(kt_id); kt_submit "$id" arguments "$@" >/dev/null; kt_wait "$id" 30', *STRANGE)
    assert output == b"".join(arg.encode() + b"\0" for arg in STRANGE)


def test_a_mebibyte_that_is_no_text_goes_in_and_comes_out(rig: StackHarness):
    (rig.directory / "raw").write_bytes(RAW)
    script = 'id=$(kt_id); kt_submit "$id" --stdin "$1" copy >/dev/null; kt_wait "$id" 30'
    assert sh(rig, script, str(rig.directory / "raw")) == RAW


def test_retries_and_failures(rig: StackHarness):
    script = """
    id=$(kt_id); kt_submit "$id" --retry 0.01,0.02 third >/dev/null; kt_wait "$id" 30; kt_get "$id"
    id=$(kt_id); kt_submit "$id" third >/dev/null; kt_wait "$id" 30 || echo "$KT_ERROR"
    """
    record, error = sh(rig, script).splitlines()
    assert [attempt["exit_code"] for attempt in json.loads(record)["attempts"]] == [7, 7, 0]
    assert error == b"task_failed"


def test_errors_have_names(rig: StackHarness):
    script = """
    id=$(kt_id)
    kt_submit "$id" ../x || echo "$KT_ERROR"
    kt_get "$id" || echo "$KT_ERROR"
    kt_submit "$id" --delay 1h copy >/dev/null
    kt_submit "$id" --delay 1h copy >/dev/null && echo "same: $KT_ERROR"
    kt_submit "$id" copy || echo "$KT_ERROR"
    kt_wait "$id" 0.1 || echo "$KT_ERROR"
    kt_cancel "$id" >/dev/null
    kt_wait "$id" 30 || echo "$KT_ERROR"
    kt_ping >/dev/null && echo "ping: $KT_ERROR"
    """
    expected = ["usage", "not_found", "same: ", "refused", "pending", "task_failed", "ping: "]
    assert sh(rig, script).decode().splitlines() == expected


def test_the_example_prints_what_it_says(rig: StackHarness):
    assert sh(rig, "exec ./example.sh") == b"57\n"


def test_a_thousand_lines(rig: StackHarness):
    tasks = [{"id": str(uuid.uuid4()), "name": "copy", "delay_s": 3600} for _ in range(1_000)]
    tasks[500]["name"] = "../copy"
    lines = sh(rig, 'kt_submit_lines || echo "$KT_ERROR"', read="\n".join(map(json.dumps, tasks)).encode()).splitlines()
    assert lines.pop() == b"refused"
    outcomes = [json.loads(line)["outcome"] for line in lines]
    assert [number for number, outcome in enumerate(outcomes) if outcome != "created"] == [500]
    assert json.loads(lines[500])["error"]["code"] == "invalid_request"


def test_nobody_answers():
    process = start(
        [f"127.0.0.1:{free_port()}"], 'KT_TRIES=2; kt_submit "$(kt_id)" --timeout 0.2 copy || echo "$KT_ERROR"'
    )
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output, errors.count(b"no answer")) == (b"no_answer\n", 2)


def test_the_next_broker_takes_over_a_wait(rig: StackHarness):
    dies, stays = rig.start_broker(), rig.daemons[0]
    gate = rig.directory / str(uuid.uuid4())
    os.mkfifo(gate)
    task_id = str(uuid.uuid4())
    brokers = [dies.config["addr"], stays.config["addr"]]
    process = start(brokers, 'kt_submit "$1" gate "$2"; kt_wait "$1" 3000', task_id, str(gate))
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == task_id
    with Client(stays.endpoint) as client:
        until(lambda: client.get(task_id).state == "running", "the task runs")
    dies.kill()
    gate.write_text("open\n")
    output, errors = process.communicate(timeout=4 * PATIENCE_S)
    assert (process.returncode, output) == (0, b"through\n"), errors.decode()


def keys_of(rig: Keyed, name: str) -> Keys:
    files = rig.keys_of(name)
    return {"KINGTASK_CURVE_KEY": str(files["curve_key"]), "KINGTASK_SERVER_KEY": str(files["server_key"])}


def test_keys():
    with Keyed() as rig:
        rig.pair("mallory")
        rig.executable("copy", PROGRAMS["copy"])
        rig.start_broker()
        rig.start_worker()
        served = 'kt_ping >/dev/null; kt_submit "$1" --stdin "$2" copy >/dev/null; kt_wait "$1" 30'
        (rig.directory / "raw").write_bytes(RAW)
        assert sh(rig, served, str(uuid.uuid4()), str(rig.directory / "raw"), keys=keys_of(rig, "alice")) == RAW
        refused = 'KT_TRIES=1; kt_submit "$1" --timeout 1 copy || echo "$KT_ERROR"'
        for keys in (None, keys_of(rig, "mallory")):
            task_id = str(uuid.uuid4())
            assert sh(rig, refused, task_id, keys=keys) == b"denied\n"
            with pytest.raises(TaskNotFound):
                rig.client().get(task_id)
