"""The XPUB: hints to workers that a queue has something to claim or that a task is to be cancelled.

A worker that is idle says so, and is told of one task; then it claims, and says so again if it still has room. One that
has become full since hands back what it is told. So a task wakes one worker and not all of them, none is told twice of
what it did not look for yet, and what came while nobody was idle is told to those who become so.

libzmq remembers every topic that a peer asks for until it leaves, also one that is refused here (200 bytes took 10 KB),
and looks through all of them whenever a connection ends. So topics are short, longer words are not even read, and a
connection that says too much is cut off. A wakeup that is lost costs a worker's `period`, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

from kingtask import topics
from kingtask.broker import counters
from kingtask.broker.counters import Counters
from kingtask.broker.descriptors import cut_off, is_still
from kingtask.broker.flood_guard import PartialMessageGuard
from kingtask.broker.router import DRAIN_US, NOBLOCK, NOBLOCK_MORE, bind, prepare
from kingtask.clock import monotonic_us
from kingtask.errors import ConfigurationError

if TYPE_CHECKING:
    from kingtask.broker.auth import CurveAuth

MAX_WORD_BYTES = 48
"""A topic has three; the handshake, which must fit too, some forty."""
MAX_GUARDED_BYTES = 512
"""The same with CURVE: its handshake has some 330, and 33 come with each word."""
MAX_TOPICS = 258
"""Of one connection: a worker subscribes to each of its queues (256 at most), to its own name, and as idle."""
WORDS_A_SECOND = 5_000
"""What a connection may say: a worker says at most two for each time that it is told. One takes some 10 µs."""
MAX_STRAY = 4
"""Of these, what we do not understand; a newer worker may have topics that are new to us."""
MAX_UNREAD = 16
"""Words of a connection that libzmq takes in before they are counted here. With 1,000 words of 200 bytes a storm of 64
connections stopped the loop for 6 s when they ended."""
RECEIVE_BYTES = 2_048
"""Of the kernel's buffer: what libzmq takes at once it works through, also when the connection is cut off."""
FIRST_SWEEP = 1_024


class WakeupPeer:
    """What one connection has said. It is known by the inode of its socket, which no other one has while it lives."""

    __slots__ = ("cut", "fd", "idle", "inode", "key", "named", "queues", "second", "stray", "told", "topic", "words")

    def __init__(self, fd: int, inode: int) -> None:
        self.fd = fd
        self.inode = inode
        self.key = ""
        """With which it came through the gate."""
        self.queues: set[bytes] = set()
        self.named: set[bytes] = set()
        """For cancels."""
        self.topic = b""
        """Its own, which nobody else is subscribed to."""
        self.idle = False
        self.told = b""
        """Since it was idle."""
        self.second = self.words = self.stray = 0
        self.cut = False


