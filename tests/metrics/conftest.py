from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.rig import Daemon, StackHarness
from tests.metrics.scrape import Figures, scrape
from tests.servers import free_port


class Metered(StackHarness):
    """An installation whose daemons tell figures: `broker` and `worker`, each with an address of its own."""

    def start_both(self) -> None:
        self.broker = self.start_broker(metrics_addr=f"127.0.0.1:{free_port()}")
        self.worker = self.start_worker(metrics_addr=f"127.0.0.1:{free_port()}")

    @property
    def both(self) -> dict[str, Daemon]:
        return {"broker": self.broker, "worker": self.worker}

    def of_broker(self) -> Figures:
        return scrape(self.broker.config["metrics_addr"])

    def of_worker(self) -> Figures:
        return scrape(self.worker.config["metrics_addr"])


@pytest.fixture
def metered() -> Iterator[Metered]:
    with Metered() as rig:
        rig.start_both()
        yield rig
