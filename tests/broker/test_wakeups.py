"""Hints to idle workers, over a real XPUB socket: one each, to the worker that has been idle longest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq

from kingtask import topics
from kingtask.broker import wakeups
from kingtask.broker.counters import Counters
from kingtask.broker.hint_ledger import WakeupPeer
from kingtask.broker.relay import Relay
from kingtask.broker.wakeups import Wakeups
from kingtask.clock import monotonic_s
from tests.broker.conftest import Sockets, stop
from tests.broker.fakes import CredulousWakeups, StoppedClock
from tests.processes import PATIENCE_S

DEFAULT = topics.ready_topic("default")
EARLY = DEFAULT + topics.EARLY


class WorkerSocket:
    """The SUB socket of a worker that serves the queue `default`."""

    def __init__(self, scene: WakeupsHarness, socket: zmq.Socket[bytes]) -> None:
        self._scene = scene
        self._socket = socket
        self.peer: WakeupPeer
        socket.connect(scene.endpoint)

    async def subscribe(self, topic: bytes) -> None:
        self._socket.subscribe(topic)
        await self._scene.until(lambda: any(topic in peer.queues | peer.names for peer in self._scene.peers()))

    async def set_idle(self) -> None:
        """Subscribe to IDLE_TOPIC anew, until the broker knows."""
        before = self._scene.wakeups.idle
        self._socket.subscribe(topics.IDLE_TOPIC)
        await self._scene.until(lambda: self._scene.wakeups.idle == before + 1)

    def announce(self) -> None:
        """Subscribe to IDLE_TOPIC; a hint may follow at once."""
        self._socket.subscribe(topics.IDLE_TOPIC)

    def give_back(self) -> None:
        """Unsubscribe from IDLE_TOPIC although a hint came."""
        self._socket.unsubscribe(topics.IDLE_TOPIC)

    def close(self) -> None:
        self._socket.close()

    def has_message(self) -> bool:
        return bool(self._socket.poll(0))

    async def message(self) -> bytes:
        """The body of the next message."""
        return (await self.frames())[-1]

    async def frames(self) -> list[bytes]:
        await self._scene.until(self.has_message)
        return self._socket.recv_multipart()


class WakeupsHarness:
    """A Wakeups on the loop of the test, and workers."""

    def __init__(self, endpoint: str, sockets: Sockets, kind: type[Wakeups] = CredulousWakeups) -> None:
        self.endpoint = endpoint
        self.counters = Counters()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = sockets
        self.relay = Relay(self._context, self.counters)
        self.wakeups = kind(self._context, self.relay, (endpoint,), self.counters)

    def peers(self) -> list[WakeupPeer]:
        return list(self.wakeups._peers.values())

    async def worker(self) -> WorkerSocket:
        made = WorkerSocket(self, self._sockets.new(zmq.SUB))
        before = sum(DEFAULT in peer.queues for peer in self.peers())
        made._socket.subscribe(DEFAULT)
        await self.until(lambda: sum(DEFAULT in peer.queues for peer in self.peers()) == before + 1)
        made.peer = self.peers()[-1]
        return made

    async def until(self, condition: Callable[[], object]) -> None:
        deadline_s = monotonic_s() + PATIENCE_S
        while not condition():
            assert monotonic_s() < deadline_s
            await asyncio.sleep(0.001)

    def start(self) -> None:
        self.wakeups.start()
        self.relay.start()

    async def close(self) -> None:
        await stop(self.wakeups, self.relay, self._context)


@pytest.fixture
async def scene(tmp_path: Path, sockets: Sockets) -> AsyncIterator[WakeupsHarness]:
    made = WakeupsHarness(f"ipc://{tmp_path}/wakeups", sockets)
    made.start()
    yield made
    await made.close()


async def test_an_idle_worker_gets_one_hint_until_it_is_idle_again(scene: WakeupsHarness) -> None:
    worker = await scene.worker()
    await worker.set_idle()
    scene.wakeups.ready("default", 3)
    assert await worker.message() == DEFAULT
    assert (scene.wakeups.idle, scene.wakeups.hints_sent) == (0, 1)
    worker.announce()
    assert await worker.message() == DEFAULT, "of the tasks that found no idle worker"


async def test_a_task_wakes_one_worker_and_the_one_that_has_been_idle_longest(scene: WakeupsHarness) -> None:
    first, second = await scene.worker(), await scene.worker()
    await first.set_idle()
    await second.set_idle()
    scene.wakeups.ready("default", 1)
    assert await first.message() == DEFAULT
    assert not second.has_message()
    scene.wakeups.ready("default", 1)
    assert await second.message() == DEFAULT


async def test_several_tasks_wake_as_many_workers(scene: WakeupsHarness) -> None:
    workers = [await scene.worker() for _ in range(3)]
    for worker in workers:
        await worker.set_idle()
    scene.wakeups.ready("default", 2)
    assert [await worker.message() for worker in workers[:2]] == [DEFAULT, DEFAULT]
    assert scene.wakeups.idle == 1


async def test_a_worker_gets_no_hint_for_a_queue_that_it_does_not_serve(scene: WakeupsHarness) -> None:
    worker = await scene.worker()
    await worker.set_idle()
    scene.wakeups.ready("other", 1)
    assert scene.wakeups.idle == 1
    assert not scene.wakeups.notify_early("other")


async def test_a_hint_that_a_full_worker_gives_back_goes_to_another(scene: WakeupsHarness) -> None:
    first, second = await scene.worker(), await scene.worker()
    await first.set_idle()
    await second.set_idle()
    scene.wakeups.notify_early("default")
    await first.message()
    first.give_back()
    assert await second.message() == EARLY


async def test_an_early_hint_is_marked_and_needs_an_idle_worker(scene: WakeupsHarness) -> None:
    worker = await scene.worker()
    assert not scene.wakeups.notify_early("default")
    await worker.set_idle()
    assert scene.wakeups.notify_early("default")
    assert await worker.message() == EARLY
    assert not scene.wakeups.notify_early("default")


async def test_a_warm_up_makes_one_idle_worker_poll(scene: WakeupsHarness) -> None:
    first, second = await scene.worker(), await scene.worker()
    scene.wakeups.warm_up()
    await first.set_idle()
    await second.set_idle()
    scene.wakeups.warm_up()
    await first.message()
    assert scene.wakeups.idle == 1


async def test_a_cancel_reaches_the_worker_of_that_name_alone(scene: WakeupsHarness) -> None:
    first, second = await scene.worker(), await scene.worker()
    await first.subscribe(topics.cancel_topic("w.1"))
    await second.subscribe(topics.cancel_topic("w.2"))
    scene.wakeups.cancel("w.2", "an-id")
    assert await second.message() == b"an-id"
    assert not first.has_message()


async def test_a_hint_skips_a_worker_that_has_left(scene: WakeupsHarness) -> None:
    first, second = await scene.worker(), await scene.worker()
    await first.set_idle()
    await second.set_idle()
    first.close()
    await scene.until(lambda: len(scene.peers()) == 1)
    scene.wakeups.ready("default", 1)
    assert await second.message() == DEFAULT


@pytest.mark.parametrize("topic", [b"", b"r", b"ready:default/"])
async def test_an_unknown_topic_is_counted_and_hears_nothing(
    scene: WakeupsHarness, sockets: Sockets, topic: bytes
) -> None:
    worker, stranger = await scene.worker(), sockets.new(zmq.SUB, scene.endpoint)
    stranger.subscribe(topic)
    await scene.until(lambda: scene.counters.counts == {"unknown_topic": 1})
    await worker.set_idle()
    scene.wakeups.ready("default", 1)
    scene.wakeups.cancel("w.1", "an-id")
    await worker.message()
    assert not stranger.poll(0)


# ── hints go to those whose claims are confirmed ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    made = StoppedClock()
    monkeypatch.setattr(wakeups, "monotonic_s", made)
    return made


@pytest.fixture
async def strict(clock: StoppedClock, tmp_path: Path, sockets: Sockets) -> AsyncIterator[WakeupsHarness]:
    """A Wakeups that takes nobody's word."""
    made = WakeupsHarness(f"ipc://{tmp_path}/wakeups", sockets, kind=Wakeups)
    made.start()
    yield made
    await made.close()


