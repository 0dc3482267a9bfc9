"""Whatever a broker replies, a call ends with a value or with an exception of ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kingtask import protocol, wire
from kingtask.client.call import Call, CallStage, Yielded
from kingtask.client.core import Core
from kingtask.client.handles import Task, fresh_id
from kingtask.client.operations import Operations
from kingtask.errors import KingtaskError
from kingtask.task import TaskSpec
from tests.client.responder import result

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"

operations: Operations[Task] = Operations(
    lambda task_id, name: Task(None, task_id, name),  # type: ignore[arg-type]
    10.0,
    new_id=fresh_id,
    monotonic=lambda: 0.0,
    wall=lambda: 1.8e9,
)

PLANS: dict[str, Any] = {
    "submit": lambda: operations.submit("example"),
    "submit_many": lambda: operations.submit_many([TaskSpec(name="example")] * 2, timeout=0.05),
    "map": lambda: operations.map("example", [["1"]], timeout=0),
    "as_completed": lambda: operations.as_completed([ID], timeout=0),
    "get": lambda: operations.get(ID),
    "wait": lambda: operations.wait(ID, timeout=0),
    "result": lambda: operations.result(ID, timeout=0),
    "cancel": lambda: operations.cancel(ID),
    "requeue": lambda: operations.requeue(ID),
    "forget": lambda: operations.forget(ID),
    "list": lambda: operations.list("failed", limit=3),
    "stats": operations.stats,
    "pause": lambda: operations.pause("default"),
    "resume": lambda: operations.resume("default"),
    "ping": operations.ping,
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
errors = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from(["busy", "not_found", "new_code"]) | values,
        "message": values,
        "retryable": values,
        "stored": st.sampled_from(["no", "unknown"]) | values,
        "retry_after_s": values,
        "field": values,
    },
)
tasks = st.just(protocol.result_fields(result(ID))) | values
outcomes = st.fixed_dictionaries(
    {},
    optional={
        "id": values,
        "outcome": st.sampled_from(["created", "exists", "error"]) | values,
        "error": errors | values,
    },
)
replies = st.fixed_dictionaries(
    {"ok": st.sampled_from([True, True, True, False, None, 1])},
    optional={
        "task": tasks,
        "tasks": st.lists(tasks, max_size=3) | values,
        "cursor": values,
        "outcome": values,
        "outcomes": st.lists(outcomes | values, max_size=2) | values,
        "pending": values,
        "error": errors | values,
    },
)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_reply_gives_a_value_or_an_exception_of_ours(name: str, data: st.DataObject):
    core = Core(["a"], lambda: 0.0)
    core.opened(0.0)
    core.up()
    plan = PLANS[name]()
    try:
        step = next(plan)
        for _ in range(20):
            if isinstance(step, Yielded):
                step = next(plan)
                continue
            for call in step:
                _answer(core, call, data.draw(replies))
            step = plan.send(step)
    except (StopIteration, KingtaskError):
        pass


def _answer(core: Core, call: Call, reply: dict[str, Any]) -> None:
    core.start(call, 0.0)
    now = call.delay_s
    core.tick(now)
    if core.next_to_send() is call:
        core.sent(now)
    core.received(wire.pack({"v": 1, "rid": call.rid, **reply}), now)
    if call.stage is not CallStage.DONE:
        core.tick(now + 1e6)
    assert call.stage is CallStage.DONE
