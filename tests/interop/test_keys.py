"""Brokers that ask for keys: a client that has the right ones is served, any other gets nothing done."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from kingtask import curve
from kingtask.errors import TaskNotFound
from tests.integration.keyed import Keyed
from tests.interop.driver import DriverProcess, Told
from tests.interop.languages import LANGUAGES
from tests.interop.programs import PROGRAMS, RAW
from tests.processes import PATIENCE_S

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

able = pytest.mark.parametrize("client", [name for name in LANGUAGES if LANGUAGES[name].curve], indirect=True)

UNKNOWN = {"stranger": ("mallory", "broker"), "other-broker": ("alice", "mallory")}
"""Whose pair, and whose key for the broker's."""


@pytest.fixture(scope="module")
def rig() -> Iterator[Keyed]:
    with Keyed() as rig:
        rig.pair("mallory")
        rig.executable("copy", PROGRAMS["copy"])
        rig.start_broker()
        rig.start_worker()
        yield rig


def keys(rig: Keyed, name: str, server: str = "broker") -> dict[str, str]:
    files = rig.keys_of(name, server)
    read = curve.read_client(files["curve_key"], files["server_key"])
    return {"server": read.server.decode(), "public": read.own.public.decode(), "secret": read.own.secret.decode()}


def open_client(rig: Keyed, driver: DriverProcess, timeout_s: float, **fields: dict[str, str]) -> None:
    driver.ask("open", brokers=[rig.daemons[0].config["addr"]], timeout_s=timeout_s, **fields)


def gets_nothing_done(rig: Keyed, driver: DriverProcess) -> None:
    task_id = str(uuid.uuid4())
    for do, fields in (("ping", {}), ("submit", {"task": {"id": task_id, "name": "copy"}})):
        with pytest.raises(Told) as caught:
            driver.ask(do, **fields)
        assert caught.value.kind == "no_answer"
    with pytest.raises(TaskNotFound):
        rig.client().get(task_id)


@able
def test_who_has_the_keys_is_served(rig: Keyed, driver: DriverProcess):
    open_client(rig, driver, PATIENCE_S, keys=keys(rig, "alice"))
    assert driver.ask("ping")["ready"]
    # Longer than a client's heartbeats are apart: those must come through the same door.
    task = {"id": str(uuid.uuid4()), "name": "copy", "stdin": RAW, "delay_s": 2.5}
    assert driver.ask("submit", task=task)["outcome"] == "created"
    record = driver.ask("wait", id=task["id"], timeout_s=PATIENCE_S)
    assert (record["state"], record["stdout"] == RAW) == ("succeeded", True)


@able
def test_many_are_pipelined(rig: Keyed, driver: DriverProcess):
    open_client(rig, driver, PATIENCE_S, keys=keys(rig, "alice"))
    tasks = [{"id": str(uuid.uuid4()), "name": "copy", "delay_s": 3600} for _ in range(1_000)]
    outcomes = driver.ask("pipeline", tasks=tasks)
    assert [(outcome["id"], outcome["outcome"]) for outcome in outcomes] == [(task["id"], "created") for task in tasks]


def test_who_has_none_gets_nothing_done(rig: Keyed, driver: DriverProcess):
    open_client(rig, driver, 1.0)
    gets_nothing_done(rig, driver)


@able
@pytest.mark.parametrize("whose", UNKNOWN)
def test_who_has_others_gets_nothing_done(rig: Keyed, driver: DriverProcess, whose: str):
    open_client(rig, driver, 1.0, keys=keys(rig, *UNKNOWN[whose]))
    gets_nothing_done(rig, driver)


@able
@pytest.mark.parametrize("field", ["server", "public", "secret"])
def test_what_is_no_key_is_told_before_anything_is_sent(rig: Keyed, driver: DriverProcess, field: str):
    """Else a client would speak in the clear, or wait for an answer that cannot come."""
    right = keys(rig, "alice")
    for wrong in ("", right[field][:-1], "~" + right[field][1:], right[field] * 2):
        with pytest.raises(Told) as caught:
            open_client(rig, driver, PATIENCE_S, keys={**right, field: wrong})
        assert caught.value.kind == "usage"