async def asked(worker: WorkerSocket) -> str:
    """Say to be idle for the first time; return the token of the question."""
    worker.announce()
    topic, body = await worker.frames()
    assert body == b""
    return topics.token_in(topic)


async def confirmed(scene: WakeupsHarness) -> WorkerSocket:
    """A worker that claimed when it was asked, and is idle."""
    worker = await scene.worker()
    scene.wakeups.claimed(await asked(worker))
    return worker


async def test_who_only_says_to_be_idle_gets_no_hint(strict: WakeupsHarness, clock: StoppedClock) -> None:
    """Whatever it says: nothing, that it is idle again, or that it gives a hint back."""
    silent, eager, returning = [await strict.worker() for _ in range(3)]
    for liar in (silent, eager, returning):
        await asked(liar)
    good = await confirmed(strict)
    for _ in range(5):
        eager.announce()
        returning.give_back()
        returning.announce()
        strict.wakeups.ready("default", 1)
        assert await good.message() == DEFAULT
        clock.now_s += 1.5
        strict.wakeups.claimed(good.peer.token)
        strict.wakeups.check()
        await good.set_idle()
    assert not any(liar.has_message() for liar in (silent, eager, returning))


async def test_a_hint_that_no_claim_follows_goes_to_another_and_three_are_the_last(
    strict: WakeupsHarness, clock: StoppedClock
) -> None:
    hung, good = await confirmed(strict), await confirmed(strict)
    for number in range(3):
        clock.now_s += 0.5
        strict.wakeups.ready("default", 1)
        assert await hung.message() == DEFAULT
        strict.wakeups.check()
        assert not good.has_message(), number
        clock.now_s += 1.5
        strict.wakeups.check()
        assert await good.message() == DEFAULT, number
        strict.wakeups.claimed(good.peer.token)
        hung.announce()  # it says so, and claims nothing
        await strict.until(lambda: hung.peer.idle)
        await good.set_idle()
    clock.now_s += 0.5
    strict.wakeups.ready("default", 1)
    assert await good.message() == DEFAULT
    assert not hung.has_message()
    strict.wakeups.claimed(hung.peer.token)
    strict.wakeups.ready("default", 1)
    assert await hung.message() == DEFAULT, "its next claim was confirmed"


