"""Topics of the wakeup socket (a broker's XPUB, a worker's SUB). A wakeup is a hint, never delivery. Pure.

A topic holds a hash of a name instead of the name. libzmq keeps subscriptions in a tree with one node per byte, and
walks all of it whenever a connection ends (60 ns a node). Short hashes bound that tree, whatever peers subscribe to.
Two names may share a topic: that costs a superfluous hint.
"""

from __future__ import annotations

import re
import zlib

READY_TOPIC_BYTES = 3

IDLE_TOPIC = b"i"
"""A worker subscribes to this topic while it has a free slot and found nothing to claim.

For each task that becomes ready the broker publishes [IDLE_TOPIC + four bytes of its choice, ready_topic] to one idle
worker. It also sends an empty hint now and then, since a worker that has just polled is faster at the next task. After
one hint a worker gets no more until it subscribes again. A worker without room unsubscribes; the broker then sends the
hint to another worker. If a token follows the four bytes, the next claim carries it to Redis, which publishes it.
"""

EARLY = b"+"
"""Suffix of the ready_topic: the task is still on its way to Redis. A worker that finds nothing polls again after twice
EARLY_US. The broker sends a further hint if storing the task took longer than EARLY_US."""
EARLY_US = 5_000

_TOKEN = re.compile(rb"i.{4}([0-9a-f]{16})", re.DOTALL)
_TOPIC = re.compile(rb"i|r[\x00-\x0f].|c.", re.DOTALL)
"""IDLE_TOPIC, every ready_topic, every cancel_topic."""


def ready_topic(queue: str) -> bytes:
    """Return the topic by which a worker announces, once, that it serves the queue; nothing is published under it."""
    return b"r" + (zlib.crc32(queue.encode()) & 0x0FFF).to_bytes(2, "big")


def cancel_topic(worker: str) -> bytes:
    """Return the topic of [topic, task id], published when a task that this worker runs is to be cancelled."""
    return b"c" + (zlib.crc32(worker.encode()) & 0xFF).to_bytes(1, "big")


def is_topic(topic: bytes) -> bool:
    """True for a topic that a worker may subscribe to; a broker ignores any other."""
    return _TOPIC.fullmatch(topic) is not None


def token_in(topic: bytes) -> str:
    """Return the token in the first frame of a hint; empty without one."""
    found = _TOKEN.fullmatch(topic)
    return "" if found is None else found[1].decode()
