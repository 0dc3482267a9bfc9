"""deploy/redis/kingtask.acl and store/rights.py, compared with the commands that the library and the daemons use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from kingtask.store import library, rights
from kingtask.store.keys import Keys
from tests.servers import RedisServer

TOP = Path(__file__).parents[2]
FILE = TOP / "deploy" / "redis" / "kingtask.acl"
CALLS: dict[rights.Role, set[str]] = {
    "broker": set("submit requeue tick cancel forget pause wait open mark clock get states list stats".split()),
    "worker": set("claim extend finish finish_cut release mark".split()),
}
"""The functions that each role calls."""
COMMAND = r"(?:(?<![\w.])|redis\.p)call\("
ONLY_OF_BROKERS = {"config|get", "function|load", "subscribe"}
"""A worker sends `config|get` as well, and does without the answer."""
DOCTOR = "inspect.py"
"""Sends its commands as the broker's user."""
NOT_TRIED: dict[rights.Role, set[str]] = {
    "broker": set("config|get fcall_ro info ping select wait".split()),
    "worker": set("info ping select wait".split()),
}
"""Commands of a role that doctor does not try: another finding reports a missing one, or nothing depends on it."""
OF_TASKS = {"path", "task.path", "unpack(paths)", "unpack(record)"}
"""In the library, names that always hold the key of a task, or begin with it."""
Function = tuple[str, str]
"""A source and a name in it."""


class Granted(NamedTuple):
    """The rights of a user. `keys`: its commands by the pattern of the keys, without the prefix; "" for none."""

    keys: dict[str, set[str]]
    channels: set[str]


def granted(role: str) -> Granted:
    """The line of the file: what it has outside of parentheses, then one group of keys in each."""
    (line,) = [line for line in FILE.read_text().splitlines() if line.startswith(f"user kingtask-{role} ")]
    found: dict[str, set[str]] = {}
    for group in re.sub(r"\(.*?\)", "", line), *re.findall(r"\((.*?)\)", line):
        commands = {word[1:] for word in group.split() if word.startswith("+")}
        patterns = re.findall(r"(%R|)~\{kingtask\}:(\S+)", group)
        assert all("@" not in command for command in commands)
        for mode, pattern in patterns:
            found.setdefault(mode + pattern, set()).update(commands)
    return Granted(found, set(re.findall(r"&\{kingtask\}:(\S+)", line)))


class Reached:
    """What the functions of the library do that a role calls, through all that they call.

    A local function is visible in its source, one of the first source and of a module table everywhere.
    """

    def __init__(self, functions: set[str]) -> None:
        self.registered: dict[str, Function] = {}
        self._bodies: dict[Function, str] = {}
        for source in library.sources():
            text = re.sub(r"--\[\[.*?--\]\]", "", source.read_text("utf-8"), flags=re.DOTALL)
            text = re.sub(r"--[^\n]*", "", text)
            for match in re.finditer(r"^(?:local )?function ([\w.]+)\(.*$", text, re.MULTILINE):
                end = match.end() if match[0].rstrip().endswith(" end") else text.index("\nend", match.start())
                self._bodies[source.name, match[1]] = text[match.start() : end]
            for name, function in re.findall(r"^register\('(\w+)', (\w+)", text, re.MULTILINE):
                self.registered[name] = source.name, function
        self._seen: set[Function] = set()
        for name in functions:
            self._follow(self.registered[name])
        self.text = "\n".join(self._bodies[function] for function in sorted(self._seen))

    def _follow(self, function: Function) -> None:
        self._seen.add(function)
        # called, or passed on as to pcall
        words = set(re.findall(r"(?<![.'\w])([\w.]+)(?=[(,)])", self._bodies[function]))
        for source, name in self._bodies:
            visible = source in (function[0], "00_model.lua") or "." in name
            if name in words and visible and (source, name) not in self._seen:
                self._follow((source, name))

    def calls(self) -> set[tuple[str, str, Function]]:
        """Each command, the expression of its key, and the function that has it."""
        found = set()
        for function in self._seen:
            body = self._bodies[function]
            calls = re.findall(COMMAND + r"\s*'([A-Z]+)'(?:, ([\w.]+(?:\([^()]*\))?))?", body)
            assert len(calls) == len(re.findall(COMMAND, body)), f"{function}: every command must be a literal"
            found |= {(word.lower(), expression, function) for word, expression in calls}
        return found

    def commands(self) -> set[str]:
        return {command for command, _, _ in self.calls()}

    def patterns(self, expression: str, function: Function) -> set[str]:
        """The keys that an expression may mean, as patterns for ACLs."""
        if expression in OF_TASKS:
            return {"task:*"}
        if match := re.fullmatch(r"key\.(peers|seen)\(\w+\)", expression):
            kinds = set(re.findall(r"'(workers|brokers)'", self.text))
            return {kind + {"peers": "", "seen": ":seen"}[match[1]] for kind in kinds}
        if match := re.fullmatch(r"key\.(\w+)(\(.*)?", expression):
            known = KEYS_OF_MODEL[match[1]]
            return {f"{known}:*" if match[2] else known}
        _, name = function
        parameters = re.search(rf"function {re.escape(name)}\(([\w, ]*)\)", self._bodies[function])
        assert parameters is not None
        if expression in (names := parameters[1].split(", ")):
            before = r"[\w.]+, " * names.index(expression)
            passed = re.compile(rf"\b{re.escape(name)}\({before}(key\.\w+\([^()]*\)|[\w.]+)[,)]")
            calls = {
                (each, caller) for caller in self._seen - {function} for each in passed.findall(self._bodies[caller])
            }
            assert calls, f"{function}: which key is {expression}?"
            return set().union(*(self.patterns(each, caller) for each, caller in calls))
        assigned = re.findall(rf"\b{expression}(?:, \w+)* = (key\.\w+(?:\([^()]*\))?)", self._bodies[function])
        assert len(assigned) == 1, f"{function}: which key is {expression}?"
        return self.patterns(assigned[0], function)


