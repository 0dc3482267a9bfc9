"""deploy/redis/kingtask.acl and store/rights.py, compared with the commands that the library and the daemons use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kingtask.store import library, rights
from kingtask.store.keys import Keys

TOP = Path(__file__).parents[2]
FILE = TOP / "deploy" / "redis" / "kingtask.acl"
CALLS: dict[rights.Role, set[str]] = {
    "broker": set("submit requeue tick cancel forget pause wait open mark clock get states list stats queues".split()),
    "worker": set("claim extend finish finish_cut release mark".split()),
}
"""The functions that each role calls."""
COMMAND = r"(?:(?<![\w.])|redis\.p)call\("
DOCTOR = "inspect.py"
"""Sends its commands as the broker's user."""
NOT_TRIED: dict[rights.Role, set[str]] = {
    "broker": set("config|get fcall_ro function|list info ping select wait".split()),
    "worker": set("config|get function|list info ping select wait".split()),
}
"""Commands of a role that doctor does not try: another finding reports a missing one, or nothing depends on it."""


def granted(role: str) -> set[str]:
    (line,) = [line for line in FILE.read_text().splitlines() if line.startswith(f"user kingtask-{role} ")]
    return {word[1:] for word in line.split() if word.startswith("+")}


def reached() -> dict[str, set[str]]:
    """The commands that each function of the library may execute, through all that it calls.

    A local function is visible in its source, one of the first source and of a module table everywhere.
    """
    bodies: dict[tuple[str, str], str] = {}
    registered: dict[str, tuple[str, str]] = {}
    for source in library.sources():
        text = re.sub(r"--\[\[.*?--\]\]", "", source.read_text("utf-8"), flags=re.DOTALL)
        text = re.sub(r"--[^\n]*", "", text)
        for match in re.finditer(r"^(?:local )?function ([\w.]+)\(.*$", text, re.MULTILINE):
            end = match.end() if match[0].rstrip().endswith(" end") else text.index("\nend", match.start())
            bodies[source.name, match[1]] = text[match.start() : end]
        for name, function in re.findall(r"^register\('(\w+)', (\w+)", text, re.MULTILINE):
            registered[name] = source.name, function

    def commands(function: tuple[str, str], seen: set[tuple[str, str]]) -> set[str]:
        seen.add(function)
        body = bodies[function]
        found = re.findall(COMMAND + r"\s*'([A-Z]+)'", body)
        assert len(found) == len(re.findall(COMMAND, body)), f"{function}: every command must be a literal"
        words = set(re.findall(r"(?<![.'\w])([\w.]+)(?=[(,)])", body))  # called, or passed on as to pcall
        for source, name in bodies:
            visible = source in (function[0], "00_model.lua") or "." in name
            if name in words and visible and (source, name) not in seen:
                found += commands((source, name), seen)
        return set(found)

    return {name: {word.lower() for word in commands(function, set())} for name, function in registered.items()}


def sent(role: rights.Role) -> set[str]:
    """The commands that the daemons and `doctor` send as this user."""
    found = set()
    for path in (TOP / "kingtask" / "store").rglob("*.py"):
        if path.name == "rights.py" or (path.name == DOCTOR and role == "worker"):
            continue
        for word, second in re.findall(r'(?<! in )\(\s*"([A-Z_]{2,})"(?:, "([A-Z]+)")?', path.read_text()):
            found.add(f"{word}|{second}".lower() if word in ("CONFIG", "FUNCTION") else word.lower())
    found.discard("auth")  # needs no right
    return found - {"subscribe"} if role == "worker" else found  # only a broker has channels


@pytest.mark.parametrize("role", CALLS)
def test_each_granted_command_is_used_and_each_used_one_is_granted(role: rights.Role) -> None:
    functions = reached()
    assert set(functions) == CALLS["broker"] | CALLS["worker"]
    within = set().union(*(functions[name] for name in CALLS[role]))
    assert granted(role) == within | sent(role)


@pytest.mark.parametrize("role", CALLS)
def test_doctor_tries_each_granted_command_or_says_that_it_does_not(role: rights.Role) -> None:
    assert set(rights.trials(Keys("kingtask"), role)) | NOT_TRIED[role] == granted(role)
