"""The benchmark and the comparison run through everything, with sizes at which their figures mean nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import probe, scenarios
from tests.bench.build import Build, Setup
from tests.bench.compare import ROWS
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


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", "compare", *arguments]
    return subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)


@pytest.mark.timeout(120)
def test_a_tiny_comparison_of_this_checkout_with_itself_measures_every_row(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = compare(TOP, "--tiny", "--rounds", "1", "--seed", "7", "--json", out)
    assert done.returncode == 2, done.stderr  # two pairs decide nothing
    assert "seed 7" in done.stdout
    for row in ROWS:
        assert f"\n| {row} | " in done.stdout
    assert f"too noisy: {', '.join(ROWS)}" in done.stdout
    assert "–" not in done.stdout.replace("| – |", "")
    rounds = json.loads(out.read_text())["rounds"]
    assert {row: len(pairs) for row, (pairs,) in rounds.items()} == dict.fromkeys(ROWS, 2)
    assert all(cost > 0 for one in rounds.values() for pairs in one for pair in pairs for cost in pair)


def test_each_stack_runs_the_code_of_its_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(TOP / "kingtask", copy / "kingtask", ignore=shutil.ignore_patterns("__pycache__"))
    init = copy / "kingtask" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "0.'))
    program = tmp_path / "probe"
    probe.build(program)
    setup = Setup(probe=program, durability=STORED, bytecode=tmp_path / "bytecode", hash_seed=1)
    with Build(TOP, setup) as this, Build(copy, setup) as other:
        assert set(other.versions.values()) == {f"0.{this.versions['broker']}"}
        assert this.trip(1).keys() == other.trip(1).keys() == {"reply", "start", "round-trip"}
    assert not [*copy.rglob("__pycache__")]


def test_compare_refuses_unknown_rows_and_directories_without_kingtask(tmp_path: Path) -> None:
    done = compare(TOP, "--only", "start,strat")
    assert done.returncode == 2
    assert "strat: expected some of start, round-trip" in done.stderr
    done = compare(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: expected a checkout of kingtask" in done.stderr
