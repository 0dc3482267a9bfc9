"""The vectors as tests read them; README.md here says what is in the files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY = Path(__file__).with_name("vectors")


class Message(NamedTuple):
    frames: list[bytes]
    value: Any
    """None if the frames hold no value that JSON can show."""
    canonical: bool
    """False if an encoder would choose other bytes for the value."""

    @property
    def body(self) -> bytes:
        return self.frames[-1]


class Vector(NamedTuple):
    name: str
    decided_by: str
    request: Message
    reply: Message

    @property
    def error(self) -> dict[str, Any] | None:
        error: dict[str, Any] | None = self.reply.value.get("error")
        return error

    @property
    def digest(self) -> str:
        lines = "".join(" ".join(frame.hex() for frame in m.frames) + "\n" for m in (self.request, self.reply))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _from_json(value: Any) -> Any:
    """Bytes stand as `{"$bin": hex}`."""
    match value:
        case {"$bin": str(text)}:
            return bytes.fromhex(text)
        case dict():
            return {key: _from_json(item) for key, item in value.items()}
        case list():
            return [_from_json(item) for item in value]
        case _:
            return value


def _message(side: dict[str, Any]) -> Message:
    frames = [bytes.fromhex(frame) for frame in side["frames"]]
    return Message(frames, _from_json(side.get("value")), side.get("encoding") != "other")


def load() -> list[Vector]:
    return [
        Vector(entry["name"], entry["decided_by"], _message(entry["request"]), _message(entry["reply"]))
        for path in sorted(DIRECTORY.glob("*.json"))
        for entry in json.loads(path.read_text("utf-8"))
    ]


VECTORS = load()


def frozen() -> dict[str, str]:
    """Digest of each vector as it was first published, by name."""
    lines = (DIRECTORY / "FROZEN").read_text("utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition(" ") for line in lines)}


def without_text(reply: dict[str, Any]) -> dict[str, Any]:
    """The message is for people: it may read otherwise in any release."""
    return {**reply, "error": {name: value for name, value in reply["error"].items() if name != "message"}}
