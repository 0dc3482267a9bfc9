"""What a broker is made to hold by messages that do not come to their end."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from kingtask import Client, topics, wire
from tests import zmtp
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.long

MB = 1_000_000


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MB


def test_messages_without_an_end_cost_the_connection_and_no_memory() -> None:
    """One of frames without number, many that are large and stop short of their end; the others are served."""
    with StackHarness() as rig, ExitStack() as stack:
        rig.executable("example", "#!/bin/sh\necho $1\n")
        broker = rig.start_broker(max_pending_bytes=wire.MAX_MESSAGE_BYTES)
        rig.start_worker()
        client = rig.client()
        port = int(broker.config["addr"].rpartition(":")[2])
        connections = [stack.enter_context(zmtp.connect(port)) for _ in range(61)]
        attackers = [
            threading.Thread(target=pour, args=(connections[:1], zmtp.frame(bytes(MB), zmtp.MORE), 2_000)),
            threading.Thread(target=pour, args=(connections[1:], zmtp.frame(bytes(MB), zmtp.MORE), 3)),
        ]
        most_mb = served_under(attackers, broker, client)
        assert most_mb < 250, "2,180 MB were sent"
        assert broker.text().count("refused=cut_off") == 1


def test_a_word_without_an_end_costs_a_subscriber_its_connection() -> None:
    with StackHarness() as rig:
        rig.executable("example", "#!/bin/sh\necho $1\n")
        broker = rig.start_broker(max_pending_bytes=wire.MAX_MESSAGE_BYTES)
        rig.start_worker()
        words = zmtp.frame(b"\1" + topics.ready_topic("default"), zmtp.MORE) * 100_000
        with zmtp.connect(int(broker.config["wakeup"].rpartition(":")[2]), "SUB") as connection:
            attackers = [threading.Thread(target=pour, args=([connection], words, 500))]
            most_mb = served_under(attackers, broker, rig.client())
        assert most_mb < 250, "250 MB were sent, which would take 3,200"
        broker.until_logged("refused=cut_off")


def pour(connections: list[socket.socket], words: bytes, times: int) -> None:
    for connection in connections:
        with suppress(OSError):
            for _ in range(times):
                connection.sendall(words)


def served_under(attackers: list[threading.Thread], broker: Daemon, client: Client) -> float:
    """A client in good order has its tasks run meanwhile and after it; returns how many MB the broker took at most."""
    pid, most_mb = broker.pid, 0.0
    for attacker in attackers:
        attacker.start()
    while any(attacker.is_alive() for attacker in attackers):
        most_mb = max(most_mb, resident_mb(pid))
        assert client.submit("example", ["x" * 10_000]).wait(PATIENCE_S).success
    assert client.submit("example", ["x" * 100_000] * 10).wait(PATIENCE_S).success
    print(most_mb)
    return most_mb
