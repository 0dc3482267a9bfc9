"""PROTOCOL.md as its tests read it: sections and tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from msgspec import inspect

from kingtask import protocol, validation

PAGE = Path(protocol.__file__).with_name("PROTOCOL.md")
TEXT = PAGE.read_text("utf-8")

Row = list[str]


def section(title: str) -> str:
    """What stands under one heading, up to the next of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[2]


def tables(text: str) -> dict[str, list[Row]]:
    """Each table by the title of its first column; cells without their backquotes."""
    found: dict[str, list[Row]] = {}
    title = ""
    rows: list[Row] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            title = ""
            continue
        cells = [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]
        if not title:
            title, rows = cells[0].strip(" |"), []
            found[title] = rows
        elif not line.startswith("|---"):
            rows.append([cell.removesuffix(" |") for cell in cells])
    return found


def documented(text: str, title: str = "field") -> dict[str, Row]:
    rows = tables(text).get(title, [])
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1:] for row in rows}


def describe(kind: Any) -> str:
    """Describe the values of a type, as PROTOCOL.md does."""
    shape = validation.bare(validation.shape_of(kind))
    match shape:
        case inspect.VarTupleType() | inspect.ListType() if not isinstance(shape.item_type, inspect.AnyType):
            return f"{validation.words(shape)}, each {validation.words(shape.item_type)}"
        case inspect.DictType() if not isinstance(shape.value_type, inspect.AnyType):
            return f"{validation.words(shape)}, each {validation.words(shape.value_type)}"
        case _:
            return validation.words(shape)
