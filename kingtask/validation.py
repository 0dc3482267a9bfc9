"""Convert decoded values to typed ones; an error names the place, the expected type and the value. Pure.

msgspec decides what is valid. Only when it refuses does this module describe the type at that place, so that the
error names every bound and its text depends on the types alone: `retry[1]: expected a number from 0 to 2,592,000,
got -1`. A type whose rule is hard to read (a pattern) carries its words as the `description` of its Meta.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from kingtask.errors import InvalidRequest

T = TypeVar("T")

SHOWN = 64
"""Characters of a value or name that an error message repeats."""


def convert(value: Any, kind: type[T], place: str = "") -> T:
    """Convert `value` to a `kind`; `place` is its path in the request. Raises InvalidRequest naming the path."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise _explain(str(error), value, kind, place) from None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar name, or None."""
    close = get_close_matches(name[:SHOWN], list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def show(value: Any) -> str:
    """Return a value for an error message: short and printable."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case str():
            return ascii(value) if len(value) <= SHOWN else f"{value[:SHOWN]!a}… ({len(value):,} characters)"
        case bytes():
            return f"binary of {_many(len(value), 'byte', 'bytes')}"
        case list() | tuple():
            return f"an array of {_many(len(value), 'entry', 'entries')}"
        case dict():
            return f"a map of {_many(len(value), 'entry', 'entries')}"
        case _:
            text = ascii(value)
            return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _many(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _explain(text: str, value: Any, kind: Any, place: str) -> InvalidRequest:
    """Describe msgspec's error: its text gives the path, the types give the rest."""
    where = _WHERE.search(text)
    shape, path = bare(shape_of(kind)), place
    for name, index in _PATH.findall(where["path"]) if where else ():
        step = _step(value, shape, name, index)
        if step is None:
            break
        suffix, value, shape = step
        path = f"{path}{suffix}" if suffix.startswith("[") or not path else f"{path}.{suffix}"
    if isinstance(shape, inspect.StructType | inspect.DictType) and isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                return _refusal(path, f"expected strings as keys, got {show(key)}")
        if isinstance(shape, inspect.StructType):
            return _explain_fields(value, shape, path)
    return _refusal(path, f"expected {words(shape)}, got {show(value)}")


_WHERE = re.compile(r" - at `(?:key` in `)?\$(?P<path>[^`]*)`\Z")
_PATH = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def _step(value: Any, shape: inspect.Type, name: str, index: str) -> tuple[str, Any, inspect.Type] | None:
    """Follow one part of msgspec's path; return our notation of it, the value and the type there."""
    match shape:
        case inspect.StructType() if name and isinstance(value, dict) and name in value:
            for field in shape.fields:
                if field.encode_name == name:
                    return name, value[name], bare(field.type)
        case inspect.VarTupleType() | inspect.ListType() if index.isdigit() and int(index) < len(value):
            return f"[{index}]", value[int(index)], bare(shape.item_type)
        case inspect.DictType() if index == "...":  # msgspec does not say which entry: the first that is wrong
            inner = bare(shape.value_type)
            for key, item in value.items():
                if not isinstance(item, _PYTHON_TYPES.get(type(inner), object)):
                    return f"[{show(key)}]", item, inner
    return None


_PYTHON_TYPES: dict[type, type] = {inspect.StrType: str, inspect.BytesType: bytes, inspect.DictType: dict}


def _explain_fields(value: dict[str, Any], shape: inspect.StructType, path: str) -> InvalidRequest:
    names = [field.encode_name for field in shape.fields]
    for key in value:
        if key not in names and key != shape.tag_field:
            meant = nearest(key, names)
            name = key[:SHOWN] if key.isprintable() else ascii(key[:SHOWN])
            return _refusal(_under(path, name), "unknown field" + (f"; did you mean {meant}?" if meant else ""))
    for field in shape.fields:
        if field.required and field.encode_name not in value:
            return _refusal(_under(path, field.encode_name), "this field is required")
    return _refusal(path, f"expected {words(shape)}")


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refusal(path: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {message}" if path else message, field=path or None)


@cache
def shape_of(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def bare(shape: inspect.Type) -> inspect.Type:
    """Return the type without "or nil"."""
    if isinstance(shape, inspect.UnionType):
        others = [one for one in shape.types if not isinstance(one, inspect.NoneType)]
        return others[0] if len(others) == 1 else shape
    return shape


def words(shape: inspect.Type) -> str:
    match shape:
        case inspect.Metadata():
            return (shape.extra_json_schema or {}).get("description") or words(shape.type)
        case inspect.IntType():
            return "an integer" + _range(shape.ge, shape.le)
        case inspect.FloatType():
            return "a number" + _range(shape.ge, shape.le)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a string" + _range(shape.min_length or None, shape.max_length, " characters")
        case inspect.BytesType():
            return "binary" + _range(shape.min_length or None, shape.max_length, " bytes")
        case inspect.VarTupleType() | inspect.ListType():
            return "an array" + _range(shape.min_length or None, shape.max_length, " entries")
        case inspect.DictType():
            return "a map" + _range(shape.min_length or None, shape.max_length, " entries")
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in shape.values)
        case inspect.EnumType():
            return "one of " + ", ".join(str(member.value) for member in shape.cls)
        case inspect.UnionType():
            return " or ".join(words(one) for one in shape.types if not isinstance(one, inspect.NoneType))
        case _:
            return "a map"


def _range(least: float | None, most: float | None, unit: str = "") -> str:
    if least is not None and most is not None:
        return f" {'of' if unit else 'from'} {_number(least)} to {_number(most)}{unit}"
    if least is not None:
        return f" of at least {_number(least)}{unit}"
    return f" of at most {_number(most)}{unit}" if most is not None else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
