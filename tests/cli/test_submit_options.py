"""How `kingtask submit` reads its command line. Nothing is sent."""

from __future__ import annotations

import math
import uuid
from typing import Any

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kingtask.cli.fields import task_of, wire_fields
from kingtask.cli.param_types import id_of_key
from kingtask.cli.submit import submit
from kingtask.clock import wall_s
from kingtask.task import MAX_STDIN_BYTES, TaskSpec

NOT_TASK = {"name", "args", "wait", "propagate", "source", "as_json", "broker", "timeout"} | {"curve_key", "server_key"}


def parse(*args: str) -> dict[str, Any]:
    with submit.make_context("submit", list(args)) as context:
        return context.params


def spec_of(*args: str) -> TaskSpec:
    params = parse(*args)
    options = {name: value for name, value in params.items() if name not in NOT_TASK}
    return task_of(params["name"], params["args"], wire_fields(options))


def refused(*args: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        spec_of(*args)
    return caught.value.format_message()


def test_every_field_of_a_task_can_be_given():
    options = {param.name for param in submit.params} - NOT_TASK - {"key"}
    assert options | {"name", "args"} == {field.name for field in msgspec.structs.fields(TaskSpec)}


def test_each_option_sets_its_field(tmp_path):
    (tmp_path / "in").write_bytes(b"\0\xff")
    task_id = str(uuid.uuid4())
    expires_at = round(wall_s()) + 7200
    spec = spec_of(
        *("--delay", "2.5", "--retry", "5,8,1m", "--queue", "mail", "--priority", "9", "--time-limit", "30"),
        *("--stdin", str(tmp_path / "in"), "--env", "A=1", "--env", "B=x=y", "--id", task_id.upper()),
        *("--tag", "one", "--tag", "two", "--stderr", "keep", "--on-lost", "fail"),
        *("--expires-at", str(expires_at), "--keep-result", "7d", "report", "a"),
    )
    assert spec == TaskSpec(
        id=task_id,
        name="report",
        args=("a",),
        delay_s=2.5,
        retry=(5.0, 8.0, 60.0),
        queue="mail",
        priority=9,
        time_limit_s=30.0,
        stdin=b"\0\xff",
        env={"A": "1", "B": "x=y"},
        keep_result_s=7 * 86_400.0,
        expires_at=float(expires_at),
        stderr="keep",
        on_lost="fail",
        tags=("one", "two"),
    )


def test_nothing_given_is_nothing_sent():
    assert spec_of("example") == TaskSpec(name="example")


@pytest.mark.parametrize("first", [["example"], ["--", "example"], ["--wait", "example"], ["--wait=5", "example"]])
def test_everything_after_the_name_belongs_to_the_task(first):
    words = ["12", "-45", "--wait", "--help", "--", "--retry=1", ""]
    params = parse(*first, *words)
    assert (params["name"], params["args"]) == ("example", tuple(words))


@pytest.mark.parametrize(
    ("words", "wait"),
    [(["--wait"], math.inf), (["--wait=5"], 5.0), (["--wait=1m"], 60.0), (["--wait=0"], 0.0), ([], None)],
)
def test_the_value_of_wait_is_optional(words, wait):
    for before, after in (([], ["--json"]), (["--queue", "--wait"], []), (["--queue=x"], ["--retry", "1"])):
        params = parse(*before, *words, *after, "example")
        assert (params["wait"], params["name"]) == (wait, "example")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_arguments_arrive_as_they_are(words):
    assert spec_of("example", *words).args == tuple(words)


def test_an_absolute_time_is_a_start_and_a_relative_one_a_delay():
    assert spec_of("--at", "2027-07-01T08:30:00Z", "x").start_at == 1814430600
    assert (spec_of("--at", "+5m", "x").delay_s, spec_of("--at", "+5m", "x").start_at) == (300.0, 0.0)


def test_a_key_always_gives_the_same_id():
    assert spec_of("--key", "nightly 2026-07-01", "x").id == "821a0485-fa9f-5452-8a7a-1429647d561f"
    assert id_of_key("a") != id_of_key("b")
    assert id_of_key("nightly 2026-07-01", "reports") == "46626da8-8940-5ce5-8178-7f27662345a1"
    assert id_of_key("a", "alice") != id_of_key("a", "bob")


def test_what_a_key_stands_for_does_not_depend_on_the_moment():
    words = ("--key", "nightly 2026-07-01", "--at", "+5m", "--expires-at", str(round(wall_s()) + 7200), "x")
    assert spec_of(*words) == spec_of(*words)


@pytest.mark.parametrize("time", ["yesterday", "24:61", "2026-02-30", "2026-02-30 10:00"])
def test_a_bad_time_is_refused_with_the_forms_that_are_read(time):
    message = refused("--at", time, "x")
    assert time in message
    for form in ("2026-07-01T08:30:00Z", "2026-07-01 08:30", "epoch", "+90s", "+5m"):
        assert form in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--retry", "1,,x", "e"], "entry 2 is ''"),
        (["--retry", "-1", "e"], "entry 1"),
        (["--retry", "31d", "e"], "retry"),
        (["--delay", "-1", "e"], "duration"),
        (["--delay", "nan", "e"], "duration"),
        (["--at", "-5m", "e"], "past"),
        (["--at", "2040-01-01T00:00:00Z", "e"], "10 years"),
        (["--at", "+1m", "--delay", "1", "e"], "exclude"),
        (["--id", "1234", "e"], "UUID"),
        (["--id", str(uuid.UUID(int=1)), "--key", "k", "e"], "exclude"),
        (["--key", "k", "--expires-at", "+10m", "e"], "absolute time"),
        (["--expires-at", "-1s", "--key", "k", "e"], "absolute time"),
        (["--priority", "10", "e"], "0<=x<=9"),
        (["--queue", "a/b", "e"], "queue"),
        (["--time-limit", "0", "e"], "time_limit_s"),
        (["--env", "A", "e"], "NAME=VALUE"),
        (["--env", "PATH=/tmp", "e"], "PATH"),
        (["--env", "LD_PRELOAD=x", "e"], "LD_PRELOAD"),
        (["--stdin", "/no/such/file", "e"], "No such file"),
        (["--stderr", "drop", "e"], "fail"),
        (["--tag", "", "e"], "tags"),
        (["--tag", "x" * 65, "e"], "tags"),
        (["../x"], "name"),
        (["/bin/sh"], "name"),
        (["a//b"], "name"),
        (["e", "a\0b"], "args[0]"),
        (["e", "\udcff"], "UTF-8"),
        (["e", *["x"] * 257], "args"),
        (["e", "x" * 131_072], "args[0]"),
        (["--tiem-limit", "5", "e"], "--time-limit"),
    ],
)
def test_what_the_broker_would_refuse_is_a_usage_error_at_once(words, part):
    assert part in refused(*words)


def test_stdin_has_a_bound(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * (MAX_STDIN_BYTES + 1))
    assert f"{MAX_STDIN_BYTES:,}" in refused("--stdin", str(tmp_path / "big"), "e")
