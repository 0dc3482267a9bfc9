"""Wakeup hints: heard from any broker, again after its restart, and never a way to do harm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zmq

from kingtask import topics
from kingtask.errors import ConfigurationError
from kingtask.worker.subscriber import Exchange, Subscriber
from tests.processes import PATIENCE_S, descriptors, until
from tests.worker.rig import WakeupSocket


class HintCounter:
    """A subscriber whose hints are counted; `heard` waits for them."""

    all: ClassVar[list[HintCounter]] = []

    def __init__(self, *endpoints: str, queues: tuple[str, ...] = ("default",)) -> None:
        self.ready = self.soon = 0
        self.cancelled: list[str] = []
        self._something = asyncio.Event()
        self.subscriber = Subscriber(
            endpoints, queues=queues, worker="w.1", on_ready=self._on_ready, on_cancel=self._on_cancel
        )
        self.subscriber.start()
        self.all.append(self)

    def _on_ready(self, soon: bool) -> None:
        self.ready += 1
        self.soon += soon
        self._something.set()

    def _on_cancel(self, task_id: str) -> None:
        self.cancelled.append(task_id)
        self._something.set()

    async def heard(self) -> None:
        """Wait for the next hint since the last call."""
        await asyncio.wait_for(self._something.wait(), PATIENCE_S)
        self._something.clear()

    async def cancel(self, wakeups: WakeupSocket, mark: str) -> None:
        """Ring through a last hint: what was sent before it has arrived when it is heard."""
        wakeups.cancel("w.1", mark)
        while mark not in self.cancelled:
            await self.heard()


@pytest.fixture
def listen() -> Iterator[type[HintCounter]]:
    """Makes listeners, and closes them."""
    yield HintCounter
    for listener in HintCounter.all:
        listener.subscriber.close()
    HintCounter.all.clear()


@pytest.fixture
def wakeups(tmp_path: Path) -> Iterator[WakeupSocket]:
    made = WakeupSocket(f"ipc://{tmp_path}/wakeups")
    yield made
    made.close()


async def subscribed(wakeups: WakeupSocket, *wanted: bytes) -> None:
    for topic in (topics.cancel_topic("w.1"), *wanted):
        await asyncio.to_thread(wakeups.heard, topic)


async def idle(listener: HintCounter, wakeups: WakeupSocket) -> None:
    """Say so, once the broker has all else that was said."""
    listener.subscriber.announce(Exchange.IDLE)
    await asyncio.to_thread(wakeups.idle)


async def test_only_what_concerns_this_worker(listen: type[HintCounter], wakeups: WakeupSocket) -> None:
    listener = listen(wakeups.endpoint, queues=("a", "b"))
    await subscribed(wakeups, topics.ready_topic("a"), topics.ready_topic("b"))
    await idle(listener, wakeups)
    wakeups.ready("ab")
    wakeups.ready("c")
    wakeups.cancel("w.10", "another worker's")
    await listener.cancel(wakeups, "first")
    assert (listener.ready, listener.cancelled) == (0, ["first"])
    wakeups.ready("b")
    await listener.cancel(wakeups, "second")
    assert (listener.ready, listener.cancelled) == (1, ["first", "second"])


async def test_a_full_worker_returns_a_hint_once_and_gets_no_other(
    listen: type[HintCounter], wakeups: WakeupSocket
) -> None:
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    await idle(listener, wakeups)
    listener.subscriber.announce(Exchange.FULL)
    wakeups.ready()
    await listener.heard()
    listener.subscriber.announce(Exchange.FULL)
    await asyncio.to_thread(wakeups.handed_back)
    wakeups.ready()
    await listener.cancel(wakeups, "until now")
    assert listener.ready == 1
    listener.subscriber.announce(Exchange.IDLE)
    while listener.ready < 2:
        await listener.heard()


async def test_a_broker_that_does_not_read_has_two_messages_of_a_worker_to_read_at_most(
    listen: type[HintCounter], tmp_path: Path
) -> None:
    """A queue of words that is full, a heartbeat behind them, and the end of the connection end its process."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deaf = context.socket(zmq.XPUB)
    deaf.setsockopt(zmq.XPUB_VERBOSER, 1)
    deaf.bind(f"ipc://{tmp_path}/deaf")
    listener = listen(f"ipc://{tmp_path}/deaf")
    for _ in range(2):
        assert await asyncio.to_thread(deaf.poll, int(1000 * PATIENCE_S))
        deaf.recv()
    for _ in range(100):
        listener.subscriber.announce(Exchange.IDLE)
        listener.subscriber.announce(Exchange.CLAIMED)
        listener.subscriber.announce(Exchange.FULL)
    deaf.send_multipart([topics.cancel_topic("w.1"), b"heard all"])
    while not listener.cancelled:
        await listener.heard()
    assert await asyncio.to_thread(deaf.poll, int(1000 * PATIENCE_S))
    assert deaf.recv() == b"\1" + topics.IDLE_TOPIC
    assert not await asyncio.to_thread(deaf.poll, 200)
    deaf.close(0)
    context.term()


