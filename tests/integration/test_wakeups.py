"""Hints that come before there is anything to do: they cost a look, never a task."""

from __future__ import annotations

import time

import pytest

from kingtask import Client
from tests.integration.rig import StackHarness
from tests.slowlog import Calls

PERIOD_S = 3600
"""What a worker finds, it was told of."""
TASKS = 20


@pytest.fixture
def client(rig: StackHarness) -> Client:
    """One broker, one worker that is told of everything, and a client."""
    rig.executable("hello", "#!/bin/sh\necho hello\n")
    rig.start_broker()
    rig.start_worker(period=PERIOD_S)
    return rig.client()


def test_tasks_one_after_the_other_cost_about_a_claim_each(rig: StackHarness, client: Client) -> None:
    assert client.submit("hello").wait(30).success
    with Calls(rig.redis.client()) as calls:
        for _ in range(TASKS):
            assert client.submit("hello").wait(30).success
    assert TASKS <= calls.made()["claim"] <= 2 * TASKS


def test_a_task_that_was_told_of_in_vain_is_told_of_again(rig: StackHarness, client: Client) -> None:
    """A paused queue gives nothing, however often a worker looks."""
    client.pause("default")
    with Calls(rig.redis.client()) as calls:
        tasks = [client.submit("hello") for _ in range(TASKS)]
    assert calls.made()["claim"] <= 3 * TASKS
    assert {client.get(task).state for task in tasks} == {"ready"}
    client.resume("default")
    assert all(task.wait(30).success for task in tasks)


def test_before_an_instant_there_is_a_rehearsal(rig: StackHarness, client: Client) -> None:
    """Of a tick and a claim; nothing starts by it."""
    assert client.submit("hello").wait(30).success
    with Calls(rig.redis.client()) as calls:
        for _ in range(5):
            result = client.submit("hello", at=time.time() + 0.2).wait(30)
            assert result.started_at is not None
            assert result.started_at >= result.due_at
    assert calls.made()["claim"] > 5
