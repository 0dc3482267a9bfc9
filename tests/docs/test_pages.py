"""Shipped pages have no placeholder, no dead link, no name of a missing file or module, and only plain words.

The words are checked in the docstrings and comments of the package, too.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.plain_words import EXCEPTIONS, RELATIVE_START, UNTIL_REWRITTEN, WORDS

ROOT = Path(__file__).parents[2]
PLACEHOLDER = re.compile(r"\b(?:XX+|TODO|FIXME|TBD)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.~-])(?:kingtask|tests|deploy|etc)/[\w./*-]*[\w/*]")
MODULE = re.compile(r"(?<![\w/.@-])kingtask(?:\.[A-Za-z_]\w*)+")
OTHER_NAMES = {
    "kingtask.conf": "a file of sysusers.d and tmpfiles.d on a host",
    "kingtask.Example": "a class of the client in Java",
    "kingtask.main": "a method of the click group",
}
"""Names that resemble files and modules of this project, each with its meaning."""


def _pages() -> Iterator[Path]:
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md")
    yield from (ROOT / "kingtask").rglob("*.md")
    yield from (ROOT / "etc").glob("*.yaml")
    yield from (path for path in (ROOT / "tests").rglob("README.md") if "node_modules" not in path.parts)
    for top in (".github", "deploy"):
        yield from (path for path in (ROOT / top).rglob("*") if path.is_file() and path.suffix != ".json")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PAGES = sorted(_pages(), key=_name)
SOURCES = sorted([*(ROOT / "kingtask").rglob("*.py"), *(ROOT / "kingtask").rglob("*.lua")], key=_name)
every_page = pytest.mark.parametrize("page", PAGES, ids=_name)


# ── links and names ──────────────────────────────────────────────────────────────────────────────────────────────────


@every_page
def test_no_placeholder_is_left(page: Path) -> None:
    assert not PLACEHOLDER.findall(page.read_text("utf-8"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings by GitHub's rule: a repeated one gets a number."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")
        while anchor in found:
            found[anchor] += 1
            anchor = f"{anchor}-{found[anchor]}"
        found[anchor] = 0
    return frozenset(found)


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield link


def prose(text: str) -> str:
    """Remove fenced blocks and inline code."""
    return re.sub(r"(`+)[^`]+?\1", "", FENCE.sub("", text))


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not list(dead_links(page))


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `kingtask dev`, [a link](x)\n\n```\n# a comment\n```\n\n## Keys & co\n\n## Keys\n\n## Keys\n")
    assert anchors(page) == {"kingtask-dev-a-link", "keys--co", "keys", "keys-1"}
    page = tmp_path / "links.md"
    page.write_text("# One\n\n[a](#one) [b](#two) [c](page.md#keys-1) [d](other.md) [e](https://x/#y) `[f](#three)`\n")
    assert list(dead_links(page)) == ["#two", "other.md"]


@cache
def is_module_or_member(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@cache
def files() -> frozenset[str]:
    """The names of the files of the source, without those of tools."""
    return frozenset(
        path.name for top in ("kingtask", "deploy", "etc", "tests") for path in (ROOT / top).rglob("*kingtask*")
    )


def missing_names(text: str) -> list[str]:
    """Return the paths and modules of this project that a text names and that do not exist."""
    paths = [path for path in PATH.findall(text) if not list(ROOT.glob(path.rstrip("/.")))]
    modules = [name for name in MODULE.findall(text) if name not in files() and not is_module_or_member(name)]
    return [name for name in paths + modules if name not in OTHER_NAMES]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=_name)
def test_every_file_and_module_that_is_named_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not missing_names(text if path in PAGES else "\n".join(notes(path)))


def test_other_names_do_not_exist() -> None:
    assert not [name for name in OTHER_NAMES if (ROOT / name).exists() or is_module_or_member(name)]


def test_a_missing_file_and_a_missing_module_are_found() -> None:
    assert missing_names("`kingtask.broker.desk`, kingtask/broker/edge.py, tests/nothing/") == [
        "kingtask/broker/edge.py",
        "tests/nothing/",
        "kingtask.broker.desk",
    ]
    assert not missing_names(
        "kingtask.Client.submit, kingtask/guide/*.md, tests/faults, /etc/kingtask/x, {kingtask}:x, kingtask.target"
    )


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def docstrings(text: str) -> Iterator[str]:
    """Yield the docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def notes(path: Path) -> list[str]:
    """Return the docstrings and comments of a source, or the text of a page."""
    text = path.read_text("utf-8")
    match path.suffix:
        case ".lua":
            return re.findall(r"--(?:\[\[(?s:.*?)\]\]|(?!\[\[).*)", text)
        case ".py":
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            return [*docstrings(text), *(token.string for token in tokens if token.type == tokenize.COMMENT)]
        case _:
            return [text.partition("\n## ")[0] if _name(path) in UNTIL_REWRITTEN else text]


def wrong_words(name: str, text: str) -> Iterator[str]:
    """Yield each listed word with its surroundings and the advice."""
    text = re.sub(r"[\s#]+", " ", prose(text))
    for file, words in EXCEPTIONS:
        if file == name:
            text = text.replace(words, "")
    for word in WORDS:
        for match in word.pattern.finditer(text):
            yield f"{name}: …{text[max(0, match.start() - 40) : match.end() + 20]}… ({word.instead})"


def complaints(path: Path) -> list[str]:
    name = _name(path)
    found = [complaint for note in notes(path) for complaint in wrong_words(name, note)]
    if path.suffix == ".py":
        starts = [text for text in docstrings(path.read_text("utf-8")) if RELATIVE_START.match(text)]
        found += [f"{name}: {text[:60]!r} (begin with a verb or a noun)" for text in starts]
    return found


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=_name)
def test_the_words_are_plain(path: Path) -> None:
    found = complaints(path)
    assert not found, "\n".join(found)


def test_lists_name_existing_files_and_words_that_stand_there() -> None:
    paths = {_name(path): path for path in [*PAGES, *SOURCES]}
    assert not set(UNTIL_REWRITTEN) - set(paths)
    for (name, words), reason in EXCEPTIONS.items():
        assert reason
        assert words in re.sub(r"[\s#]+", " ", prose("\n".join(notes(paths[name]))))


def test_wrong_words_are_found_and_code_is_left_alone() -> None:
    found = list(wrong_words("x", "A worker looks\n# again and shall retry."))
    assert [text.partition("(")[2] for text in found] == ["must)", "poll, rescan, check again)"]
    assert not list(wrong_words("x", "`told`, gold, a shallow\n```\nmend it\n```\n"))
