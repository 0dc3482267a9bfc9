"""A configuration that is read anew, as values. With processes: tests/integration/test_reload.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kingtask.config import Reload, WorkerConfig, load_worker
from kingtask.errors import ConfigurationError


class Reloaded:
    """A worker's configuration in a file, and what was done with it."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.applied: list[WorkerConfig] = []
        self.calls: list[str] = []
        self.refuse = ""
        path.write_text(text)
        self.reload = Reload(load_worker(path), lambda: load_worker(path), self._apply)

    def _apply(self, config: WorkerConfig) -> None:
        if self.refuse:
            raise ConfigurationError(self.refuse)
        self.applied.append(config)

    def start(self) -> None:
        self.reload.start(lambda: self.calls.append("begun"), lambda: self.calls.append("ended"))

    def to(self, text: str) -> None:
        self.path.write_text(text)
        self.reload.ask()


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Reloaded]:
    return lambda text: Reloaded(tmp_path / "worker.yaml", f"bin_path: {tmp_path}\n{text}")


def base(reloaded: Reloaded) -> str:
    return reloaded.path.read_text().splitlines()[0] + "\n"


def test_what_may_change_does_and_the_rest_stays(make: Any):
    reloaded = make("concurrency: 1\nlease: 20\n")
    reloaded.start()
    reloaded.to(base(reloaded) + "concurrency: 2\nlease: 30\n")
    (config,) = reloaded.applied
    assert (config.concurrency, config.lease) == (2, 20)
    assert reloaded.reload.config == config
    assert reloaded.calls == ["begun", "ended"]
    assert (reloaded.reload.done, reloaded.reload.refused, reloaded.reload.note) == (1, 0, "")


def test_what_is_asked_before_the_start_is_done_at_the_start_and_after_the_end_not_at_all(make: Any):
    reloaded = make("concurrency: 1\n")
    reloaded.to(base(reloaded) + "concurrency: 2\n")
    reloaded.to(base(reloaded) + "concurrency: 3\n")
    assert not reloaded.applied
    reloaded.start()
    assert [config.concurrency for config in reloaded.applied] == [3]
    reloaded.reload.stop()
    reloaded.to(base(reloaded) + "concurrency: 4\n")
    assert len(reloaded.applied) == 1


def test_a_refusal_changes_nothing_and_is_told_until_the_next_that_is_none(make: Any):
    reloaded = make("concurrency: 1\n")
    reloaded.start()
    good = base(reloaded)
    reloaded.to(good + "concurrency: 0\n")
    assert "concurrency: expected" in reloaded.reload.note
    reloaded.refuse = "log_path: cannot write there"
    reloaded.to(good + "concurrency: 2\n")
    assert "log_path: cannot write there" in reloaded.reload.note
    assert reloaded.reload.config.concurrency == 1
    reloaded.refuse = ""
    reloaded.reload.ask()
    assert (reloaded.reload.done, reloaded.reload.refused, reloaded.reload.note) == (1, 2, "")
    assert reloaded.reload.config.concurrency == 2


def test_what_does_not_fit_to_what_stays_is_refused(make: Any):
    """Users come with a restart: until then there are as many slots as they are."""
    reloaded = make("concurrency: 2\nrun_as: {user: ['61001', '61002'], group: '61001'}\n")
    reloaded.start()
    reloaded.to(base(reloaded) + "concurrency: 3\nrun_as: {user: ['61001', '61002', '61003'], group: '61001'}\n")
    assert "run_as: expected one user, or one for each of the 3 attempts at once" in reloaded.reload.note
    assert "need a restart" in reloaded.reload.note
    assert not reloaded.applied
