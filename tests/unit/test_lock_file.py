"""deploy/requirements.lock: it has every dependency in a release that setup.cfg allows, and a hash for each file."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[2]
LOCK = TOP / "deploy" / "requirements.lock"
PYTHONS = ("3.11.0", "3.11.9", "3.12.0", "3.13.0")


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each requirement, with the rest of its entry: one line for each hash."""
    entries = re.sub(r"^ *#.*\n", "", LOCK.read_text(), flags=re.MULTILINE).replace(" \\\n", "\n").strip()
    found: list[tuple[Requirement, list[str]]] = []
    for line in entries.splitlines():
        if line.startswith(" "):
            found[-1][1].append(line.strip())
        else:
            found.append((Requirement(line), []))
    return found


def required() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    return [Requirement(line) for line in setup["options"]["install_requires"].split()]


def versions(python: str) -> dict[str, str]:
    """What pip installs with this Python."""
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    return {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each, _ in locked()
        if each.marker is None or each.marker.evaluate(environment)
    }


@pytest.mark.parametrize(("requirement", "hashes"), locked(), ids=lambda value: getattr(value, "name", ""))
def test_each_entry_is_one_release_with_the_hashes_of_its_files(requirement: Requirement, hashes: list[str]) -> None:
    assert [each.operator for each in requirement.specifier] == ["=="]
    assert not requirement.url
    assert len(hashes) >= 2, "of a wheel and of the source"
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_setup_cfg_requires_is_locked_within_its_bounds(python: str) -> None:
    found = versions(python)
    assert len(required()) > 5
    for requirement in required():
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_what_they_require_themselves_is_locked_too(python: str) -> None:
    """As the installed releases say it, which may be newer than those that are locked; older ones are not asked."""
    found = versions(python)
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python, "extra": ""}
    looked_at = 0
    for name in found:
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # only for another Python
            continue
        looked_at += 1
        if Version(importlib.metadata.version(name)) < Version(found[name]):
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), (name, requirement)
    assert looked_at > 5


def test_the_page_says_how_the_file_is_made() -> None:
    """The head of the file has the command that made it; the page has the same, with --upgrade."""
    made = LOCK.read_text().splitlines()[1].removeprefix("#").strip()
    page = (TOP / "deploy" / "README.md").read_text()
    assert made.replace("uv pip compile", "uv pip compile --upgrade") in page
    assert "--require-hashes -r deploy/requirements.lock" in page
