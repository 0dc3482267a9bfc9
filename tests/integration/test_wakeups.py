"""Hints that come before there is anything to do: they cost a look, never a task."""

from __future__ import annotations

import statistics
import threading
import time

import pytest
import zmq

from kingtask import Client, topics
from tests.integration.rig import Daemon, StackHarness
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


def test_a_busy_worker_confirms_a_few_claims_a_second_not_each(rig: StackHarness, client: Client) -> None:
    """At most one in each tenth of a second, however many hints there are."""
    assert client.submit("hello").wait(30).success
    with rig.redis.client().pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("*:claimed")
        pubsub.get_message(timeout=5)
        began_s = time.monotonic()
        for _ in range(10 * TASKS):
            assert client.submit("hello").wait(30).success
        passed_s = time.monotonic() - began_s
        confirmations = 0
        while pubsub.get_message(timeout=0.2) is not None:
            confirmations += 1
    assert 1 <= confirmations <= 10 * passed_s + 2


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


class Liars:
    """Peers of the wakeup socket that say to be idle and never claim. Each kind answers a hint in its own way."""

    def __init__(self, broker: Daemon, number: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.MAX_SOCKETS, 2 * number)
        self.sockets = [self._context.socket(zmq.SUB) for _ in range(number)]
        for socket in self.sockets:
            socket.connect(f"tcp://{broker.config['wakeup']}")
            socket.subscribe(topics.ready_topic("default"))
            socket.subscribe(topics.IDLE_TOPIC)
        self.hinted = 0
        """Hints for tasks."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        poller = zmq.Poller()
        for socket in self.sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._stop.is_set():
            for socket, _ in poller.poll(10):
                self.hinted += bool(socket.recv_multipart()[-1])
                match self.sockets.index(socket) % 3:
                    case 0:  # silent
                        pass
                    case 1:  # idle again at once
                        socket.subscribe(topics.IDLE_TOPIC)
                    case 2:  # gives the hint back, and is idle again
                        socket.unsubscribe(topics.IDLE_TOPIC)
                        socket.subscribe(topics.IDLE_TOPIC)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(0)


@pytest.mark.parametrize("worker_first", [True, False])
def test_peers_that_only_say_to_be_idle_delay_no_task(rig: StackHarness, worker_first: bool) -> None:
    """The worker polls once an hour: it finds what it gets hints for."""
    rig.executable("hello", "#!/bin/sh\necho hello\n")
    broker = rig.start_broker()
    if worker_first:
        rig.start_worker(period=PERIOD_S)
    liars = Liars(broker, 200)
    try:
        if not worker_first:
            rig.start_worker(period=PERIOD_S)
        client = rig.client()
        assert client.submit("hello").wait(30).success, "from now on the broker knows a claim of the worker"
        liars.hinted = 0
        starts = []
        for _ in range(TASKS):
            result = client.submit("hello").wait(30)
            assert result.started_at is not None
            starts.append(result.started_at - result.due_at)
        assert liars.hinted == 0
        assert statistics.median(starts) < 0.5, "far from a hint that goes to another after a second"
    finally:
        liars.close()
