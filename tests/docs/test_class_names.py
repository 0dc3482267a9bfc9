"""Each class name has one meaning under tests/."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_each_class_name_is_defined_once() -> None:
    """`_Rig` beside `Rig` counts. Classes of tests (`Test…`) may share a name in different directories."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                name = node.name.lstrip("_")
                key = f"{path.parent.relative_to(TESTS)}/{name}" if name.startswith("Test") else name
                found[key].append(f"{path.relative_to(TESTS)}:{node.lineno}")
    assert len(found) > 100, "the search finds the classes"
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
