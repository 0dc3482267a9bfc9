"""clock, get, states, list and stats."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kingtask import protocol, wire
from kingtask.result import Result
from kingtask.states import State
from kingtask.store import functions
from kingtask.store.codec import Page
from kingtask.store.stats import StoreStats
from tests.store.syncstore import START_MS, TimedStore


def page(store: TimedStore, state: State, **options: Any) -> Page:
    newest_first = state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED)
    first, last = ("+inf", "-inf") if newest_first else ("-inf", "+inf")
    arguments = {"first": first, "last": last, "rest": 0, "limit": 50, **options}
    found: Page = store.ask(functions.list_tasks(state, arguments.pop("queue", ""), **arguments))
    return found


def pages(store: TimedStore, state: State, **options: Any) -> list[list[Result]]:
    """Follow the cursor to the end."""
    found = page(store, state, **options)
    rows = [found.tasks]
    while found.cursor is not None:
        assert len(rows) < 1000, "the cursor leads nowhere"
        first, rest = found.cursor
        found = page(store, state, **{**options, "first": first, "rest": rest})
        rows.append(found.tasks)
    return rows


def listed(store: TimedStore, state: State, **options: Any) -> list[str]:
    return [result.id for rows in pages(store, state, **options) for result in rows]


# ── clock, get, states ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_clock_is_told_and_nothing_written(store: TimedStore) -> None:
    store.pass_ms(1234)
    assert store.ask(functions.clock()).now_us == store.now_ms * 1000
    assert not store.client.keys(f"{store.keys.prefix}*")


def test_get_shows_how_a_task_stands(store: TimedStore) -> None:
    task = store.put(args=("a", ""), delay_s=1.0, queue="q", priority=3, retry=(2.0,), tags=("x",))
    expected = Result(
        id=task,
        name="example",
        args=("a", ""),
        queue="q",
        priority=3,
        tags=("x",),
        state=State.SCHEDULED,
        created_at=START_MS / 1000,
        due_at=START_MS / 1000 + 1,
    )
    assert store.get(task) == expected
    found = store.ask(functions.get(task))
    assert found.now_us == START_MS * 1000
    assert bytes(found.packed) == wire.pack(protocol.result_fields(expected))
    assert store.ask(functions.get(store.new_id())).result is None


def test_states_of_several(store: TimedStore) -> None:
    ready, scheduled, running = store.put(), store.put(delay_s=1.0), store.put(queue="q")
    store.take(queues=["q"])
    asked = [running, store.new_id(), ready, scheduled, ready]
    assert store.ask(functions.states(asked)) == ["running", "", "ready", "scheduled", "ready"]
    assert store.ask(functions.states([])) == []


# ── list ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_state(store: TimedStore, state: State, **fields: Any) -> str:
    """Bring a new task into a state; time passes by at most a millisecond."""
    if state is State.SCHEDULED:
        return store.put(delay_s=60.0, **fields)
    if state is State.EXPIRED:
        task = store.put(expires_at=(store.now_ms + 1) / 1000, **fields)
        store.pass_ms(1)
        store.tick()
        return task
    task = store.put(**fields)
    if state is State.CANCELLED:
        store.cancel(task)
    elif state is not State.READY:
        fence = store.take(queues=[fields.get("queue", "default")])
        if state is not State.RUNNING:
            store.end(fence, state)
    return task


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_listed(store: TimedStore, state: State) -> None:
    for other in State:
        in_state(store, other, queue=f"q-{other}")
    task = in_state(store, state, queue="mine", priority=7)
    (row,) = page(store, state, queue="mine").tasks
    full = store.get(task)
    assert (row.id, row.name, row.queue, row.priority, row.state) == (task, "example", "mine", 7, state)
    shown = ("created_at", "due_at", "attempt", "worker", "reason", "origin", "finished_at")
    assert {name: getattr(row, name) for name in shown} == {name: getattr(full, name) for name in shown}


@pytest.mark.parametrize("state", [state for state in State if state is not State.EXPIRED])
@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_paging_over_ties_shows_each_task_once(store: TimedStore, state: State, limit: int) -> None:
    """Six at each of three instants, then one alone. (Expired ones lie as the other ended ones do.)"""
    expected = []
    for i in range(19):
        if i and i % 6 == 0:
            store.pass_ms(1000)
        expected.append(in_state(store, state))
    rows = pages(store, state, queue="default", limit=limit)
    found = [result.id for row in rows for result in row]
    assert sorted(found) == sorted(expected), "each once"
    assert all(len(row) == limit for row in rows[:-2]), "no short page before the end"
    if state in (State.SCHEDULED, State.READY):
        assert found == expected, "earliest first"
    elif state is not State.RUNNING:
        times = [result.finished_at or 0 for row in rows for result in row]
        assert times == sorted(times, reverse=True), "newest first"


def test_ready_is_listed_in_the_order_of_claiming(store: TimedStore) -> None:
    rng = random.Random(7)
    for _ in range(60):
        store.put(priority=rng.randint(0, 9))
    shown = listed(store, State.READY, queue="default", limit=11)
    assert shown == [task.id for task in store.claim(60)]


def test_a_queue_is_found_among_many_others(store: TimedStore) -> None:
    """A page looks at 200 entries at most: pages may be empty, and the cursor leads on."""
    store.submit(*(store.spec(delay_s=9.0, queue="noise") for _ in range(200)))
    store.submit(*(store.spec(delay_s=9.0, queue="noise") for _ in range(150)))
    wanted = [store.put(delay_s=9.0, queue="q"), store.put(delay_s=10.0, queue="q")]
    store.submit(*(store.spec(delay_s=11.0, queue="noise") for _ in range(200)))
    rows = pages(store, State.SCHEDULED, queue="q")
    assert [len(row) for row in rows] == [0, 2, 0]
    assert listed(store, State.SCHEDULED, queue="q", limit=1) == wanted
    assert len(listed(store, State.SCHEDULED)) == 552


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_within_a_time(store: TimedStore, limit: int) -> None:
    ended, due = [], []
    for second in range(5):
        store.at(START_MS + second * 1000)
        ended.append(in_state(store, State.SUCCEEDED))
        due.append(in_state(store, State.SCHEDULED))
    between = {"first": str(START_MS + 3000), "last": str(START_MS + 1000)}
    assert listed(store, State.SUCCEEDED, limit=limit, **between) == ended[3:0:-1]
    between = {"first": str(START_MS + 61_000), "last": str(START_MS + 63_000)}
    assert listed(store, State.SCHEDULED, limit=limit, **between) == due[1:4]


@pytest.mark.parametrize("state", [State.SCHEDULED, State.READY, State.RUNNING])
@pytest.mark.parametrize("limit", [1, 3, 4])
def test_tasks_that_leave_while_one_pages_do_not_hide_others(store: TimedStore, state: State, limit: int) -> None:
    """As someone does who cancels page by page. Running ones share one score, the others have one each."""
    tasks = [in_state(store, state) for _ in range(13)]
    seen: list[str] = []
    cursor: tuple[str, int] | None = ("-inf", 0)
    while cursor is not None:
        found = page(store, state, queue="default", limit=limit, first=cursor[0], rest=cursor[1])
        cursor = found.cursor
        for result in found.tasks:
            seen.append(result.id)
            store.cancel(result.id)
        store.extend()  # hands back what runs, so that what was cancelled ends
        if state is State.RUNNING:
            store.claim(20)
    assert sorted(seen) == sorted(tasks)


def test_a_vanished_record_leaves_no_hole_that_stops_a_list(store: TimedStore) -> None:
    tasks = []
    for _ in range(10):
        store.pass_ms(1)
        tasks.append(in_state(store, State.CANCELLED))
    store.client.delete(*(store.keys.task(task) for task in tasks[3:7]))
    assert listed(store, State.CANCELLED, limit=2) == tasks[9:6:-1] + tasks[2::-1]


def test_an_id_that_is_used_anew_is_not_listed_as_what_it_was(store: TimedStore) -> None:
    task = in_state(store, State.CANCELLED)
    store.client.delete(store.keys.task(task))  # its time is over
    store.put(id=task)
    assert listed(store, State.CANCELLED) == []


def test_an_empty_list_has_no_cursor(store: TimedStore) -> None:
    for state in State:
        assert page(store, state, queue="none") == Page([], None)


# ── stats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stats_of_a_queue(store: TimedStore) -> None:
    store.put(delay_s=30.0)
    ready = [store.put(), store.put()]
    store.pass_ms(2_500)
    store.end(store.take())
    store.put(priority=9)
    store.pass_ms(1_000)
    store.take()
    (queue,) = store.stats().queues
    assert (queue.name, queue.paused) == ("default", False)
    assert (queue.scheduled, queue.ready, queue.running) == (1, 1, 1)
    assert queue.totals == {"submitted": 4, "started": 2, "succeeded": 1}
    assert queue.oldest_waiting_s == pytest.approx(3.5)
    assert store.state(ready[1]) == "ready"


def test_rates_look_back_one_to_two_minutes(store: TimedStore) -> None:
    minute_ms = 60_000
    store.at(START_MS - START_MS % minute_ms)
    for _ in range(12):
        store.put()
    store.pass_ms(minute_ms + 30_000)
    for _ in range(6):
        store.put()
    (queue,) = store.stats().queues
    assert queue.rates == {"submitted": pytest.approx(18 / 90, abs=1e-3)}
    store.pass_ms(minute_ms)
    (queue,) = store.stats().queues
    assert queue.rates == {"submitted": pytest.approx(6 / 90, abs=1e-3)}
    store.pass_ms(minute_ms)
    (queue,) = store.stats().queues
    assert queue.rates == {}


def test_the_oldest_may_wait_in_any_priority(store: TimedStore) -> None:
    for priority in (2, 9, 0):
        store.put(priority=priority)
        store.pass_ms(1000)
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == pytest.approx(3.0)
    store.take()
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == pytest.approx(3.0)
    store.take()
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == pytest.approx(1.0)


def test_waiting_begins_when_it_could_be_claimed(store: TimedStore) -> None:
    store.put(start_at=START_MS / 1000 - 3600)
    store.put(start_at=START_MS / 1000 + 1)
    store.pass_ms(5000)
    store.tick()
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == pytest.approx(5.0), "submitted 5 s ago, however early it was meant to start"
    store.take()
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == pytest.approx(4.0)
    store.take()
    (queue,) = store.stats().queues
    assert queue.oldest_waiting_s == 0.0


def test_totals_count_every_kind_of_event(store: TimedStore) -> None:
    store.tick()
    store.put(retry=(0.001,))
    store.end(store.take(), "failed")
    store.pass_ms(1)
    store.tick()
    store.end(store.take(), "failed")
    store.cancel(store.put())
    store.put(expires_at=START_MS / 1000 + 2)
    store.put(queue="q", on_lost="fail")
    store.take(queues=["q"])
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    default, q = store.stats().queues
    assert default.totals == {"submitted": 3, "started": 2, "retried": 1, "failed": 1, "cancelled": 1, "expired": 1}
    assert q.totals == {"submitted": 1, "started": 1, "lost": 1, "failed": 1}


# ── a gathering of stats ────────────────────────────────────────────────────────────────────────────────────────────


def test_stats_have_the_numbers_of_the_namespace(store: TimedStore) -> None:
    store.put(delay_s=30.0)
    store.put()
    store.put(queue="q")
    store.finish(store.ended(store.take(), stdout=b"text"))
    store.pause("q")
    store.extend(worker="w1", heartbeat=b'{"queues":["q"]}')
    found = store.stats()
    assert [(queue.name, queue.paused) for queue in found.queues] == [("default", False), ("q", True)]
    assert (found.live, found.kept_bytes) == (2, 4)
    assert [queue["served"] for queue in found.fields["queues"]] == [False, True]
    store.pass_ms(20_000)
    assert [worker.alive for worker in store.stats().workers] == [False]


@pytest.mark.parametrize("queues", [0, 1, 25, 26, 700])
def test_stats_of_many_queues_are_read_by_short_calls(
    store: TimedStore, queues: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"q{i:03}" for i in range(queues)]
    for i, name in enumerate(names):
        store.pause(name, paused=i == 7)
    calls: list[functions.FunctionCall] = []

    def asked(call: functions.FunctionCall, ask: Any = store.ask) -> Any:
        calls.append(call)
        return ask(call)

    monkeypatch.setattr(store, "ask", asked)
    found = store.stats().queues
    assert all(len(call.arguments.get("queues", ())) <= functions.QUEUES_AT_ONCE == 25 for call in calls)
    assert len(calls) == 1 + -(-queues // 25)
    assert [(queue.name, queue.paused) for queue in found] == [(name, name == "q007") for name in names]


def test_a_queue_that_was_forgotten_meanwhile_has_zeros(store: TimedStore) -> None:
    calls = functions.gather_stats()
    next(calls)
    (queue,) = store.ask(calls.send(([("gone", False)], StoreStats([], [], []))))
    assert (queue.name, queue.ready, queue.totals, queue.oldest_waiting_s) == ("gone", 0, {}, 0.0)
