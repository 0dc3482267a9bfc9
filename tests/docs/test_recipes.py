"""The recipes of kingtask/ARCHITECTURE.md: a test fails when a place that every such change needs was forgotten."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

import kingtask
from kingtask import AsyncClient, Client
from kingtask.broker import ops
from kingtask.cli.commands import COMMANDS
from kingtask.client.options import TaskOptions
from kingtask.config import BrokerConfig, WorkerConfig
from kingtask.protocol import OPS
from kingtask.store import functions
from kingtask.task import TaskSpec
from tests.broker import test_dispatcher, test_ops
from tests.client import test_replies, test_surface
from tests.client.responder import Responder

TOP = Path(__file__).parents[2]
PACKAGE = Path(kingtask.__file__).parent
LUA = "\n".join(path.read_text() for path in sorted((PACKAGE / "store" / "lua").glob("*.lua")))
REGISTERED = re.findall(r"^ *register\('(\w+)'", LUA, re.MULTILINE)

NOT_ONE_CALL = {"ping", "submit", "wait", "stats"}
TABLES = {
    "`REQUESTS` of `broker/test_ops.py`": {*test_ops.REQUESTS, *NOT_ONE_CALL},
    "`REPLIES` of `broker/test_dispatcher.py`": {*test_dispatcher.REPLIES, *NOT_ONE_CALL, "requeue"},
    "`METHODS` of `client/test_surface.py`": test_surface.METHODS,
    "`PLANS` of `client/test_replies.py`": set(test_replies.PLANS),
    "`succeed` of `client/responder.py`": set(re.findall(r'"(\w+)"', inspect.getsource(Responder.succeed))),
}
"""The ops in each table of the tests that the recipe names, and those with tests of their own instead."""


def page(name: str) -> str:
    return (TOP / name).read_text("utf-8")


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_every_place_of_an_op(op):
    assert hasattr(Client, op.name)
    assert hasattr(AsyncClient, op.name)
    assert op.name in COMMANDS
    assert re.search(rf"^### `{op.name}`$", page("kingtask/PROTOCOL.md"), re.MULTILINE)
    assert re.search(rf"[` ]{op.name}[` ]", page("kingtask/guide/command-line.md"))
    assert f"{op.name}(" in page("kingtask/guide/python.md")
    vectors = json.loads(page("tests/interop/vectors/ops.json"))
    assert any(f'"op": "{op.name}"' in json.dumps(vector) for vector in vectors), "no vector"
    if op.permission:
        listed = re.search(r"^# +ops +(.*(?:\n#  {10,}.*)*)", page("etc/permissions.yaml"), re.MULTILINE)
        assert listed
        assert re.search(rf"\b{op.name}\b", listed[1])
    if op.name not in NOT_ONE_CALL:
        for function in (ops.call_of, ops.reply_to):
            assert re.search(rf" case .*\bprotocol\.{op.request.__name__}\(", inspect.getsource(function)), function


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_the_tests_has_every_op(table: str):
    assert table in " ".join(page("kingtask/ARCHITECTURE.md").split())
    assert set(OPS) <= TABLES[table]


@pytest.mark.parametrize("field", TaskSpec.__struct_fields__)
def test_every_place_of_a_task_option(field: str):
    assert f"`{field}`" in page("kingtask/PROTOCOL.md")
    assert f'"{field}"' in page("tests/interop/vectors/ops.json")
    if field not in ("id", "name", "args"):
        python = {"start_at": "at"}.get(field, field.removesuffix("_s"))
        assert python in TaskOptions.__annotations__
        assert f"`{python}`" in page("kingtask/guide/python.md")
        flag = {"tags": "tag"}.get(python, python).replace("_", "-")
        assert f"--{flag}" in page("kingtask/guide/command-line.md")


@pytest.mark.parametrize("function", REGISTERED)
def test_every_place_of_a_lua_function(function: str):
    assert re.search(rf'FunctionCall\([^)]*"{function}"', inspect.getsource(functions))


def test_every_call_has_its_lua_function():
    called = set(re.findall(r'FunctionCall\("(\w+)"', inspect.getsource(functions)))
    assert called <= set(REGISTERED)
    assert called - {"finish_cut"} > set()


@pytest.mark.parametrize(("file", "config"), [("broker", BrokerConfig), ("worker", WorkerConfig)])
def test_every_place_of_a_configuration_key(file: str, config: type[BrokerConfig] | type[WorkerConfig]):
    text = page(f"etc/{file}.yaml")
    assert [key for key in config.__struct_fields__ if not re.search(rf"^#? ?{key}:", text, re.MULTILINE)] == []
    assert config.live <= set(config.__struct_fields__)
