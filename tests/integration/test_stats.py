"""`stats` of a large installation, asked by many clients at once."""

from __future__ import annotations

from contextlib import ExitStack
from math import ceil
from time import monotonic

import zmq

from kingtask import TaskSpec, protocol
from kingtask.store import functions
from tests.integration.rig import StackHarness
from tests.slowlog import Calls

QUEUES = 1_000
CONNECTIONS, REQUESTS = 20, 10


def test_many_stats_leave_redis_to_other_clients(rig: StackHarness) -> None:
    broker = rig.start_broker(max_queues=QUEUES)
    client = rig.client()
    places = [(f"q{i}", priority) for i in range(QUEUES) for priority in range(10)]
    client.submit_many(TaskSpec(name="ledger", queue=queue, priority=priority) for queue, priority in places)
    with zmq.Context() as context, ExitStack() as stack, Calls(rig.redis.client()) as calls:
        sockets = [stack.enter_context(context.socket(zmq.DEALER)) for _ in range(CONNECTIONS)]
        began_s = monotonic()
        for socket in sockets:
            socket.rcvtimeo = 30_000
            socket.linger = 0
            socket.connect(broker.endpoint)
            for rid in range(REQUESTS):
                socket.send(protocol.encode_request(rid, "stats", {}))
        client.submit("ledger", queue="q0")
        assert not all(socket.poll(0) for socket in sockets), "the submit did not wait for all stats"
        replies = [protocol.decode_reply(socket.recv()) for socket in sockets for _ in range(REQUESTS)]
        gatherings = ceil(monotonic() - began_s) + 1
        made = calls.made()
    assert all(len(reply["queues"]) == QUEUES for reply in replies)
    assert max(reply["queues"][0]["totals"]["submitted"] for reply in replies) == 11
    assert 0 < made["stats"] <= gatherings * (1 + QUEUES // functions.QUEUES_AT_ONCE)


def test_stats_that_come_later_are_not_older(rig: StackHarness) -> None:
    rig.start_broker()
    client = rig.client()
    for n in range(1, 4):
        client.submit("ledger", queue="q")
        (queue,) = client.stats()["queues"]
        assert queue["ready"] == n