async def test_who_is_idle_before_its_claim_is_confirmed_gets_the_next_hint(strict: WakeupsHarness) -> None:
    """The two messages come by different ways."""
    await confirmed(strict)
    late = await strict.worker()
    token = await asked(late)
    late.announce()
    await strict.until(lambda: late.peer.idle)
    assert strict.wakeups.idle == 1
    strict.wakeups.ready("default", 2)
    assert not late.peer.idle
    strict.wakeups.claimed(f"{token} {'0' * 16}")
    assert await late.message() == DEFAULT, "the hint that nobody got"


async def test_a_question_is_asked_again(strict: WakeupsHarness, clock: StoppedClock) -> None:
    """The question may have been lost, or the publication of the claim."""
    worker = await strict.worker()
    token = await asked(worker)
    strict.wakeups.check()
    assert not worker.has_message()
    clock.now_s += 10
    strict.wakeups.check()
    assert [topics.token_in(frame) for frame in await worker.frames()] == [token, ""]


async def test_nothing_is_kept_of_a_connection_that_was_cut_off(strict: WakeupsHarness) -> None:
    worker = await confirmed(strict)
    token = worker.peer.token
    for number in range(10):
        worker._socket.subscribe(b"unknown%d" % number)
    await strict.until(lambda: worker.peer not in strict.peers())
    strict.wakeups.claimed(token)
    assert strict.wakeups.idle == 0