class Wakeups:
    """Owns the XPUB socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        counters: Counters,
        hoards: PartialMessageGuard | None = None,
        gate: CurveAuth | None = None,
    ) -> None:
        self._gate = gate
        self._counters = counters
        self._hoards = hoards
        self._socket = context.socket(zmq.XPUB)
        prepare(self._socket, gate)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_WORD_BYTES if gate is None else MAX_GUARDED_BYTES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_UNREAD)
        self._socket.setsockopt(zmq.RCVBUF, RECEIVE_BYTES)
        self._socket.setsockopt(zmq.XPUB_MANUAL, 1)
        try:
            bind(self._socket, endpoints, "wakeup")
        except ConfigurationError:
            self._socket.close()
            raise
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look_again = False
        self._lines: dict[int, WakeupPeer] = {}
        self._numbers = itertools.count(1)
        # By the topic of a queue: who is idle, the longest first, and of how many tasks nobody could be told.
        self._idle: dict[bytes, dict[WakeupPeer, None]] = {}
        self._untold: dict[bytes, int] = {}
        self._last = b""
        """Of which queue something was told last."""
        self._sweep_at = FIRST_SWEEP
        self.told = 0
        """Hints that idle workers were given."""

    @property
    def idle(self) -> int:
        """Connections of workers that wait to be told."""
        return sum(line.idle for line in self._lines.values())

    @property
    def anybody(self) -> bool:
        """Whether somebody waits to be told, of any queue."""
        return any(self._idle.values())

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)
        self._read()

    def stop(self) -> None:
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        self._socket.close(0)

    def ready(self, queue: str, tasks: int) -> None:
        self._ready(topics.ready_topic(queue), tasks)

    def soon(self, queue: str) -> bool:
        """Tell of a task that is on its way to Redis; False if nobody is idle: it is to be told when it is there."""
        topic = self._last = topics.ready_topic(queue)
        line = self._longest_idle(topic)
        if line is not None:
            self._tell(line, topic, topics.EARLY)
        return line is not None

    def rehearse(self) -> None:
        """Have a worker look for nothing, so that it is awake for what comes in a moment."""
        for queue in (self._last, *self._idle):
            line = self._longest_idle(queue)
            if line is not None:
                self._tell(line, queue)
                return

    def _ready(self, queue: bytes, tasks: int, more: bytes = b"") -> None:
        self._last = queue
        while tasks and (line := self._longest_idle(queue)) is not None:
            self._tell(line, queue, more)
            tasks -= 1
        if tasks:
            self._untold[queue] = min(self._untold.get(queue, 0) + tasks, len(self._lines))

    def _longest_idle(self, queue: bytes) -> WakeupPeer | None:
        """It is idle no longer, for it is told something."""
        idle = self._idle.get(queue)
        while idle:
            line = next(iter(idle))
            self._busy(line)
            if is_still(line.fd, line.inode):
                return line
        return None

    def _tell(self, line: WakeupPeer, queue: bytes, more: bytes = b"") -> None:
        line.told = queue + more
        self.told += 1
        self._publish(line.topic, line.told)

    def cancel(self, worker: str, task_id: str) -> None:
        self._publish(topics.cancel_topic(worker), task_id.encode())

    def _publish(self, topic: bytes, body: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):  # a full pipe drops the hint; the worker polls
            self._socket.send(topic, NOBLOCK_MORE)
            self._socket.send(body, NOBLOCK)
        self._look()  # the descriptor is edge-triggered

    def _look(self) -> None:
        if not self._look_again and self._loop is not None:
            self._look_again = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Take in what the connections say, so much of it at a time that everything else goes on."""
        self._look_again = False
        until_us = monotonic_us() + DRAIN_US
        while monotonic_us() < until_us:
            if self._socket.closed:
                return
            try:
                self._take(self._socket.recv(NOBLOCK, copy=False))
            except zmq.ZMQError:  # nothing there
                return
        self._look()

    def _take(self, frame: zmq.Frame) -> None:
        """A word: one byte (1 on, 0 off), then the topic. Without a connection: libzmq says that one left."""
        if self._hoards is not None and self._hoards.wary:
            self._hoards.heard(frame)
        try:
            fd = int(frame.get("__fd"))
            inode = os.fstat(fd).st_ino
        except (zmq.ZMQError, OSError):
            return
        line = self._lines.get(inode)
        if line is None:
            if len(self._lines) >= self._sweep_at:
                self._sweep()
            line = self._lines[inode] = WakeupPeer(fd, inode)
            if self._gate is not None:
                line.key = self._gate.key_of(frame)
        if line.cut:
            return
        if self._gate is not None and not self._gate.knows(line.key):
            self._end(line, "its key was revoked")
            return
        second = monotonic_us() // 1_000_000
        if second != line.second:
            line.second, line.words = second, 0
        line.words += 1
        word = frame.bytes
        if not (word and word[0] <= 1 and topics.is_topic(word[1:]) and self._said(line, word[1:], word[0] == 1)):
            line.stray += 1
            self._counters.count(counters.UNKNOWN_TOPIC, repr(word))
        subscribed = len(line.queues) + len(line.named)
        if line.words > WORDS_A_SECOND or line.stray > MAX_STRAY or subscribed > MAX_TOPICS:
            self._end(line, f"words={line.words} topics={subscribed} stray={line.stray}")

    def _end(self, line: WakeupPeer, why: str) -> None:
        line.cut = True
        self._busy(line)
        cut_off(line.fd, line.inode)
        self._counters.count(counters.CUT_OFF, why)

    def turn_out(self) -> None:
        """Cut off whom the gate no longer knows."""
        assert self._gate is not None
        for line in list(self._lines.values()):
            if not line.cut and not self._gate.knows(line.key):
                self._end(line, "its key was revoked")

    def _said(self, line: WakeupPeer, topic: bytes, on: bool) -> bool:
        """False if a worker would not have said so."""
        if topic == topics.IDLE_TOPIC:
            if on:
                self._became_idle(line)
            elif line.told:
                told, line.told = line.told, b""
                self._ready(told[: topics.READY_TOPIC_BYTES], 1, told[topics.READY_TOPIC_BYTES :])
            else:
                self._busy(line)
            return True
        subscribed = line.queues if topic[:1] == b"r" else line.named
        if on == (topic in subscribed):
            return on
        idle = line.idle  # libzmq says all again, sorted, after a lost connection: "idle" comes before the queues
        self._busy(line)
        if on:
            subscribed.add(topic)
        else:
            subscribed.remove(topic)
        if subscribed is line.named:
            self._socket.setsockopt(zmq.SUBSCRIBE if on else zmq.UNSUBSCRIBE, topic)
        if idle:
            self._became_idle(line)
        return True

    def _became_idle(self, line: WakeupPeer) -> None:
        if not line.topic:
            line.topic = topics.IDLE_TOPIC + (next(self._numbers) & 0xFFFFFFFF).to_bytes(4, "big")
            self._socket.setsockopt(zmq.SUBSCRIBE, line.topic)
        line.told = b""
        for queue in line.queues:
            if left := self._untold.pop(queue, 0):
                if left > 1:
                    self._untold[queue] = left - 1
                self._busy(line)
                self._tell(line, queue)
                return
        line.idle = True
        for queue in line.queues:
            self._idle.setdefault(queue, {})[line] = None

    def _busy(self, line: WakeupPeer) -> None:
        if line.idle:
            line.idle = False
            for queue in line.queues:
                del self._idle[queue][line]

    def _sweep(self) -> None:
        """Forget the connections that are gone."""
        for line in [line for line in self._lines.values() if not is_still(line.fd, line.inode)]:
            self._busy(line)
            del self._lines[line.inode]
        self._sweep_at = max(FIRST_SWEEP, 2 * len(self._lines))
