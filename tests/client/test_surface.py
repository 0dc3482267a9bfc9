"""One surface: both clients have the same methods with the same signatures, and their task options are TaskSpec's."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, assert_type, get_type_hints
from uuid import RFC_4122, UUID

import pytest

import kingtask
import kingtask.client
from kingtask import AsyncClient, AsyncTask, Client, Outcome, Result, Task, TaskSpec, errors
from kingtask.client.handles import fresh_id
from kingtask.client.operations import Operations
from kingtask.client.options import CONVERSIONS, TaskOptions
from kingtask.task import OPTIONS

METHODS = set(
    "submit submit_many map as_completed get wait result cancel requeue forget".split()
    + "list stats pause resume ping close".split()
)


def public(kind: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_signatures():
    blocking, aio = public(Client), public(AsyncClient)

    assert set(blocking) == set(aio) == METHODS
    for name, method in blocking.items():
        assert inspect.signature(method) == inspect.signature(aio[name]), name
        assert inspect.getdoc(method), name
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_every_method_that_asks_something_says_how_long_that_may_take():
    for name in METHODS - {"close"}:
        assert "timeout" in inspect.signature(getattr(Client, name)).parameters, name


def test_the_tasks_have_the_same_methods():
    assert set(public(Task)) == set(public(AsyncTask)) == {"id", "name", "outcome", "wait", "result", "cancel"}
    for name in ("wait", "result", "cancel"):
        assert inspect.signature(getattr(Task, name)) == inspect.signature(getattr(AsyncTask, name))


def test_what_waits_is_a_coroutine_in_one_client_only():
    for name in METHODS - {"list", "as_completed"}:
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name)), name
    for name in METHODS - {"close"}:
        assert not inspect.iscoroutinefunction(getattr(Client, name)), name


def test_task_options_have_types():
    assert list(TaskOptions.__annotations__) == list(OPTIONS)
    assert {"id", "name", "args", *OPTIONS.values()} == set(TaskSpec.__struct_fields__)
    assert set(CONVERSIONS) <= set(OPTIONS.values())


def test_an_unknown_task_option_is_a_type_error():
    with Client("127.0.0.1:1") as client:
        for call in (partial(client.submit, "example"), partial(client.map, "example", [["1"]])):
            with pytest.raises(TypeError, match=r"'prority'.* priority"):
                call(prority=1)  # type: ignore[call-arg]
            with pytest.raises(TypeError, match=r"'prority'.* priority"):
                call(prority=None)  # type: ignore[call-arg]


def test_submit_and_map_take_the_task_options():
    for method in (Operations.submit, Operations.map):
        assert inspect.signature(method).parameters["options"].annotation == "Unpack[TaskOptions]"


def test_no_default_is_repeated():
    """What a task is like unless said otherwise stands in TaskSpec alone."""
    parameters = inspect.signature(Operations.submit).parameters.values()

    assert {repr(one.default) for one in parameters if one.default is not one.empty} == {"None", "()"}


async def check_types(client: Client, aio: AsyncClient) -> None:
    """Not run: mypy checks that what users get has types."""
    assert_type(client.submit("example"), Task)
    assert_type(client.submit_many([]), list[Outcome[Task]])
    assert_type(client.requeue("id").result(), str)
    assert_type(client.map("example", [["1"]], queue="slow"), list[Result])
    assert_type(client.list("failed"), Iterator[Result])
    assert_type(client.as_completed([client.submit("example")]), Iterator[Result])
    assert_type(await aio.submit("example"), AsyncTask)
    assert_type(aio.as_completed(["id"]), AsyncIterator[Result])
    client.submit("example", priority="high")  # type: ignore[arg-type]
    client.submit("example", prority=1)  # type: ignore[call-arg]


def test_the_types_can_be_resolved():
    assert get_type_hints(Operations.submit)["timeout"] == float | None


@pytest.mark.parametrize("name", sorted(kingtask._HOMES))
def test_the_package_exports(name: str):
    assert getattr(kingtask, name).__name__ == name


def test_every_exception_that_a_client_may_raise_is_exported():
    internal = {"StoreError"}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.KingtaskError) and name not in internal:
            assert getattr(kingtask, name) is kind


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Cliant'"):
        kingtask.Cliant  # noqa: B018
    with pytest.raises(AttributeError):
        kingtask.client.Cliant  # noqa: B018


def test_a_fresh_id_is_a_random_uuid():
    ids = {fresh_id() for _ in range(1_000)}

    assert len(ids) == 1_000
    for one in ids:
        assert str(UUID(one)) == one
        assert (UUID(one).version, UUID(one).variant) == (4, RFC_4122)
    for place, digit in enumerate("xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx"):
        found = {one[place] for one in ids}
        assert found == {"x": set("0123456789abcdef"), "y": set("89ab")}.get(digit, {digit})
