"""permissions.yaml: what is read, and what is refused by file, line and key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask import protocol
from kingtask.config import permissions_file
from kingtask.config.permissions_file import Rule, compiled
from kingtask.config.sandbox_settings import first_unlisted
from kingtask.errors import ConfigurationError

SHIPPED = Path(__file__).parents[2] / "etc" / "permissions.yaml"
Load = Callable[[str], permissions_file.PermissionsFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str) -> permissions_file.PermissionsFile:
        path = tmp_path / "permissions.yaml"
        path.write_text(text)
        return permissions_file.load(path)

    return loaded


def test_the_shipped_file_is_what_its_comments_say():
    read = permissions_file.load(SHIPPED)
    assert set(read.clients) == {"operator", "reports", "dashboard", "worker"}
    assert read.clients["operator"] == Rule()
    assert read.clients["worker"] == Rule(ops=(), worker=True)
    assert read.default == Rule(ops=("get", "wait"))
    text = SHIPPED.read_text()
    for key in Rule.__struct_fields__:
        assert re.search(rf"^#   {key} +\S", text, re.MULTILINE), key
    ops = set(protocol.OPS) - {"ping"}
    assert set(permissions_file.Op.__args__) == ops  # type: ignore[attr-defined]


def test_one_value_may_stand_for_a_list(load: Load):
    assert load("clients: {a: {ops: submit, queues: mail, tasks: '**', env: TASK_*}}").clients["a"] == Rule(
        ops=("submit",), queues=("mail",), tasks=("**",), env=("TASK_*",)
    )
    assert load("clients: {a: }\n").clients["a"] == Rule()
    assert load("# nothing\nclients:\n") == permissions_file.PermissionsFile(clients={}, default=None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("client: {}", "1: client: unknown key; did you mean clients"),
        ("xyz: {}", "1: xyz: unknown key; expected clients or default"),
        ("clients: []", "1: clients: expected a map of names"),
        ("clients:\n  a/b: {}", "2: clients: expected names of 1 to 64"),
        ("clients:\n  a: []", "2: clients.a: expected a map"),
        ("clients:\n  a: {}\n  a: {}", "3: clients.a: stands here twice"),
        ("clients:\n  a:\n    queue: [x]", "3: clients.a.queue: unknown key; did you mean queues"),
        ("clients:\n  a:\n    ops: [get, gte]", "3: clients.a.ops[1]: expected one of cancel, "),
        ("clients:\n  a:\n    ops: gte", "3: clients.a.ops: expected one of cancel, "),
        ("clients:\n  a:\n    tasks: [../x/]", "3: clients.a.tasks[0]: expected a name in which *"),
        ("clients:\n  a:\n    tasks: ['a b']", "3: clients.a.tasks[0]: expected a name in which *"),
        ("clients:\n  a:\n    env: [A, B=1]", "3: clients.a.env[1]: expected the name of a variable, in which *"),
        ("default: {max_priority: 10}", "1: default.max_priority: expected an integer from 0 to 9, got 10"),
        ("default: {max_time_limit: 0}", "1: default.max_time_limit: expected a number from"),
        ("default: {submits_per_second: 0}", "1: default.submits_per_second: expected a number from"),
        ("default: {max_outstanding: 0}", "1: default.max_outstanding: expected an integer from 1"),
        ("default: {max_keep_result: 0}", "1: default.max_keep_result: expected a number from 1 to 31,536,000"),
        ("default: {max_kept_bytes: 0}", "1: default.max_kept_bytes: expected an integer from 1"),
        ("default: {max_queues: -1}", "1: default.max_queues: expected an integer from 0 to 100,000"),
        ("default: {owner: a/b}", "1: default.owner: expected a name of 1 to 64 letters"),
        ("default: {of: mine}", "1: default.of: expected one of all, own"),
        ("default: {worker: 1}", "1: default.worker: expected true or false"),
        ("default: {max_waits: 5}", "1: default.max_waits: unknown key"),
        ("[]", "1: expected lines of the form"),
    ],
)
def test_what_is_wrong_is_told_by_file_line_and_key(load: Load, text: str, told: str):
    with pytest.raises(ConfigurationError) as refused:
        load(text)
    assert f"permissions.yaml:{told}" in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("reports/*", ["reports/a", "reports/a.b-c"], ["reports", "reports/a/b", "xreports/a", "a/reports/b"]),
        ("reports/**", ["reports", "reports/a", "reports/a/b/c"], ["reports2", "reports2/a", "a/reports"]),
        ("**", ["a", "a/b/c/d"], []),
        ("**/daily", ["daily", "a/daily", "a/b/daily"], ["xdaily", "a/daily/b"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz", "a/z/b"]),
        ("a*c", ["ac", "abc", "a.c"], ["a/c", "abcd"]),
        ("*", ["a"], ["a/b"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_a_star_stops_at_a_part(pattern: str, yes: list[str], no: list[str]):
    matches = compiled((pattern,))
    assert [name for name in yes if not matches(name)] == []
    assert [name for name in no if matches(name)] == []


def test_no_pattern_is_no_name():
    assert not compiled(())("")
    assert not compiled(())("a")
    assert not compiled(("a|b", "c"))("a")


def test_names_of_variables_outside_patterns():
    assert first_unlisted(["TASK_", "TASK_A", "TRACE"], ("TASK_*", "TRACE")) is None
    for name in ("TASK", "task_a", "XTASK_A", "TRACEPARENT", ""):
        assert first_unlisted([name], ("TASK_*", "TRACE")) == name
    assert first_unlisted([], ()) is None
    assert first_unlisted(["A", "B"], ()) == "A"
    assert first_unlisted(["A", "B", "C"], ("A",)) == "B"
    assert first_unlisted(["A"], ("*",)) is None


def test_no_pattern_takes_long_for_a_name():
    """With backtracking this would take years."""
    assert first_unlisted(["A" * 128], ("A*" * 60 + "B",)) == "A" * 128


def slow_match(pattern: list[str], name: list[str]) -> bool:
    """Match parts by trying every number of parts for each `**`."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(slow_match(pattern[1:], name[n:]) for n in range(len(name) + 1))
    return bool(name) and slow_match_part(pattern[0], name[0]) and slow_match(pattern[1:], name[1:])


def slow_match_part(pattern: str, part: str) -> bool:
    """Match one part by trying every length for each star."""
    if not pattern:
        return not part
    if pattern[0] == "*":
        return any(slow_match_part(pattern[1:], part[n:]) for n in range(len(part) + 1))
    return part[:1] == pattern[0] and slow_match_part(pattern[1:], part[1:])


PARTS = st.lists(st.text("ab.", min_size=1, max_size=6), min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(st.just("**") | st.text("ab.*", min_size=1, max_size=6), min_size=1, max_size=4).map("/".join)


@given(st.lists(PATTERNS, max_size=3), PARTS)
def test_patterns_match_like_a_slow_matcher(patterns: list[str], name: str):
    expected = any(slow_match(pattern.split("/"), name.split("/")) for pattern in patterns)
    assert compiled(tuple(patterns))(name) == expected


@pytest.mark.parametrize(
    "pattern", ["*a" * 31 + "*b", "*a*a*a*b", "**/*a*a*b/**/*a*b", "**/**/**/b", "**/*a*b/**/*a*c"]
)
def test_no_pattern_takes_longer_than_linear_time(pattern: str):
    matches = compiled((pattern,))
    assert not matches("a" * 100_000), "a cubic time would be far over any time limit of a test"
    assert not matches("/".join(["a" * 25_000] * 4))
