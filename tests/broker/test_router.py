"""The ROUTER against peers that misbehave, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import pytest
import zmq

from kingtask import protocol, wire
from kingtask.broker.auth import Peer
from tests.broker.conftest import PATIENCE_MS, EchoRouter, Sockets


def test_a_dealer_and_a_req_both_get_their_reply(sockets: Sockets, served: EchoRouter) -> None:
    dealer, req = sockets.new(zmq.DEALER, served.endpoint), sockets.new(zmq.REQ, served.endpoint)
    dealer.send(b"one")
    req.send(b"two")
    assert dealer.recv_multipart() == [b"one"]
    assert req.recv_multipart() == [b"two"]


def test_thousands_in_flight_are_all_answered_in_order(sockets: Sockets, served: EchoRouter) -> None:
    """More than one drain takes, so the edge-triggered descriptor must be looked at again by itself."""
    dealer = sockets.new(zmq.DEALER, served.endpoint)
    for i in range(900):
        dealer.send(str(i).encode())
    assert [int(dealer.recv()) for _ in range(900)] == list(range(900))


def test_drains_do_not_multiply_under_load(sockets: Sockets, served: EchoRouter) -> None:
    """One for the event and one that was scheduled, in one turn of the loop; else each takes its time of the turn."""
    in_turn, drains = 0, Counter[int]()

    def turn() -> None:
        nonlocal in_turn
        drains[in_turn] += 1
        in_turn = 0
        served.loop.call_soon(turn)

    def drained() -> None:
        nonlocal in_turn
        in_turn += 1

    served.on_drained = drained
    served.loop.call_soon_threadsafe(turn)
    dealers = [sockets.new(zmq.DEALER, served.endpoint) for _ in range(4)]
    for _ in range(100):
        for dealer in dealers * 50:
            dealer.send(b"x" * 2_000)
        for dealer in dealers * 50:
            dealer.recv()
    assert max(drains) <= 2, drains


@pytest.mark.parametrize("frames", [[b"a", b"b"], [b"", b"a", b"b"], [b"a"] * 5, [b"x"] * 5_000, [b"", b"", b"a"]])
def test_a_wrong_number_of_frames_is_one_error(sockets: Sockets, served: EchoRouter, frames: list[bytes]) -> None:
    dealer = sockets.new(zmq.DEALER, served.endpoint)
    dealer.send_multipart(frames)
    reply = protocol.decode_reply(dealer.recv_multipart()[-1])
    assert reply["error"]["code"] == "bad_frames"
    dealer.send(b"still here")
    assert dealer.recv() == b"still here"


@pytest.mark.parametrize("frames", [[b""], [b"", b""]])
def test_an_empty_message_is_dropped(sockets: Sockets, served: EchoRouter, frames: list[bytes]) -> None:
    dealer = sockets.new(zmq.DEALER, served.endpoint)
    dealer.send_multipart(frames)
    dealer.send(b"still here")
    assert dealer.recv() == b"still here"
    assert served.counters.counts == {"empty_message": 1}


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 99, b"PING\r\n", b"\0" * 999, b"\xff" * 999]
)
def test_garbage_on_the_port_hinders_nobody(sockets: Sockets, served: EchoRouter, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.sendall(garbage)
        dealer = sockets.new(zmq.DEALER, served.endpoint)
        dealer.send(b"still here")
        assert dealer.recv() == b"still here"


def test_a_message_far_over_the_limit_costs_the_connection(sockets: Sockets, served: EchoRouter) -> None:
    dealer = sockets.new(zmq.DEALER, served.endpoint)
    dealer.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1_000_000))
    other = sockets.new(zmq.DEALER, served.endpoint)
    other.send(b"still here")
    assert other.recv() == b"still here"


def test_a_peer_that_is_gone_loses_its_reply(sockets: Sockets, served: EchoRouter) -> None:
    waiting = threading.Event()
    held: list[Peer] = []

    def hold(sender: Peer, message: bytes) -> None:
        if message == b"hold":
            held.append(sender)
            waiting.set()
        else:
            served.router.reply(held[0], b"too late") if message == b"now" else None
            served.router.reply(sender, message)

    served.on_request = hold
    gone = sockets.new(zmq.DEALER, served.endpoint)
    gone.send(b"hold")
    assert waiting.wait(PATIENCE_MS / 1000)
    gone.close(0)
    other = sockets.new(zmq.DEALER, served.endpoint)
    while not served.counters.counts.get("dropped_reply"):  # its end takes a moment to be seen
        other.send(b"now")
        assert other.recv() == b"now"
