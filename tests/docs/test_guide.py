"""The guide names every public name, state, reason, error and exit status; its index lists every part."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

import kingtask
from kingtask import Client, Result, State, TaskSpec, errors
from kingtask.cli.commands import COMMANDS, LazyGroup
from kingtask.cli.exit import Exit
from kingtask.client.options import TaskOptions
from kingtask.config import BrokerConfig
from kingtask.config.permissions_file import Rule
from kingtask.config.sandbox_settings import PASSED
from kingtask.result import Attempt
from kingtask.store.functions import Claimed
from kingtask.worker import environment

INDEX = Path(kingtask.__file__).parent / "GUIDE.md"
PARTS = {path.stem: path.read_text("utf-8") for path in sorted((INDEX.parent / "guide").glob("*.md"))}
MAX_LINES = 300


def missing(names: Iterable[str], text: str) -> list[str]:
    """Those of the names that do not stand there as code."""
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w])", code)]


def first_cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is this one."""
    lines = text[text.index(f"\n| {heading} |") + 1 :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_the_index_lists_every_part_once() -> None:
    listed = [re.findall(r"\]\(guide/([\w-]+)\.md\)", row[0]) for row in first_cells(INDEX.read_text("utf-8"), "part")]
    assert sorted(name for names in listed for name in names) == list(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_short_and_begins_with_a_way_in(name: str) -> None:
    title, blank, way_in, *_ = PARTS[name].splitlines()
    assert (title[:2], blank, way_in[:15]) == ("# ", "", "Read this part ")
    assert len(PARTS[name].splitlines()) <= MAX_LINES


def test_exit_statuses_are_those_of_the_command_line() -> None:
    table = {int(status): meaning for status, meaning in first_cells(PARTS["command-line"], "exit status")}
    assert table == {status.value: status.meaning for status in Exit}


def test_reasons_are_those_of_an_attempt_and_of_expiry() -> None:
    documented = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in first_cells(PARTS["lifecycle"], "`reason`"))))
    assert Attempt.__doc__ is not None
    reasons = set(re.findall(r"`([a-z_]+)`", Attempt.__doc__.partition("failure:")[2]))
    assert documented == reasons | {"expires_at"}


def test_the_drawing_of_states_is_that_of_the_architecture_page() -> None:
    drawing = PARTS["lifecycle"].split("```")[1]
    states = (INDEX.parent / "ARCHITECTURE.md").read_text("utf-8").partition("\n## States\n")[2]
    assert set(State) <= set(re.findall(r"[a-z]+", drawing))
    assert drawing == states.split("```")[1]


def test_every_error_has_advice() -> None:
    exceptions = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.KingtaskError) and value is not errors.StoreError
    }
    assert {re.sub(r"\W", "", row[0]) for row in first_cells(PARTS["python"], "exception")} == exceptions


def test_every_method_and_option_of_the_clients_is_there() -> None:
    methods = [name for name in vars(Client) if not name.startswith("_")]
    options = [*TaskOptions.__annotations__, "id", "timeout"]
    assert not missing([*methods, *options, *TaskSpec.__struct_fields__], PARTS["python"])


def test_every_field_of_a_result_is_there() -> None:
    properties = [name for name, value in vars(Result).items() if isinstance(value, property)]
    assert not missing([*Result.__struct_fields__, *properties, *Attempt.__struct_fields__], PARTS["python"])
    assert not missing(State, PARTS["lifecycle"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_there(name: str) -> None:
    command = LazyGroup("kingtask").get_command(click.Context(click.Command("kingtask")), name)
    assert command is not None
    options = [max(param.opts, key=len) for param in command.params if isinstance(param, click.Option)]
    undocumented = {"dev": ["--log-level"], "doctor": ["--config"]}.get(name, [])  # shown as -c
    assert not missing([name, *(option for option in options if option not in undocumented)], PARTS["command-line"])


def test_every_bound_on_clients_is_in_the_part_about_security() -> None:
    _, of_all, of_one, _ = zip(*first_cells(PARTS["security"], "what"), strict=True)
    bounds = {name for name in BrokerConfig.__struct_fields__ if name.startswith("max_")} - {"max_lost"}
    assert not missing(bounds, " ".join(of_all))
    bounds = {name for name in Rule.__struct_fields__ if name.startswith(("max_", "submits_"))}
    assert not missing(bounds, " ".join(of_one))


def test_every_variable_of_an_executable_is_there() -> None:
    common = environment.base({}, worker="w", brokers="b")
    claimed = Claimed("", 1, "", b"", "", 0, False, 0)
    variables = environment.of_attempt(common, {}, claimed, deadline_ms=0, directory="/")
    part = PARTS["executables"]
    rows = {re.sub(r"\W", "", row[0]) for row in first_cells(part, "variable")}
    assert rows == {name for name in variables if name.startswith("KINGTASK_")}
    passed = part.partition("The executable gets ")[2].partition(" of the worker's own")[0]
    assert tuple(re.findall(r"`([A-Z_]+)`", passed)) == PASSED
