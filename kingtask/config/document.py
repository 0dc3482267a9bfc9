"""Read a YAML file with the line of each value, so that every error names file, line and key.

Only plain YAML is accepted: no tags that build objects, no aliases (a few lines of them expand without bound), no
duplicate keys.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kingtask.errors import ConfigurationError
from kingtask.validation import show

MAX_BYTES = 1_048_576
"""A configuration file has a few hundred lines; a larger file was named by mistake."""


def located(path: str | Path, error: ConfigurationError) -> ConfigurationError:
    """Add file and line to an error that was found only in use; its text begins with the key."""
    message = str(error)
    key = message.partition(":")[0]
    try:
        file = read(path)
    except ConfigurationError:  # changed meanwhile
        return ConfigurationError(f"{path}: {message}")
    return file.error(key if key in file.values else None, message)


class Document(NamedTuple):
    """The map in one file. `path` is as the user gave it; `lines` has the line of each value by its place."""

    path: str
    values: dict[str, Any]
    lines: dict[str, int]

    def error(self, field: str | None, message: str) -> ConfigurationError:
        """Return an error about `field` (`key`, `key[1]`, `key.inner`), with which `message` begins."""
        place = field or ""
        if place.endswith("[0]") and place not in self.lines:  # in the file it is a value, not a list
            key = place.removesuffix("[0]")
            place, message = key, message.replace(place, key, 1)
        while place and place not in self.lines:
            place = re.sub(r"(\[[^\[]*\]|\.?[^.\[]+)\Z", "", place)
        where = f"{self.path}:{self.lines[place]}" if place else self.path
        return ConfigurationError(f"{where}: {message}")


def with_lists(values: dict[str, Any], lists: Collection[str]) -> dict[str, Any]:
    """Return a map without the keys that have no value (they have their default); `lists` may have one value alone."""
    return {
        key: value if isinstance(value, list) or key not in lists else [value]
        for key, value in values.items()
        if value is not None
    }


def read(path: str | Path) -> Document:
    """Read one file. Raises ConfigurationError if it cannot be read or is not a map in plain YAML."""
    name = str(path)
    text = _text(name)
    lines: dict[str, int] = {}
    try:
        loader = _PlainLoader(text)
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":  # nothing but comments
            return Document(name, {}, lines)
        if not isinstance(root, yaml.MappingNode):
            raise _wrong(name, root.start_mark, "expected lines of the form `key: value`")
        _index(name, root, "", lines)
        values: dict[str, Any] = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(part for part in (error.context, error.problem) if part)
        if "alias" in problem:
            problem += "; a value that begins with * needs quotes"
        raise _wrong(name, error.problem_mark or error.context_mark, problem) from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow, a date such as 2026-02-30
        raise ConfigurationError(f"{name}: is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigurationError(f"{name}: is nested too deep") from None
    return Document(name, values, lines)


def _text(name: str) -> str:
    path = Path(name)
    if "\0" in name:
        raise ConfigurationError(f"{show(name)}: is not the name of a file")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for its writer
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ConfigurationError(f"{name}: is {kind}; name the YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{name}: is longer than {MAX_BYTES:,} bytes; is it the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{name}:{line}: is not UTF-8 text (byte 0x{content[error.start]:02x})") from None
    if not text.strip():
        raise ConfigurationError(f"{name}: is empty")
    return text


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not accepted", mark)
        return super().compose_node(parent, index)


def _index(name: str, node: yaml.Node, path: str, lines: dict[str, int]) -> None:
    """Record the line of every value below `node`. Raises on a key that is not text or appears twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = show(key.value) if isinstance(key, yaml.ScalarNode) else "a list or map"
                raise _wrong(name, key.start_mark, f"expected a word as key, got {shown}")
            place = f"{path}.{key.value}" if path else key.value
            if place in lines:
                raise _wrong(name, key.start_mark, f"{place}: stands here twice (first on line {lines[place]})")
            lines[place] = key.start_mark.line + 1
            _index(name, value, place, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[f"{path}[{i}]"] = value.start_mark.line + 1
            _index(name, value, f"{path}[{i}]", lines)


def _wrong(name: str, mark: yaml.Mark | None, problem: str) -> ConfigurationError:
    where = f"{name}:{mark.line + 1}" if mark is not None else name
    return ConfigurationError(f"{where}: {problem}")