async def test_one_hint_per_idle_announcement_until_the_next_claim(
    listen: type[HintCounter], wakeups: WakeupSocket
) -> None:
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    await idle(listener, wakeups)
    for number in range(5):
        wakeups.ready()
        await listener.cancel(wakeups, f"round {number}")
        assert listener.ready == 1
        listener.subscriber.announce(Exchange.IDLE)  # it has not asked: nothing is said
    listener.subscriber.announce(Exchange.CLAIMED)
    listener.subscriber.announce(Exchange.IDLE)
    while listener.ready < 2:
        await listener.heard()


async def test_a_token_is_for_one_claim_and_comes_with_none_that_is_malformed(
    listen: type[HintCounter], wakeups: WakeupSocket
) -> None:
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    await idle(listener, wakeups)
    assert listener.subscriber.take_tokens() == ""
    wakeups.ready()
    await listener.heard()
    (peer,) = wakeups.wakeups._peers.values()
    for token in (b"x" * 16, b"0" * 15, b"0" * 17, b"\xff" * 16):
        wakeups.say(peer.topic + token, b"")
    await listener.cancel(wakeups, "until now")
    assert listener.ready == 5
    assert listener.subscriber.take_tokens() == peer.token
    assert listener.subscriber.take_tokens() == ""


async def test_an_early_hint_goes_to_an_idle_worker_only(listen: type[HintCounter], wakeups: WakeupSocket) -> None:
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    assert not wakeups.soon(), "nobody is idle: it is to be told when it is there"
    await idle(listener, wakeups)
    assert not wakeups.soon("other")
    assert wakeups.soon()
    assert not wakeups.soon()
    await listener.heard()
    assert (listener.ready, listener.soon) == (1, 1)
    listener.subscriber.announce(Exchange.CLAIMED)
    listener.subscriber.announce(Exchange.IDLE)
    await asyncio.to_thread(wakeups.idle)
    wakeups.ready()
    await listener.heard()
    assert (listener.ready, listener.soon) == (2, 1)


async def hinted_and_idle(listen: type[HintCounter], wakeups: WakeupSocket) -> tuple[HintCounter, HintCounter]:
    """A worker that got a hint, and another that is idle."""
    first, second = listen(wakeups.endpoint), listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    await idle(first, wakeups)
    wakeups.ready()
    await first.heard()
    second.subscriber.announce(Exchange.IDLE)
    await asyncio.to_thread(wakeups.idle)
    return first, second


async def test_a_hint_that_a_full_worker_returns_goes_to_an_idle_worker(
    listen: type[HintCounter], wakeups: WakeupSocket
) -> None:
    first, second = await hinted_and_idle(listen, wakeups)
    first.subscriber.announce(Exchange.FULL)
    await second.heard()
    assert (first.ready, second.ready) == (1, 1)


