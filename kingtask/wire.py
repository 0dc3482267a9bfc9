"""Bytes of the wire: msgpack in and out, with every bound that a hostile message could break (PROTOCOL.md).

Pure. Only this module knows msgpack; the store packs its arguments with it. One message is decoded once, every length
is capped, and ext types, duplicate keys and non-string keys are refused. Any other error of the decoder becomes one
`malformed`.
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec

from kingtask.errors import InvalidRequest
from kingtask.validation import show

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_BATCH = 1000
MAX_DEPTH = 8
MAX_STRING_BYTES = 2 * 1024 * 1024
"""A longer string or binary is not decoded at all. Below it each field has its own limit and is named."""
MAX_LENGTH = 4096
"""Entries of one array or map; a longer one is not decoded at all."""
MAX_CONTAINERS = 8 * MAX_BATCH
"""Arrays and maps in one message. A full batch has 5 a task; 4 MiB of empty maps would take 300 MB and a second."""
MAX_VALUES = 500_000
"""Entries of all arrays and maps in one message. A full batch of tasks with every field full has 432,000."""

_encoder = msgspec.msgpack.Encoder()


def pack(value: Any) -> bytes:
    """Pack as on the wire, with the bin type."""
    return _encoder.encode(value)


def pack_raw(value: Any) -> bytes:
    """Pack without the bin type, for Redis's cmsgpack: str and bytes both become raw strings."""
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def unpack_raw(packed: bytes) -> Any:
    """Undo pack_raw for data that kingtask packed; raw strings come as bytes."""
    return msgpack.unpackb(packed, raw=True, strict_map_key=False)


def unpack(message: bytes) -> Any:
    """Decode a message of a trusted sender, without bounds. Raises InvalidRequest (`malformed`)."""
    try:
        return msgpack.unpackb(message)
    except Exception as error:  # noqa: BLE001  (as in decode)
        raise _undecodable(error) from None


def decode(message: bytes) -> dict[str, Any]:
    """Decode one message as a map. Raises InvalidRequest (`too_big`, `malformed`, `too_deep`, `invalid_request`)."""
    size = len(message)
    if size > MAX_MESSAGE_BYTES:
        raise InvalidRequest(f"expected a message of at most {MAX_MESSAGE_BYTES:,} bytes, got {size:,}", code="too_big")
    containers = values = 0

    def take(items: list[Any]) -> list[Any]:
        nonlocal containers, values
        containers += 1
        values += len(items)
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            raise InvalidRequest("the message holds more arrays, maps or values than any request needs", code="too_big")
        return items

    def take_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        found = {}
        for key, value in take(pairs):
            if type(key) is not str:
                raise InvalidRequest(f"expected strings as keys of a map, got {show(key)}", code="malformed")
            found[key] = value
        if len(found) != len(pairs):
            raise InvalidRequest("a map holds the same key twice", code="malformed")
        return found

    try:
        value = msgpack.unpackb(
            message, object_pairs_hook=take_map, list_hook=take, ext_hook=_refuse_ext, strict_map_key=False, **_LENGTHS
        )
    except InvalidRequest:
        raise
    except msgpack.StackError:
        raise InvalidRequest(f"expected at most {MAX_DEPTH} levels of nesting", code="too_deep") from None
    except Exception as error:  # noqa: BLE001  (the decoder raises seven kinds; all mean the same to the sender)
        raise _undecodable(error) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"expected a map, got {show(value)}")
    if containers > MAX_DEPTH and not _within(value, MAX_DEPTH):
        raise InvalidRequest(f"expected at most {MAX_DEPTH} levels of nesting", code="too_deep")
    return value


_LENGTHS = {
    "max_str_len": MAX_STRING_BYTES,
    "max_bin_len": MAX_STRING_BYTES,
    "max_array_len": MAX_LENGTH,
    "max_map_len": MAX_LENGTH,
    "max_ext_len": MAX_LENGTH,
}


def _refuse_ext(code: int, _: bytes) -> Any:
    raise InvalidRequest(f"msgpack's ext types are not part of the protocol, got type {code}", code="malformed")


def _undecodable(error: Exception) -> InvalidRequest:
    text = str(error) or type(error).__name__
    if "exceeds max_" in text:
        return InvalidRequest(
            f"expected arrays and maps of at most {MAX_LENGTH:,} entries and strings of at most"
            f" {MAX_STRING_BYTES:,} bytes",
            code="too_big",
        )
    return InvalidRequest(f"the message is not msgpack: {text}", code="malformed")


def _within(value: Any, depth: int) -> bool:
    """True if arrays and maps nest no deeper than `depth` levels."""
    level = [value]
    while level:
        if not depth:
            return False
        depth -= 1
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is dict or type(item) is list
        ]
    return True
