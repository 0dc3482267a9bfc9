"""Inputs to begin with, and those that once were found to do harm."""

from __future__ import annotations

from pathlib import Path

from tests.interop.vectors import VECTORS

FINDINGS = Path(__file__).with_name("findings")


def seeds(before: bytes = b"") -> dict[str, bytes]:
    """The messages of the vectors, requests and replies, each behind the given bytes."""
    found = {}
    for number, vector in enumerate(VECTORS):
        for side, message in (("request", vector.request), ("reply", vector.reply)):
            found[f"{number}-{side}"] = before + message.body
    return found


def findings() -> list[bytes]:
    """Without what stands before the message in the router's inputs."""
    found = []
    for path in sorted(FINDINGS.glob("*-*")):
        data = path.read_bytes()
        found.append(data[1:] if path.name.startswith("router-") else data)
    return found
