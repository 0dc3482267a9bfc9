"""The bounds of broker.yaml through everything: what a client hears, and what it finds."""

from __future__ import annotations

import pytest

from kingtask import Busy, Client
from tests.integration.rig import StackHarness
from tests.processes import PATIENCE_S

MIB = 1024 * 1024


def test_as_many_tasks_as_may_be_are_busy_for_more_of_them(rig: StackHarness) -> None:
    broker = rig.start_broker(max_tasks=2)
    with Client(broker.endpoint, timeout=0.3) as client:
        first = client.submit("ledger", queue="q", id=(known := "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"))
        client.submit("ledger", delay=3600)
        with pytest.raises(Busy, match="max_tasks") as refused:
            client.submit("ledger")
        assert (refused.value.retryable, refused.value.stored) == (True, "no")
        assert refused.value.retry_after_s
        assert client.submit("ledger", queue="q", id=known).id == first.id, "a repeated one is no further one"
        first.cancel()
        client.submit("ledger")


def test_a_worker_drops_the_oldest_output_when_the_brokers_bound_is_reached(rig: StackHarness) -> None:
    rig.start_broker(max_result_bytes=2 * MIB)
    rig.start_worker()
    rig.executable("much", f"#!/bin/sh\nhead -c {MIB} /dev/zero\n")
    client = rig.client()
    results = [client.submit("much").wait(PATIENCE_S) for _ in range(3)]
    assert [len(result.stdout) for result in results] == [MIB] * 3, "each was there first"
    oldest, *others = (client.get(result.id) for result in results)
    assert (oldest.dropped, oldest.stdout, oldest.stdout_size, oldest.success) == (True, b"", MIB, True)
    assert oldest.attempts == results[0].attempts
    assert [(result.dropped, len(result.stdout)) for result in others] == [(False, MIB)] * 2
