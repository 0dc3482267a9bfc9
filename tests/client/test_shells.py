"""Both clients, the same stories: what is sent, what comes back, and what happens when brokers misbehave."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import pytest

from kingtask import protocol, wire
from kingtask.client import waiting
from kingtask.client.bulk import CHUNK_TASKS
from kingtask.errors import (
    Busy,
    ClientClosed,
    IdConflict,
    InvalidRequest,
    KingtaskError,
    NoAnswer,
    ResultTimeout,
    TaskFailed,
    TaskNotFound,
    Unavailable,
    WrongState,
)
from kingtask.states import State
from kingtask.task import TaskSpec
from tests.client.responder import PATIENCE_S, SILENCE, Responder, result, task_reply
from tests.client.shells import Shell, outcomes

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"


# ── submit ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_submit_sends_the_task_with_an_id_of_its_own(shell: Shell, broker: Responder):
    task = shell.client(broker.endpoint).submit("example", ["12", "45"])

    [request] = broker.requests
    assert request["task"] == {"id": task.id, "name": "example", "args": ["12", "45"]}
    assert UUID(task.id).version == 4
    assert task.name == "example"


def test_every_option_reaches_the_broker(shell: Shell, broker: Responder):
    at = datetime(2030, 1, 1, tzinfo=UTC)
    shell.client(broker.endpoint).submit(
        "report/daily",
        ("a b", ""),
        at=at,
        retry=(5, timedelta(minutes=1)),
        queue="slow",
        priority=9,
        time_limit=timedelta(hours=1),
        stdin="grüße",
        env={"A": "1"},
        keep_result=60,
        expires_at=at + timedelta(days=1),
        stderr="keep",
        on_lost="fail",
        tags={"nightly"},
        id=ID.upper(),
    )

    [request] = broker.requests
    assert request["task"] == {
        "id": ID,
        "name": "report/daily",
        "args": ["a b", ""],
        "start_at": at.timestamp(),
        "retry": [5, 60.0],
        "queue": "slow",
        "priority": 9,
        "time_limit_s": 3600.0,
        "stdin": "grüße".encode(),
        "env": {"A": "1"},
        "keep_result_s": 60,
        "expires_at": at.timestamp() + 86_400,
        "stderr": "keep",
        "on_lost": "fail",
        "tags": ["nightly"],
    }


@pytest.mark.parametrize(
    ("given", "place", "words"),
    [
        ({"at": datetime(2030, 1, 1)}, "task.start_at", "time zone"),  # noqa: DTZ001 (what must be refused)
        ({"args": "12"}, "task.args", "array"),
        ({"args": [12]}, "task.args[0]", "string"),
        ({"args": 12}, "task.args", "array"),
        ({"args": ["a\0b"]}, "task.args[0]", "NUL"),
        ({"args": ["\ud800"]}, "task.args[0]", ""),
        ({"delay": 5, "at": 2e9}, "task.delay_s", "not both"),
        ({"retry": [-1]}, "task.retry[0]", "number"),
        ({"retry": 5}, "task.retry", "array"),
        ({"priority": 10}, "task.priority", "9"),
        ({"env": {"PATH": "/"}}, "task.env['PATH']", "may not"),
        ({"env": [1]}, "task.env", "map"),
        ({"stderr": "both"}, "task.stderr", "keep"),
        ({"id": "12"}, "task.id", "UUID"),
        ({"name": "../x"}, "task.name", "executable"),
        ({"tags": [object()]}, "task.tags[0]", "string"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_before_anything_is_sent(shell: Shell, broker, given, place, words):
    client = shell.client(broker.endpoint)

    with pytest.raises(InvalidRequest, match="(?s)" + words) as raised:
        client.submit(**{"name": "example", **given})

    assert raised.value.field == place
    assert not broker.requests


def test_a_refusal_carries_code_place_and_id(shell: Shell, broker: Responder):
    broker.script = lambda request: IdConflict("id: taken", field="id")

    with pytest.raises(IdConflict, match="taken") as raised:
        shell.client(broker.endpoint).submit("example", id=ID)

    assert (raised.value.id, raised.value.field, raised.value.stored) == (ID, "id", "no")


def test_a_busy_broker_is_asked_again_with_the_same_bytes(shell: Shell, broker: Responder):
    answers = itertools.chain([Busy("later"), Unavailable("later", retry_after_s=0.01)], itertools.repeat(None))
    broker.script = lambda request: next(answers) or broker.succeed(request)

    task = shell.client(broker.endpoint).submit("example")

    assert len(broker.messages) == 3
    assert len(set(broker.messages)) == 1
    assert list(broker.tasks) == [task.id]


# ── brokers that fail ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_dying_broker_left_unanswered_goes_to_the_next_with_the_same_id(shell, broker, other):
    broker.script = lambda request: SILENCE
    client = shell.client(broker.endpoint, other.endpoint)
    submitting = _Background(lambda: client.submit("example"))
    broker.received(1)

    broker.stop()

    task = submitting.value()
    assert broker.messages == other.messages
    assert list(other.tasks) == [task.id]


def test_a_broker_that_says_nothing_is_left_for_the_next(shell: Shell, broker: Responder, other: Responder):
    broker.script = lambda request: SILENCE
    client = shell.client(broker.endpoint, other.endpoint)

    task = client.submit("example")
    client.submit("example")

    assert next(iter(other.tasks)) == task.id
    assert (len(broker.requests), len(other.requests)) == (1, 2), "and not tried again by the next call"


def test_an_address_where_nobody_listens_costs_little(shell: Shell, broker: Responder, other: Responder):
    other.stop()
    client = shell.client(other.endpoint, broker.endpoint, timeout=PATIENCE_S)

    client.submit("example")

    assert len(broker.requests) == 1


def test_a_call_outlives_the_restart_of_its_broker(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    client.ping()
    broker.script = lambda request: SILENCE
    submitting = _Background(lambda: client.submit("example"))
    broker.received(2)
    broker.stop()
    broker.script = broker.succeed

    broker.start()

    task = submitting.value()
    assert list(broker.tasks) == [task.id]
    assert broker.messages[1] == broker.messages[2]


def test_a_connection_that_was_lost_while_idle_costs_the_next_call_nothing(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    client.ping()
    broker.stop()
    broker.start()

    assert client.ping()["ready"]


def test_nobody_there(shell: Shell, broker: Responder):
    broker.stop()

    with pytest.raises(NoAnswer, match="no connection") as raised:
        shell.client(broker.endpoint, timeout=0.2).submit("example", id=ID)

    assert broker.endpoint in str(raised.value)
    assert (raised.value.stored, raised.value.id) == ("no", ID)


def test_a_name_that_does_not_resolve(shell: Shell):
    with pytest.raises(NoAnswer, match="no connection"):
        shell.client("tcp://no-such-host.invalid:9595", timeout=0.2).ping()


def test_somebody_there_who_does_not_answer(shell: Shell, broker: Responder):
    broker.script = lambda request: SILENCE

    with pytest.raises(NoAnswer, match=f"it was sent once.*{ID}") as raised:
        shell.client(broker.endpoint, timeout=0.2).submit("example", id=ID)

    assert (raised.value.stored, raised.value.id) == ("unknown", ID)


def test_after_a_call_without_an_answer_its_late_reply_is_nobody_elses(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    broker.script = lambda request: SILENCE
    with pytest.raises(NoAnswer):
        client.get(ID, timeout=0.2)
    [late] = broker.requests
    broker.script = broker.succeed

    broker.push(late, task_reply(result(ID)))

    with pytest.raises(TaskNotFound):
        client.get(ID)


def test_noise_and_repeated_replies_are_passed_over(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    noise = [b"", b"HTTP/1.1 400", protocol.ok(None, {}), protocol.ok(10**9, {}), protocol.ok("x", {"id": 1})]
    broker.script = lambda request: [*noise, broker.succeed(request), broker.succeed(request), *noise]

    ids = [client.submit("example").id for _ in range(3)]

    assert list(broker.tasks) == ids


def test_a_unix_socket(shell: Shell, tmp_path: Path):
    with Responder(endpoint=f"ipc://{tmp_path}/broker") as broker:
        client = shell.client(broker.endpoint)
        client.submit("example")
        broker.stop()
        broker.start()
        client.submit("example")

    assert broker.ops() == ["submit", "submit"]


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_by_the_task_by_its_id_and_by_its_uuid(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    task = client.submit("example", ["57"])

    assert task.result() == "57"
    assert task.wait().text == "57"
    assert client.get(task.id).success
    assert client.wait(UUID(task.id)).success
    assert client.result(client.get(task.id)) == "57"


def test_wait_gives_a_failure_and_result_raises_it(shell: Shell, broker: Responder):
    broker.script = lambda request: task_reply(result(ID, State.FAILED, reason="exit"))
    client = shell.client(broker.endpoint)

    assert client.wait(ID).reason == "exit"
    with pytest.raises(TaskFailed, match="exit") as raised:
        client.result(ID)
    assert raised.value.result.state is State.FAILED


def test_a_wait_is_answered_when_the_task_ends(shell: Shell, broker: Responder):
    broker.script = lambda request: SILENCE
    client = shell.client(broker.endpoint)
    asking = _Background(lambda: client.wait(ID))
    [request] = broker.received(1)

    broker.push(request, task_reply(result(ID)))

    assert asking.value().success
    assert request["timeout_s"] == waiting.SLICE_S


def test_a_long_wait_is_asked_in_slices(shell: Shell, broker: Responder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "SLICE_S", 0.01)
    running = task_reply(result(ID, State.RUNNING))
    answers = itertools.chain([running] * 3, itertools.repeat(task_reply(result(ID))))
    broker.script = lambda request: next(answers)

    assert shell.client(broker.endpoint).wait(ID).success

    assert [request["timeout_s"] for request in broker.requests] == [0.01] * 4


def test_a_task_that_does_not_end_in_time(shell: Shell, broker: Responder):
    broker.script = lambda request: task_reply(result(ID, State.RUNNING))

    with pytest.raises(ResultTimeout, match=r"running, after 0\.05 s"):
        shell.client(broker.endpoint).wait(ID, 0.05)

    assert 0 < broker.requests[0]["timeout_s"] <= 0.05


def test_waiting_for_no_time_asks_once(shell: Shell, broker: Responder):
    broker.script = lambda request: task_reply(result(ID, State.READY))

    with pytest.raises(ResultTimeout):
        shell.client(broker.endpoint).wait(ID, 0)

    assert [request["timeout_s"] for request in broker.requests] == [0]


def test_a_wait_goes_on_at_the_next_broker_when_its_own_dies(shell: Shell, broker: Responder, other: Responder):
    broker.script = other.script = lambda request: SILENCE
    client = shell.client(broker.endpoint, other.endpoint)
    asking = _Background(lambda: client.wait(ID))
    broker.received(1)

    broker.stop()
    [request] = other.received(1)
    other.push(request, task_reply(result(ID)))

    assert asking.value().success


def test_a_task_that_is_not_there(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)

    for ask in (client.get, client.wait, client.result, client.cancel):
        with pytest.raises(TaskNotFound) as raised:
            ask(ID)
        assert raised.value.id == ID


# ── the other ops ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_says_what_it_did(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    task = client.submit("example")
    answers = iter([{"outcome": "cancelling"}, {"outcome": "cancelled"}, WrongState("it has ended")])
    broker.script = lambda request: next(answers)

    assert client.cancel(task.id) == "cancelling"
    assert task.cancel() == "cancelled"
    with pytest.raises(WrongState):
        task.cancel()


def test_requeue_makes_a_task_with_a_new_id(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)

    chosen = client.requeue(ID, UUID(int=1))
    made = client.requeue(result(ID, name="sum"))

    first, second = broker.requests
    assert (first["id"], first["new_id"]) == (ID, chosen.id) == (ID, str(UUID(int=1)))
    assert (second["id"], second["new_id"]) == (ID, made.id)
    assert (chosen.name, made.name) == (None, "sum")


def test_a_task_says_whether_it_was_there_before(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    broker.script = lambda request: {**broker.succeed(request), "outcome": "exists"}

    assert [client.submit("sum", id=ID).outcome, client.requeue(ID, UUID(int=1)).outcome] == ["exists", "exists"]
    # An id that was chosen by this very call is there before only if an earlier try of it was stored.
    assert [client.submit("sum").outcome, client.requeue(ID).outcome] == ["created", "created"]

    broker.script = broker.succeed
    assert [client.submit("sum", id=str(UUID(int=2))).outcome, client.requeue(ID, UUID(int=3)).outcome] == [
        "created",
        "created",
    ]
    many = client.submit_many([TaskSpec(id=str(UUID(int=2)), name="sum"), TaskSpec(name="sum")])
    assert [one.task.outcome for one in many] == outcomes(many) == ["exists", "created"]


def test_pause_resume_stats_ping(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)

    client.pause("slow")
    assert broker.queues == {"slow": True}
    client.resume("slow")
    assert broker.queues == {"slow": False}
    assert client.stats() == {"now": 1.0, "queues": [], "workers": [], "brokers": []}
    assert client.ping()["server"] == "kingtask"


def test_list_turns_the_pages(shell: Shell, broker: Responder):
    ids = [str(uuid4()) for _ in range(450)]

    def pages(request: dict[str, Any]) -> dict[str, Any]:
        start = int(request.get("cursor", "0"))
        end = start + request["limit"]
        found = [protocol.result_fields(result(one, State.FAILED)) for one in ids[start:end]]
        return {"tasks": found, "cursor": str(end) if end < len(ids) else None}

    broker.script = pages
    client = shell.client(broker.endpoint)

    assert [found.id for found in client.list("failed")] == ids
    assert [found.id for found in client.list(State.FAILED, "slow", since=5, limit=230)] == ids[:230]
    assert [request["limit"] for request in broker.requests] == [200, 200, 200, 200, 30]
    assert {key: broker.requests[-1][key] for key in ("state", "queue", "since", "cursor")} == {
        "state": "failed",
        "queue": "slow",
        "since": 5,
        "cursor": "200",
    }
    assert list(client.list("failed", limit=0)) == []


def test_leaving_a_list_early_leaves_nothing_behind(shell: Shell, broker: Responder):
    page = [protocol.result_fields(result(ID))] * 3
    broker.script = lambda request: {"tasks": page, "cursor": "1:1"}
    client = shell.client(broker.endpoint)
    listing = client.list("succeeded")
    next(listing)

    listing.close()

    assert len(broker.requests) == 1
    broker.script = broker.succeed
    assert client.ping()["ready"]


# ── many tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_many_tasks_travel_in_chunks_and_keep_their_order(shell: Shell, broker: Responder):
    specs = (TaskSpec(name="example", args=(str(i),)) for i in range(2_400))

    found = shell.client(broker.endpoint).submit_many(specs)

    assert outcomes(found) == ["created"] * 2_400
    assert [broker.tasks[one.task.id]["args"] for one in found] == [[str(i)] for i in range(2_400)]
    assert sorted(len(request["tasks"]) for request in broker.requests) == [200, 400, 800, 1000]


def test_what_was_answered_while_the_source_took_long_is_not_late(shell: Shell, broker: Responder):
    def source() -> Iterator[TaskSpec]:
        yield from (TaskSpec(name="example") for _ in range(CHUNK_TASKS + 1))
        Event().wait(1.5)  # longer than the time-out

    found = shell.client(broker.endpoint, timeout=1.0).submit_many(source())

    assert outcomes(found) == ["created"] * (CHUNK_TASKS + 1)


def test_many_of_none(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)

    assert client.submit_many([]) == []
    assert client.map("example", []) == []
    assert list(client.as_completed([])) == []
    assert not broker.requests


def test_one_bad_task_of_many_hinders_no_other(shell: Shell, broker: Responder):
    def refuse_some(request: dict[str, Any]) -> Any:
        answers = []
        for i, task in enumerate(request["tasks"]):
            error = InvalidRequest(f"tasks[{i}].name: expected a name", field=f"tasks[{i}].name")
            refused = {"id": task["id"], "outcome": "error", "error": protocol.error_fields(error)}
            answers.append(refused if task["name"] == "/" else broker.succeed({**request, "task": task}))
        return {"ack": "stored", "outcomes": answers}

    broker.script = refuse_some
    specs = [TaskSpec(id=ID, name="a"), *(TaskSpec(name="/" if i == 1_200 else "b") for i in range(1, 1_300))]

    found = shell.client(broker.endpoint).submit_many([*specs, TaskSpec(id=ID, name="a")])

    assert found[0].outcome == "created"
    assert found[1300].outcome == "exists"
    bad = found[1200]
    assert isinstance(bad.error, InvalidRequest)
    assert (str(bad.error), bad.error.field) == ("tasks[1200].name: expected a name", "tasks[1200].name")
    assert bad.error.id == bad.task.id
    assert outcomes(found).count("created") == 1_299
    assert found[0].accepted().id == ID
    with pytest.raises(InvalidRequest):
        bad.accepted()


def test_tasks_that_are_refused_for_now_are_sent_again(shell: Shell, broker: Responder):
    full = {"outcome": "error", "error": protocol.error_fields(Busy("queue: full", retry_after_s=0.01))}

    def refuse_first(request: dict[str, Any]) -> Any:
        tasks = request["tasks"]
        if len(broker.requests) > 1:
            return broker.succeed(request)
        stored = broker.succeed({**request, "tasks": tasks[::2]})["outcomes"]
        answers = [stored[i // 2] if i % 2 == 0 else {"id": task["id"], **full} for i, task in enumerate(tasks)]
        return {"ack": "stored", "outcomes": answers}

    broker.script = refuse_first
    found = shell.client(broker.endpoint).submit_many(TaskSpec(name="example") for _ in range(10))

    assert outcomes(found) == ["created"] * 10
    assert [len(request["tasks"]) for request in broker.requests] == [10, 5]


def test_tasks_that_have_no_room_in_one_message_share_it_out(shell: Shell, broker: Responder):
    specs = [TaskSpec(name="example", stdin=b"x" * 1_000_000) for _ in range(9)]

    found = shell.client(broker.endpoint).submit_many(specs)

    assert outcomes(found) == ["created"] * 9
    assert max(map(len, broker.messages)) <= wire.MAX_MESSAGE_BYTES
    assert len(broker.requests) == 3


def test_a_task_that_is_too_big_or_has_no_form_is_found_among_the_others(shell: Shell, broker: Responder):
    class Odd:
        pass

    specs = [TaskSpec(name="example") for _ in range(20)]
    specs[3] = TaskSpec(name="example", stdin=b"x" * 5_000_000)
    specs[15] = TaskSpec(name="example", args=("\ud800",))
    specs[16] = TaskSpec(name="example", args=(Odd(),))  # type: ignore[arg-type]

    found = shell.client(broker.endpoint).submit_many(specs)

    assert [i for i, one in enumerate(found) if isinstance(one.error, InvalidRequest)] == [3, 15, 16]
    assert len(broker.tasks) == 17
    assert [str(found[i].error).partition(":")[0] for i in (3, 15, 16)] == [
        "tasks[3].stdin",
        "tasks[15].args[0]",
        "tasks[16].args[0]",
    ]


def test_after_a_chunk_without_an_answer_no_more_are_sent(shell: Shell, broker: Responder):
    broker.script = lambda request: SILENCE

    found = shell.client(broker.endpoint, timeout=0.3).submit_many(TaskSpec(name="example") for _ in range(10_000))

    errors = [one.error for one in found if isinstance(one.error, NoAnswer)]
    assert len(errors) == len(found) == 10_000
    sent = sum(len(request["tasks"]) for request in broker.requests)
    assert CHUNK_TASKS <= sent <= 2_400, "four chunks"
    assert {error.stored for error in errors[:sent]} == {"unknown"}
    assert {error.stored for error in errors[2_400:]} == {"no"}


def test_a_reply_with_the_wrong_number_of_outcomes_is_an_error_for_all(shell: Shell, broker: Responder):
    broker.script = lambda request: {"ack": "stored", "outcomes": []}

    found = shell.client(broker.endpoint).submit_many([TaskSpec(name="example")] * 2)

    assert outcomes(found) == ["InvalidRequest"] * 2


def test_something_else_than_a_task_among_many_is_named(shell: Shell, broker: Responder):
    with pytest.raises(InvalidRequest, match="TaskSpec, got dict"):
        shell.client(broker.endpoint).submit_many([{"name": "example"}])


def test_map_gives_results_in_order(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)

    found = client.map("example", ([str(i)] for i in range(1_500)), queue="slow", retry=[1])

    assert [one.text for one in found] == [str(i) for i in range(1_500)]
    assert {task["queue"] for task in broker.tasks.values()} == {"slow"}


def test_map_raises_what_was_refused(shell: Shell, broker: Responder):
    with pytest.raises(InvalidRequest, match="args"):
        shell.client(broker.endpoint).map("example", [["\ud800"]])


def test_as_completed_gives_what_ends_first(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    tasks = [client.submit("example") for _ in range(3)]
    broker.script = lambda request: SILENCE
    completed = client.as_completed([tasks[0].id, tasks[1].id, tasks[2].id, tasks[0].id])
    asking = _Background(lambda: next(completed))
    requests = {request["id"]: request for request in broker.received(6)[3:]}

    broker.push(requests[tasks[1].id], task_reply(result(tasks[1].id)))
    assert asking.value().id == tasks[1].id
    for task in (tasks[0], tasks[2]):
        broker.push(requests[task.id], task_reply(result(task.id)))

    assert {found.id for found in completed} == {tasks[0].id, tasks[2].id}


def test_as_completed_of_more_than_can_be_waited_for_gives_each_its_turn(shell, broker, monkeypatch):
    monkeypatch.setattr(waiting, "WINDOW", 3)
    monkeypatch.setattr(waiting, "TURN_S", 0.01)
    ids = [str(UUID(int=i)) for i in range(10)]

    def ends_last_first(request: dict[str, Any]) -> Any:
        ended = request["id"] == max(set(ids) - gone)
        if ended:
            gone.add(request["id"])
        return task_reply(result(request["id"], State.SUCCEEDED if ended else State.RUNNING))

    gone: set[str] = set()
    broker.script = ends_last_first

    found = [one.id for one in shell.client(broker.endpoint).as_completed(ids)]

    assert found == sorted(ids, reverse=True)


def test_as_completed_ends_when_time_is_up(shell: Shell, broker: Responder):
    ids = [str(uuid4()) for _ in range(3)]
    broker.script = lambda request: task_reply(
        result(request["id"], State.SUCCEEDED if request["id"] == ids[0] else State.RUNNING)
    )

    found = []
    with pytest.raises(ResultTimeout, match=r"2 tasks have not ended, after 0\.05 s"):
        found.extend(shell.client(broker.endpoint).as_completed(ids, timeout=0.05))


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_client_says_so(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    client.ping()

    client.close()
    client.close()

    with pytest.raises(ClientClosed):
        client.ping()
    with pytest.raises(ClientClosed):
        list(client.list("failed"))


def test_closing_ends_the_calls_under_way(shell: Shell, broker: Responder):
    broker.script = lambda request: SILENCE
    client = shell.client(broker.endpoint)
    asking = _Background(lambda: client.wait(ID))
    broker.received(1)

    client.close()

    assert isinstance(asking.error(), NoAnswer)


def test_closing_while_looking_for_a_broker(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    broker.script = lambda request: SILENCE
    asking = _Background(lambda: client.wait(ID))
    broker.received(1)
    broker.stop()

    client.close()

    assert isinstance(asking.error(), NoAnswer)


def test_closing_with_an_iteration_that_nobody_goes_on_with(shell: Shell, broker: Responder):
    client = shell.client(broker.endpoint)
    tasks = [client.submit("example").id for _ in range(2)]
    broker.script = lambda request: broker.succeed(request) if request["id"] == tasks[0] else SILENCE
    completed = client.as_completed(tasks)
    assert next(completed).id == tasks[0]

    client.close()

    with pytest.raises(KingtaskError):
        next(completed)


class _Background:
    """Runs a call in a thread; gives its value or its error."""

    def __init__(self, call: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Any) -> None:
        try:
            self._value = call()
        except BaseException as error:  # noqa: BLE001 (handed on)
            self._error = error

    def value(self) -> Any:
        self._join()
        if self._error is not None:
            raise self._error
        return self._value

    def error(self) -> BaseException | None:
        self._join()
        return self._error

    def _join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the call has not ended"
