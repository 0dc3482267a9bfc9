"""The benchmark runs, through everything, with sizes at which its figures mean nothing; it is never run otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import scenarios
from tests.bench.stage import STORED, TOP


@pytest.mark.timeout(240)
def test_a_tiny_run_measures_kingtask_and_the_floors_in_every_scenario(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "tests.bench", "--tiny", "--rounds", "1", "--peers", "none", "--ack", "stored"]
    done = subprocess.run([*command, "--json", out], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert not [row["error"] for row in rows if row["error"]]
    ran = {(row["scenario"], row["contestant"]) for row in rows if row["figures"]}
    assert ran == {
        (scenario.name, name)
        for scenario in scenarios.ALL.values()
        for name in scenario.contestants
        if name not in scenarios.base.PEERS
    }
    for scenario in scenarios.ALL.values():
        assert f"### {scenario.name}: {STORED}" in done.stdout
    # Each of its targets finds its figure, but for those about peers.
    lost = [what for what, target in json.loads(out.read_text())["targets"][str(STORED)].items() if not target["found"]]
    assert all("peer" in what or "celery" in what or "CPU" in what or "RSS growth" in what for what in lost), lost


def test_what_it_is_to_run_must_be_known() -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", "submit,sbumit"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sbumit: expected some of submit, execute" in done.stderr
