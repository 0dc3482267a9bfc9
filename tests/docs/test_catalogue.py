"""The catalogue of faults and bad input, and the index of tests: each name that is cited is defined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import CASES
from tests.faults.rules import INVARIANTS

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "tests" / "faults"
PLACES = (
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "setup.cfg",
    ".github",
    ".ci",
    "deploy",
    "etc",
    "kingtask",
    "tests",
)
TEXT = {".md", ".py", ".lua", ".yaml", ".yml", ".toml", ".cfg", ".sh", ".c", ".conf", ".acl", ".service", ""}
FAULT = re.compile(r"(?<![\w#.-])F\d{2}(?:[A-Z]|-(?!\w))?(?!\w)")
BAD_INPUT = re.compile(r"(?<![\w#.-])B[1-9](?:\.\d+)?(?![\w-])")


def first_cells(page: Path) -> list[str]:
    rows = re.findall(r"^\| ([^|]+) \|", page.read_text("utf-8"), re.MULTILINE)
    return [row.strip() for row in rows]


def defined(pattern: re.Pattern[str], *pages: Path) -> list[str]:
    return [cell for page in pages for cell in first_cells(page) if pattern.fullmatch(cell)]


def texts() -> Iterator[tuple[str, str]]:
    """Every text file of the repository by its path, but not what a build or a test run left."""
    for place in PLACES:
        for path in sorted([ROOT / place, *(ROOT / place).rglob("*")]):
            name = str(path.relative_to(ROOT))
            if (
                path.suffix in TEXT
                and path.is_file()
                and not re.search(r"node_modules|__pycache__|/target/|\.egg", name)
            ):
                text = path.read_text("utf-8", "replace")
                if "\0" not in text:
                    yield name, text


def test_every_fault_case_is_defined_once() -> None:
    cases = defined(re.compile(r"F\d\d[A-Z]?-?|B1"), FAULTS / "CATALOGUE.md")
    assert sorted(cases) == sorted({*CASES, "F30"})  # F30 is a part of F08


def test_every_invariant_is_defined_once() -> None:
    assert defined(re.compile(r"I\d+"), FAULTS / "CATALOGUE.md") == list(INVARIANTS)


def test_rows_of_bad_input_stand_once_and_in_their_group() -> None:
    text = (FAULTS / "BADINPUT.md").read_text("utf-8")
    groups = {re.findall(r"^B\d", part)[0]: part for part in text.split("\n## ")[1:]}
    assert list(groups) == ["B1", "B2", "B3", "B4"]
    for group, part in groups.items():
        rows = re.findall(r"^\| (B\d)\.(\d+) \|", part, re.MULTILINE)
        numbers = [int(number) for _, number in rows]
        assert {name for name, _ in rows} == {group}
        assert numbers == sorted(set(numbers))


def test_every_fault_case_and_row_that_is_cited_is_defined() -> None:
    known = {*defined(FAULT, FAULTS / "CATALOGUE.md"), *defined(BAD_INPUT, FAULTS / "BADINPUT.md")}
    known |= {"B1", "B2", "B3", "B4"}
    cited = {(name, found) for name, text in texts() for found in FAULT.findall(text) + BAD_INPUT.findall(text)}
    assert len({found for _, found in cited if found.startswith("F")}) > 50, "the search finds what is cited"
    assert {found for _, found in cited} >= {"B2.72", "B3.84"}
    assert sorted((name, found) for name, found in cited if found not in known) == []


@pytest.mark.parametrize("page", ["tests/README.md", "tests/faults/BADINPUT.md", "tests/faults/CATALOGUE.md"])
def test_every_file_that_a_page_of_tests_names_exists(page: str) -> None:
    path = ROOT / page
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)", text)
    names = {*links, *re.findall(r"(?:[\w.-]+/)*test_\w+\.py", re.sub(r"\[[^]]*\]\(", "(", text))}
    bases = (ROOT, ROOT / "tests", path.parent)
    assert sorted(name for name in names if not any((base / name).exists() for base in bases)) == []


def test_the_index_names_every_directory_of_tests_and_every_test_file() -> None:
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    files = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").glob("*/test_*.py")}
    directories = {path.split("/")[0] for path in files}
    assert sorted(name for name in directories if f"| `{name}/` |" not in text) == []
    index = text.partition("## Behaviour and file")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", index))
    unindexed = {"bench", "interop", "faults"}  # they have pages of their own
    assert sorted(name for name in files - named if name.split("/")[0] not in unindexed) == []