async def test_a_hint_that_a_claim_used_goes_to_no_other_worker(
    listen: type[HintCounter], wakeups: WakeupSocket
) -> None:
    first, second = await hinted_and_idle(listen, wakeups)
    first.subscriber.announce(Exchange.CLAIMED)
    first.subscriber.announce(Exchange.FULL)
    first.subscriber.announce(Exchange.IDLE)
    await asyncio.to_thread(wakeups.idle, 2)
    assert (first.ready, second.ready) == (1, 0)


async def test_any_broker_will_do(listen: type[HintCounter], tmp_path: Path, wakeups: WakeupSocket) -> None:
    other = WakeupSocket(f"ipc://{tmp_path}/other")
    listener = listen(wakeups.endpoint, f"ipc://{tmp_path}/not-there", other.endpoint)
    await subscribed(wakeups)
    await subscribed(other)
    listener.subscriber.announce(Exchange.IDLE)
    for number, one in enumerate((wakeups, other), 1):
        await listener.cancel(one, one.endpoint)
        await asyncio.to_thread(one.idle)
        one.ready()
        while listener.ready < number:
            await listener.heard()
    other.close()


async def test_a_broker_that_was_restarted_is_heard_again(listen: type[HintCounter], tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/wakeups"
    first = WakeupSocket(endpoint)
    listener = listen(endpoint)
    await subscribed(first, topics.ready_topic("default"))
    await idle(listener, first)
    first.close()
    second = WakeupSocket(endpoint)
    await asyncio.to_thread(second.idle)
    second.ready()
    await listener.heard()
    assert listener.ready
    second.close()


async def test_a_flood_is_read_to_its_end(listen: type[HintCounter], wakeups: WakeupSocket) -> None:
    """The descriptor is edge-triggered: what is not read now would never be."""
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups)
    for number in range(900):
        wakeups.cancel("w.1", str(number))
    await listener.cancel(wakeups, "the last")
    assert len(listener.cancelled) == 901
    await listener.cancel(wakeups, "and it goes on")


async def test_nonsense_does_no_harm(listen: type[HintCounter], wakeups: WakeupSocket) -> None:
    listener = listen(wakeups.endpoint)
    await subscribed(wakeups, topics.ready_topic("default"))
    await idle(listener, wakeups)
    (topic,) = {line.topic for line in wakeups.wakeups._peers.values()}
    cancel = topics.cancel_topic("w.1")
    hostile: list[list[bytes]] = [
        [topic],
        [topic, b"", b""],
        [topic + b"x", b"\xff" * 400],
        [cancel],
        [cancel, b"\xff\0"],
    ]
    for frames in hostile:
        wakeups.say(*frames)
    await listener.cancel(wakeups, "still here")
    assert listener.cancelled[-1] == "still here"
    # Too long for a hint: libzmq closes the connection, and would leave it at that.
    wakeups.say(topic, b"x" * 100_000)
    while "again" not in listener.cancelled:
        wakeups.cancel("w.1", "again")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await listener.heard()


async def test_closing_leaves_nothing(listen: type[HintCounter], wakeups: WakeupSocket) -> None:
    before = descriptors()
    for _ in range(3):
        listener = listen(wakeups.endpoint, "tcp://127.0.0.1:9")
        listener.subscriber.close()
        listener.subscriber.close()
    until(lambda: descriptors() == before, "the end of all connections, whose other side is the wakeup socket")


async def test_an_invalid_endpoint_is_a_configuration_error() -> None:
    def nothing(*_: Any) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="cannot connect to nonsense"):
        Subscriber(["nonsense"], queues=["default"], worker="w", on_ready=nothing, on_cancel=nothing)
    assert zmq.zmq_version_info() >= (4, 2)
