"""What a run's figures are made into, and what becomes of a contestant that cannot take part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import install
from tests.bench.contestants import ALL
from tests.bench.figures import Found
from tests.bench.measure import percentiles
from tests.bench.report import BenchmarkReport
from tests.bench.run import Measurement
from tests.bench.scenarios import ALL as SCENARIOS
from tests.bench.stage import FSYNC, STORED
from tests.bench.targets import targets


def row(contestant: str, nth: int = 0, scenario: str = "submit", error: str = "", **figures: float) -> Measurement:
    named = {name.replace("_", " ") + " /s": value for name, value in figures.items()}
    return Measurement(
        round=nth, scenario=scenario, durability=str(STORED), contestant=contestant, figures=named, error=error
    )


def test_a_ratio_is_the_median_of_those_within_each_round() -> None:
    rows = [row("list", 0, a=100), row("list", 1, a=10), row("list", 2, a=1)]
    rows += [row("kingtask", 0, a=100), row("kingtask", 1, a=20), row("kingtask", 2, a=3)]
    found = Found(rows)
    assert found.ratio("kingtask", "a /s", "list") == 2
    assert found.median("kingtask", "a /s") == 20


def test_without_a_common_round_it_is_the_ratio_of_the_medians() -> None:
    found = Found([row("list", 0, a=10), row("kingtask", 1, a=30), row("kingtask", 2, a=50)])
    assert found.ratio("kingtask", "a /s", "list") == 4
    assert found.ratio("kingtask", "a /s", "echo") is None


def test_percentiles_are_samples_by_the_nearest_rank() -> None:
    samples = [i / 1000 for i in range(100, 0, -1)]
    found = percentiles(samples, "x", (0, 50, 99, 100))
    assert found == {"x min ms": 1.0, "x p50 ms": 50.0, "x p99 ms": 99.0, "x max ms": 100.0}
    assert percentiles([0.002], "x") == {"x p50 ms": 2.0, "x p95 ms": 2.0, "x p99 ms": 2.0}


def test_the_best_peer_is_the_one_whose_ratio_is_least_and_a_failed_one_is_none(tmp_path: Path) -> None:
    rows = [row("kingtask", pipelined=100, in_bulk=50), row("saq", in_bulk=20), row("bullmq", in_bulk=40)]
    rows += [row("huey", error="it | broke"), row("echo", pipelined=400)]
    report = BenchmarkReport(machine={"server": "Redis 7.0"}, missing={"celery": "npm: not found"}, rows=rows)
    report.save(tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["targets"][str(STORED)]
    assert found["submits pipelined, × best peer's bulk"] == {"bound": 2.0, "least": True, "found": 2.5}
    text = report.markdown()
    assert "| submits pipelined, × best peer's bulk | ≥ 2 | 2.5 | yes |" in text
    assert "| submits pipelined, × echo | ≥ 0.5 | 0.25 | **no** |" in text
    assert "| huey (1 failed) |" in text
    assert "| celery | missing | – | npm: not found |" in text


def test_bounds_depend_on_the_server_only_where_memory_is_concerned() -> None:
    other = {one.what: one.bound for one in targets(valkey=True)}
    differing = {one.what for one in targets(valkey=False) if other[one.what] != one.bound}
    assert differing == {"Redis bytes per scheduled task"}


def test_a_peer_that_cannot_be_installed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "REQUIREMENTS", tmp_path)
    monkeypatch.setenv("KINGTASK_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "peer.json").write_text("{}")
    for _ in range(2):  # what has failed once is no installation the next time
        with pytest.raises(install.Missing, match="npm"):
            install.peer("peer")


def test_each_peer_has_its_requirements() -> None:
    peers = {name for name, contestant in ALL.items() if contestant.kind == "peer"}
    assert {path.stem for path in install.REQUIREMENTS.iterdir()} == peers


def test_long_scenarios_take_fewer_rounds_and_peers_fewer_still() -> None:
    lateness = SCENARIOS["lateness"]
    took = [
        (name, durability.ack, nth)
        for nth in range(3)
        for durability in (STORED, FSYNC)
        for name in ("list", "kingtask", "celery")
        if lateness.takes_part(ALL[name], durability, nth)
    ]
    assert took == [
        ("kingtask", "stored", 0),
        ("celery", "stored", 0),
        ("kingtask", "fsync", 0),
        ("kingtask", "stored", 1),
    ]
