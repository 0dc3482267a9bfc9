"""What README.md says of the clients is so."""

from __future__ import annotations

import re

import pytest

from tests.interop.languages import HERE, LANGUAGES

LOCKED = {"go": "go.mod", "node": "package-lock.json", "java": "pom.xml", "rust": "Cargo.lock"}
"""Where versions are decided; C and Ruby have those of the machine."""
ROWS = {
    row[0].strip("`/"): row[1:]
    for line in (HERE / "README.md").read_text().splitlines()
    if len(row := [cell.strip() for cell in line.strip("|").split("|")]) == 6 and row[0].startswith("`")
}


def test_each_language_has_a_row():
    assert set(ROWS) == {*LANGUAGES, "sh"}


@pytest.mark.parametrize("name", ROWS)
def test_lines(name: str):
    """Within ten, so that not every change of a client is one of its row."""
    found = [next((HERE / name).rglob(file)) for file in re.findall(r"[\w/]+\.\w+", ROWS[name][1])]
    assert sum(len(file.read_text().splitlines()) for file in found) == pytest.approx(int(ROWS[name][2]), abs=10)


@pytest.mark.parametrize("name", LANGUAGES)
def test_who_can_have_keys(name: str):
    assert (ROWS[name][3] == "yes") == LANGUAGES[name].curve


@pytest.mark.parametrize("name", LOCKED)
def test_versions(name: str):
    locked = (HERE / name / LOCKED[name]).read_text()
    versions = re.findall(r"\d+\.\d+\.\d+", ROWS[name][0])
    assert len(versions) == 2
    assert [version for version in versions if version not in locked] == []
