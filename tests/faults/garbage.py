"""What no peer in good order would send: messages, bytes on a connection, words on the wakeup socket."""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from kingtask import protocol, topics, wire
from tests import zmtp

ID = str(uuid.UUID(int=0x6F1C2B8E4C1D4D1E9A520C6D5B0A7F11))
_REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ping", {}),
    ("submit", {"task": {"id": ID, "name": "example", "args": ["12", "45"], "retry": [5, 8, 9]}}),
    ("submit", {"tasks": [{"name": "example", "stdin": b"\xff", "env": {"A": "b"}}] * 3}),
    ("get", {"id": ID}),
    ("cancel", {"id": ID}),
    ("requeue", {"id": ID, "new_id": ID}),
    ("forget", {"id": ID}),
    ("list", {"state": "failed", "queue": "default", "limit": 5}),
    ("pause", {"queue": "other"}),
)
VALID: tuple[bytes, ...] = tuple(protocol.encode_request(n, op, fields) for n, (op, fields) in enumerate(_REQUESTS))


def messages(chance: random.Random) -> Iterator[list[bytes]]:
    """Messages without end, as frames; nearly all of them wrong. None is empty, so each gets one answer."""
    while True:
        kind = chance.choice(_MESSAGES)
        frames = kind(chance)
        if any(frames):
            yield frames


def _mutated(chance: random.Random) -> list[bytes]:
    message = bytearray(chance.choice(VALID))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(message) + 1)
        match chance.randrange(5):
            case 0:
                message[at : at + 1] = chance.randbytes(1)
            case 1:
                del message[at : at + chance.randint(1, 8)]
            case 2:
                message[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                message[at:at] = message[chance.randrange(len(message) + 1) :][:20]
            case _:
                message[at:at] = _head(chance)
    return [bytes(message)]


def _cut(chance: random.Random) -> list[bytes]:
    message = chance.choice(VALID)
    return [message[: chance.randrange(1, len(message))]]


def _head(chance: random.Random) -> bytes:
    """Of a string, array, map or ext that is far longer than the message."""
    return chance.choice((b"\xdb", b"\xdd", b"\xdf", b"\xc6", b"\xc9")) + struct.pack(">I", chance.getrandbits(32))


def _value(chance: random.Random, depth: int = 0) -> object:
    match chance.randrange(9 if depth < 12 else 7):
        case 0:
            return chance.getrandbits(64) - 2**63
        case 1:
            return chance.choice((float("nan"), float("inf"), -0.0, 1e308))
        case 2:
            return chance.choice((None, True, False))
        case 3:
            return chance.randbytes(chance.randrange(20))
        case 4 | 5 | 6:
            return "".join(chr(chance.choice((0, 10, 65, 0x202E, 0x1F600))) for _ in range(chance.randrange(6)))
        case 7:
            return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {str(chance.randrange(9)): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def _fields(chance: random.Random) -> list[bytes]:
    fields = {chance.choice(("id", "task", "tasks", "state", "queue", "limit", "x")): _value(chance) for _ in range(3)}
    return [wire.pack({"v": 1, "rid": 1, "op": chance.choice(list(protocol.OPS)), **fields})]


def _frames(chance: random.Random) -> list[bytes]:
    return [chance.choice((b"", b"x", chance.choice(VALID))) for _ in range(chance.choice((2, 3, 4, 9, 300)))]


def _nested(chance: random.Random) -> list[bytes]:
    return [b"\x81\xa1a" + chance.choice((b"\x91", b"\x81\xa1a")) * chance.choice((9, 1025, 10_000)) + b"\xc0"]


_MESSAGES: tuple[Callable[[random.Random], list[bytes]], ...] = (
    *(_mutated,) * 12,
    *(_cut,) * 3,
    *(_fields,) * 4,
    lambda chance: [chance.randbytes(chance.randint(1, 300))],
    lambda chance: [wire.pack(_value(chance))],
    lambda chance: [_head(chance)],
    _frames,
    _nested,
)


SHAKEN = zmtp.GREETING + zmtp.ready()

_OPENINGS: tuple[bytes, ...] = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"*1\r\n$4\r\nPING\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\0" * 64,
    b"\xff" * 64,
    zmtp.VERSION_1,
    zmtp.VERSION_2,
    b"",
)


def openings(chance: random.Random) -> Iterator[bytes]:
    """How connections begin, without end: other protocols, and greetings of ZMTP cut at every byte."""
    cuts = 0
    while True:
        yield from _OPENINGS
        for _ in range(4):
            cuts = cuts % len(SHAKEN) + 1
            yield SHAKEN[:cuts]
        yield zmtp.VERSION_2[: chance.randrange(len(zmtp.VERSION_2))]
        yield zmtp.GREETING + zmtp.ready(chance.choice(("SUB", "PUSH", "TEAPOT")))


def after_handshake(chance: random.Random) -> bytes:
    """What a connection that has shaken hands may still do wrong: frames far too long, commands, random ones."""
    match chance.randrange(5):
        case 0:
            return b"\x02" + struct.pack(">Q", chance.choice((2**20, 2**32, 2**63, 2**64 - 1)))
        case 1:
            return zmtp.frame(chance.randbytes(chance.randrange(200)), zmtp.COMMAND)
        case 2:
            return zmtp.frame(b"x", zmtp.MORE) * chance.randrange(3_000)
        case 3:
            return zmtp.frame(chance.randbytes(chance.randrange(100_000)))
        case _:
            return b""


def words(chance: random.Random) -> Iterator[bytes]:
    """Bursts of 1,000 words for the wakeup socket: topics random, known and far too long; on and off; messages."""
    on, off = (zmtp.frame(bytes([switch]) + topics.ready_topic("default")) for switch in (1, 0))
    while True:
        yield b"".join(zmtp.frame(b"\1" + chance.randbytes(45)) for _ in range(1_000))
        yield b"".join(zmtp.frame(b"\1r" + chance.randrange(4096).to_bytes(2, "big")) for _ in range(1_000))
        yield b"".join(zmtp.frame(b"\1" + chance.randbytes(200)) for _ in range(1_000))
        yield (on + off) * 500
        yield b"".join(zmtp.frame(b"\0" + chance.randbytes(2)) for _ in range(1_000))
        yield zmtp.frame(b"hello") * 1_000
        yield zmtp.frame(b"\1" + b"x" * 65_536) * 16