def keys_of_model() -> dict[str, str]:
    """By their names in the library: the key, or what stands before its variable part."""
    text = library.sources()[0].read_text("utf-8")
    found = {}
    for pairs in re.findall(r"^  (key\..* = .*)$", text, re.MULTILINE):
        names, _, values = pairs.partition(" = ")
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            found[name.removeprefix("key.")] = "meta" if value == "meta" else value.split("'")[1]
    return found | dict(re.findall(r"^function key\.(\w+)\(\w+\) return prefix \.\. '(\w+):'", text, re.MULTILINE))


KEYS_OF_MODEL = keys_of_model()


def sent(role: rights.Role) -> set[str]:
    """The commands that the daemons and `doctor` send as this user."""
    found = set()
    for path in (TOP / "kingtask" / "store").rglob("*.py"):
        if path.name == "rights.py" or (path.name == DOCTOR and role == "worker"):
            continue
        for word, second in re.findall(r'(?<! in )\(\s*"([A-Z_]{2,})"(?:, "([A-Z]+)")?', path.read_text()):
            found.add(f"{word}|{second}".lower() if word in ("CONFIG", "FUNCTION") else word.lower())
    found.discard("auth")  # needs no right
    return found - ONLY_OF_BROKERS if role == "worker" else found


def test_a_broker_may_call_each_command_that_it_uses_and_no_other() -> None:
    reached = Reached(CALLS["broker"])
    assert set(reached.registered) == CALLS["broker"] | CALLS["worker"]
    assert granted("broker") == ({"*": reached.commands() | sent("broker")}, {"*"})


def test_a_worker_may_write_only_the_keys_that_its_functions_write(server: RedisServer) -> None:
    reached = Reached(CALLS["worker"])
    information: dict[str, Any] = server.client().command()
    needed: dict[str, set[str]] = {"meta": {"fcall"}, "%R*": sent("worker") - {"fcall"}}
    for command, expression, function in reached.calls():
        if "write" in information[command]["flags"]:
            for pattern in reached.patterns(expression, function):
                needed.setdefault(pattern, set()).add(command)
        else:
            needed["%R*"].add(command)
    needed["%R*"] -= {"hset", "zadd"}  # of the heartbeat while its library is missing: as `extend` writes it
    assert needed["workers"] >= {"hset"}
    assert needed["workers:seen"] >= {"zadd"}
    channels = {f"*:{what}" for what in re.findall(r"fcall\.publish\(c, '(\w+)'", reached.text)}
    assert granted("worker") == (needed, channels)


def test_doctor_tries_each_granted_command_or_says_that_it_does_not() -> None:
    prefix = Keys("kingtask").prefix
    for role in CALLS:
        tried: dict[str, set[str]] = {}
        channels = set()
        for name, words in rights.trials(Keys("kingtask"), role):
            if name == "publish":
                channels.add(str(words[1]).removeprefix(f"{prefix}none:"))
            tried.setdefault(name, set()).update(
                str(word).removeprefix(prefix) for word in words[1:] if prefix in str(word)
            )
        assert tried.keys() | NOT_TRIED[role] == set().union(*granted(role).keys.values())
    worker = granted("worker")
    assert {f"*:{what}" for what in channels} == worker.channels
    for pattern, commands in worker.keys.items():
        for name in commands - NOT_TRIED["worker"] - {"publish", "time", "function|list"}:
            assert pattern.removeprefix("%R").replace("*", "none") in tried[name]
