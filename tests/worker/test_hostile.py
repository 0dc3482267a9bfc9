"""What a hostile executable can do to the worker, its files and its host when it is another user: nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import descriptors
from tests.servers import RedisServer
from tests.worker import intruder
from tests.worker.open_rig import needs_root, open_rig, someone
from tests.worker.rig import WorkerHarness
from tests.worker.test_isolate import MIB, python
from tests.worker.test_runs import high_water_kib

pytestmark = needs_root


@pytest.fixture
def rig(server: RedisServer) -> Iterator[WorkerHarness]:
    with open_rig(server) as made:
        yield made


def test_whatever_it_tries_is_denied(rig: WorkerHarness) -> None:
    text = Path(intruder.__file__).read_text()
    rig.script("intruder", text, shebang=intruder.SHEBANG)
    worker = rig.start(run_as=someone())
    worker.path.chmod(0o640)
    facts = {
        "guard": worker.guard,
        "read": [str(worker.path)],
        "write": [str(rig.bin), str(rig.directory)],
        "change": [str(rig.bin / "intruder"), str(worker.path)],
    }
    result = rig.run("intruder", json.dumps(facts))
    outcomes = json.loads(result.stdout)
    assert len(outcomes) >= 20
    assert set(outcomes.values()) == {"denied"}, {name: told for name, told in outcomes.items() if told != "denied"}
    assert rig.run("intruder", json.dumps(facts)).state == "succeeded"


def test_without_another_user_it_could(rig: WorkerHarness) -> None:
    """So that the test above proves something."""
    rig.script("intruder", Path(intruder.__file__).read_text(), shebang=intruder.SHEBANG)
    worker = rig.start()
    harmless = ["read the worker's environment", "list the worker's descriptors", f"read {worker.path}"]
    facts = {"read": [str(worker.path)], "write": [], "change": [], "only": harmless}
    assert json.loads(rig.run("intruder", json.dumps(facts)).stdout) == dict.fromkeys(harmless, "done")


def test_hogs_of_each_kind_cost_the_worker_nothing(rig: WorkerHarness) -> None:
    """Memory, descriptors, processes, the disk: each ends at its limit, and what they wrote is gone."""
    python(rig, "memory", "x = [bytearray(1 << 20) for _ in range(10_000)]")
    python(rig, "files", "import os\nwhile True: os.dup(0)")
    python(rig, "processes", "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(300)")
    rig.script("disk", "i=0; while [ $i -lt 20 ]; do head -c 200000 /dev/zero > $TMPDIR/$i || exit 1; i=$((i+1)); done")
    rig.script("fine", "echo fine")
    limits = {"memory": 256 * MIB, "open_files": 64, "processes": 30, "file_size": 100_000, "core": 0}
    worker = rig.start(run_as=someone(), limits=limits, private_dir=str(rig.directory / "dirs"))
    assert rig.run("fine").state == "succeeded"
    before, fds = high_water_kib(worker.pid), len(descriptors(worker.pid))
    reasons = {name: rig.run(name).reason for name in ("memory", "files", "processes", "disk")}
    assert reasons == {"memory": "out_of_memory", "files": "exit", "processes": "exit", "disk": "exit"}
    assert rig.run("fine").stdout == b"fine\n"
    assert high_water_kib(worker.pid) - before < 4096
    assert len(descriptors(worker.pid)) <= fds
