"""A record that was deleted or damaged from outside costs that task, never the others.

A call that failed because of it would fail again, for every broker and worker, for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis

from kingtask.states import State
from kingtask.store import functions
from kingtask.store.functions import Fence, Quota
from kingtask.store.redis.redis_errors import store_error
from kingtask.wire import pack_raw
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import START_MS, TimedStore


def _delete(store: TimedStore, key: str) -> None:
    store.client.delete(key)


def _overwrite(store: TimedStore, key: str) -> None:
    store.client.set(key, "not a hash")


def _garble(store: TimedStore, key: str) -> None:
    store.client.hset(key, "p", b"\xc1\xff not msgpack")


def _replace(store: TimedStore, key: str) -> None:
    store.client.hset(key, "p", b"\x01")


def _empty(store: TimedStore, key: str) -> None:
    store.client.hdel(key, "s", "c", "due", "attempt", "worker", "t", "claimed")


def _misfit(store: TimedStore, key: str) -> None:
    """A plan whose retries are no list and whose instants are no numbers."""
    store.client.hset(key, "p", pack_raw(["example", "", 5, "default", 5, "", "", ""]))


def _misnumber(store: TimedStore, key: str) -> None:
    store.client.hset(key, mapping={"place": "x", "failures": "x"})


@pytest.fixture(
    params=[_delete, _overwrite, _garble, _replace, _empty, _misfit], ids=lambda damage: damage.__name__[1:]
)
def damage(request: pytest.FixtureRequest) -> Callable[[TimedStore, str], None]:
    chosen: Callable[[TimedStore, str], None] = request.param
    return chosen


@pytest.fixture
def store(store: TimedStore) -> Iterator[TimedStore]:
    """What is damaged cannot pass the keyspace walk: it is removed before."""
    store.tick()
    yield store
    keyspace.remove(store.client, store.keys)


def index(store: TimedStore, name: str) -> set[str]:
    members: list[bytes] = store.client.zrange(f"{store.keys.prefix}{name}", 0, -1)  # type: ignore[assignment]
    return {member.decode() for member in members}


Damage = Callable[[TimedStore, str], None]


def test_the_others_become_due(store: TimedStore, damage: Damage) -> None:
    before, bad, after = (store.put(delay_s=delay_s) for delay_s in (0.001, 0.002, 0.003))
    damage(store, store.keys.task(bad))
    store.pass_ms(10)
    store.tick()
    store.tick(housekeep=True)
    claimed = [task.id for task in store.claim(5)]
    assert [task for task in claimed if task != bad] == [before, after]
    assert index(store, "schedule") == set()


def test_the_others_of_a_submit_are_stored(store: TimedStore) -> None:
    bad = store.put()
    _overwrite(store, store.keys.task(bad))
    specs = [store.spec(), store.spec(id=bad), store.spec()]
    assert store.submit(*specs).outcomes == ["ready", "conflict", "ready"]
    assert [store.state(spec.id or "") for spec in (specs[0], specs[2])] == ["ready", "ready"]


def test_an_index_of_a_clients_tasks_that_is_none_costs_that_client(store: TimedStore) -> None:
    alice, bob = Quota("alice", 5), Quota("bob", 5)
    store.quota = alice
    running = store.put()
    _overwrite(store, f"{store.keys.prefix}owned:alice")
    tasks = [(store.new_id(), quota) for quota in (bob, alice, None, bob)]
    prepared = [functions.prepare(task, store.spec(id=task), quota) for task, quota in tasks]
    assert store.ask(functions.submit(store.policy, prepared)).outcomes == ["ready", "quota_exceeded", "ready", "ready"]
    assert store.end(store.take()) == "succeeded"
    assert store.state(running) == "succeeded"


def test_the_others_are_claimed(store: TimedStore, damage: Damage) -> None:
    before, bad, after = store.put(), store.put(), store.put()
    damage(store, store.keys.task(bad))
    assert [task.id for task in store.claim(5)] == [before, after]
    assert index(store, "ready:default") == set()


def test_the_others_are_reaped(store: TimedStore, damage: Damage) -> None:
    before, bad, after = store.put(), store.put(), store.put()
    store.claim(5)
    damage(store, store.keys.task(bad))
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert index(store, "ready:default") == {before, after}
    assert index(store, "running") == set()


def test_the_others_expire(store: TimedStore, damage: Damage) -> None:
    tasks = [store.put(expires_at=START_MS / 1000 + 1, delay_s=60.0) for _ in range(3)]
    damage(store, store.keys.task(tasks[1]))
    store.pass_ms(1000)
    store.tick()
    assert [store.state(task) for task in (tasks[0], tasks[2])] == ["expired", "expired"]
    assert index(store, "expiry") == set()


def test_an_entry_deleted_from_an_index_does_no_harm(store: TimedStore) -> None:
    task, other = store.put(delay_s=1.0, expires_at=START_MS / 1000 + 2), store.put()
    store.client.zrem(f"{store.keys.prefix}schedule", task)
    store.client.zrem(f"{store.keys.prefix}ready:default", other)
    store.pass_ms(2000)
    store.tick(housekeep=True)
    assert store.state(task) == "expired"
    assert store.cancel(other) == "ready"
    assert store.state(other) == "cancelled"


def test_housekeeping_goes_on(store: TimedStore, damage: Damage) -> None:
    tasks = []
    for _ in range(3):
        store.pass_ms(1)
        tasks.append(store.put())
        store.cancel(tasks[-1])
    damage(store, store.keys.task(tasks[0]))
    store.client.delete(store.keys.task(tasks[1]))
    store.tick(housekeep=True)
    assert tasks[2] in index(store, "finished:cancelled")
    assert tasks[1] not in index(store, "finished:cancelled")


def three_running(store: TimedStore, damage: Damage) -> list[Fence]:
    """The one in the middle is damaged."""
    tasks = [store.put(retry=(1.0,)) for _ in range(3)]
    fences = [store.take() for _ in tasks]
    damage(store, store.keys.task(tasks[1]))
    return fences


def test_the_others_are_renewed(store: TimedStore, damage: Damage) -> None:
    fences = three_running(store, damage)
    assert store.extend(*fences) == ["ok", "fenced", "ok"]


@pytest.mark.parametrize(("verdict", "state"), [("succeeded", "succeeded"), ("failed", "scheduled")])
def test_the_others_are_finished(store: TimedStore, damage: Damage, verdict: str, state: str) -> None:
    fences = three_running(store, damage)
    answers = store.finish(*(store.ended(fence, verdict) for fence in fences))
    assert answers == [state, "fenced", state]


def test_the_others_are_released(store: TimedStore, damage: Damage) -> None:
    fences = three_running(store, damage)
    assert store.release(*fences) == ["ready", "fenced", "ready"]


def test_a_damaged_place_or_number_of_failures_costs_nothing_else(store: TimedStore) -> None:
    fences = three_running(store, _misnumber)
    assert store.release(*fences) == ["ready", "ready", "ready"]
    fences = [store.take() for _ in fences]
    for fence in fences:
        _misnumber(store, store.keys.task(fence.id))
    assert store.finish(*(store.ended(fence, "failed") for fence in fences)) == ["scheduled"] * 3
    store.pass_ms(1000)
    store.tick()
    for _ in fences:
        store.take()
    store.client.hdel(store.keys.task(fences[1].id), "place")
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert index(store, "ready:default") == {fence.id for fence in fences}


# ── a damaged index: nothing is lost, and the rows of it are repeated ──────────────────────────────────────────────


def damaged(store: TimedStore, name: str) -> str:
    """A key of that name that is no index any more."""
    key = f"{store.keys.prefix}{name}"
    store.client.set(key, "not an index")
    return key


def test_a_retry_that_the_schedule_cannot_take_is_repeated(store: TimedStore, server: RedisServer) -> None:
    fences = [store.take() for _ in (store.put(), store.put(retry=(1.0,)), store.put())]
    schedule = damaged(store, "schedule")
    verdicts = ("succeeded", "failed", "failed")
    ended = [store.ended(fence, verdict) for fence, verdict in zip(fences, verdicts, strict=True)]
    assert store.finish(*ended) == ["succeeded", "damaged", "failed"]
    server.wait_for_log(f"finish failed for {fences[1].id}: ")
    assert index(store, "running") == {fences[1].id}, "its lease goes on"
    store.client.delete(schedule)
    assert store.finish(*ended) == ["recorded", "scheduled", "recorded"]
    assert index(store, "schedule") == {fences[1].id}
    (queue,) = store.stats().queues
    assert (queue.scheduled, queue.running) == (1, 0)


def test_a_release_that_its_queue_cannot_take_is_repeated(store: TimedStore) -> None:
    tasks = [store.put(), store.put(queue="q"), store.put()]
    fences = [store.take(queues=["default", "q"]) for _ in tasks]
    fences.sort(key=lambda fence: tasks.index(fence.id))
    ready = damaged(store, "ready:q")
    assert store.release(*fences) == ["ready", "damaged", "ready"]
    store.client.delete(ready)
    assert store.release(*fences) == ["fenced", "ready", "fenced"]
    assert index(store, "ready:q") == {tasks[1]}
    assert index(store, "running") == set()


def test_a_lease_that_cannot_be_renewed_is_not_given_away(store: TimedStore) -> None:
    fences = [store.take() for _ in (store.put(), store.put())]
    running = damaged(store, "running")
    assert store.extend(*fences) == ["damaged", "damaged"]
    store.client.delete(running)
    assert store.extend(*fences) == ["ok", "ok"]
    assert index(store, "running") == {fence.id for fence in fences}


def test_others_are_handed_back_although_the_queue_of_one_cannot_take_it(store: TimedStore) -> None:
    tasks = [store.put(), store.put(queue="q"), store.put()]
    for _ in tasks:
        store.take(queues=["default", "q"])
    ready = damaged(store, "ready:q")
    store.client.hset(f"{store.keys.prefix}held:w1", "no-task", "no fence")
    store.extend()
    assert index(store, "ready:default") == {tasks[0], tasks[2]}
    store.client.delete(ready)
    store.extend()
    assert index(store, "ready:q") == {tasks[1]}
    assert store.client.exists(f"{store.keys.prefix}held:w1") == 0


def test_leases_are_renewed_although_the_index_of_the_worker_is_damaged(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    damaged(store, "held:w1")
    assert store.extend(fence) == ["ok"]


def due_in_two_queues(store: TimedStore, n: int) -> tuple[list[str], str]:
    """n tasks of a queue with a damaged index, and one task of another queue, which is due after these."""
    tasks = [store.put(queue="a", delay_s=0.1, expires_at=START_MS / 1000 + 3600) for _ in range(n)]
    other = store.put(queue="b", delay_s=0.2)
    damaged(store, "ready:a")
    store.pass_ms(200)
    return tasks, other


def test_due_tasks_wait_until_the_index_of_their_queue_is_repaired(store: TimedStore, server: RedisServer) -> None:
    tasks, other = due_in_two_queues(store, 2)
    assert store.tick(housekeep=True).ready == [("b", 1)]
    assert index(store, "ready:b") == {other}
    assert index(store, "schedule") == set(tasks)
    server.wait_for_log("tick failed for a: ")
    store.client.delete(f"{store.keys.prefix}ready:a")
    store.pass_ms(15_000)
    store.tick()
    assert index(store, "ready:a") == index(store, "expiry") == set(tasks)
    assert {task.id for task in store.claim(2, queues=["a"])} == set(tasks)
    assert index(store, "expiry") == set()


def test_many_due_tasks_of_a_damaged_queue_do_not_fill_the_ticks(store: TimedStore) -> None:
    _, other = due_in_two_queues(store, 250)
    assert store.tick().more
    assert not store.tick().more
    assert index(store, "ready:b") == {other}


def test_lost_tasks_stay_running_until_the_index_of_their_queue_is_repaired(store: TimedStore) -> None:
    tasks = [store.put(queue="a"), store.put(queue="b")]
    for _ in tasks:
        store.take(queues=["a", "b"])
    ready = damaged(store, "ready:a")
    for _ in range(16):
        store.pass_ms(1000)
        store.tick()
    assert (index(store, "running"), index(store, "ready:b")) == ({tasks[0]}, {tasks[1]})
    store.client.delete(ready)
    for _ in range(15):
        store.pass_ms(1000)
        store.tick()
    assert (index(store, "running"), index(store, "ready:a")) == (set(), {tasks[0]})
    assert store.field(tasks[0], "lost") == b"1"


def test_other_queues_are_claimed_although_the_index_of_one_is_damaged(store: TimedStore, server: RedisServer) -> None:
    task = store.put(queue="b")
    damaged(store, "ready:a")
    assert [claimed.id for claimed in store.claim(1, queues=["a", "b"])] == [task]
    server.wait_for_log("claim failed for a: ")


def test_other_queues_take_tasks_although_the_index_of_one_is_damaged(store: TimedStore) -> None:
    store.put(queue="a")
    damaged(store, "ready:a")
    specs = [store.spec(queue=queue) for queue in ("b", "a", "b")]
    assert store.submit(*specs).outcomes == ["ready", "queue_full", "ready"]


def test_a_claim_that_the_index_of_running_tasks_cannot_take_removes_no_task(store: TimedStore) -> None:
    tasks = [store.put(expires_at=START_MS / 1000 + 3600) for _ in range(3)]
    running = damaged(store, "running")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.claim(2)
    assert index(store, "ready:default") == index(store, "expiry") == set(tasks)
    store.client.delete(running)
    assert [task.id for task in store.claim(3)] == tasks
    assert index(store, "expiry") == set()


def test_tasks_are_claimed_although_the_index_of_the_worker_is_damaged(store: TimedStore) -> None:
    store.put()
    damaged(store, "held:w1")
    assert store.end(store.take()) == "succeeded"


@pytest.mark.parametrize("name", ["ready:default", "counts:default", "finished:cancelled"])
def test_housekeeping_survives_a_damaged_index(store: TimedStore, name: str) -> None:
    store.cancel(store.put())
    damaged(store, name)
    task = store.put(queue="b", delay_s=0.1)
    store.pass_ms(100)
    for _ in range(10):  # each time one queue at random
        store.tick(housekeep=True)
    assert index(store, "ready:b") == {task}


@pytest.mark.parametrize("name", ["ready:b", "counts:b"])
def test_a_damaged_index_costs_the_stats_of_its_queue_only(store: TimedStore, server: RedisServer, name: str) -> None:
    for queue in ("a", "b", "c"):
        store.put(queue=queue)
    damaged(store, name)
    shown = {queue.name: (queue.ready, queue.totals) for queue in store.stats().queues}
    assert shown == {"a": (1, {"submitted": 1}), "b": (0, {}), "c": (1, {"submitted": 1})}
    server.wait_for_log("stats failed for b: ")


@pytest.mark.parametrize("place", ["1e300", "inf", "-inf"])
def test_a_damaged_place_stops_no_stats(store: TimedStore, place: str) -> None:
    task = store.put()
    store.client.execute_command("ZADD", f"{store.keys.prefix}ready:default", place, task)
    (queue,) = store.stats().queues
    assert queue.name == "default"


def test_a_damaged_index_of_the_worker_blocks_no_end(store: TimedStore) -> None:
    fences = [store.take() for _ in (store.put(), store.put(retry=(1.0,)), store.put())]
    damaged(store, "held:w1")
    assert store.end(fences[0]) == "succeeded"
    assert store.finish(store.ended(fences[1], "failed")) == ["scheduled"]
    assert store.release(fences[2]) == ["ready"]
    assert index(store, "running") == set()
    (queue,) = store.stats().queues
    assert (queue.scheduled, queue.ready, queue.running) == (1, 1, 0)


def test_an_index_of_ended_tasks_blocks_no_end(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    damaged(store, "finished:succeeded")
    assert store.end(fence) == "succeeded"
    assert store.state(fence.id) == "succeeded"
    (queue,) = store.stats().queues
    assert (queue.running, queue.totals["succeeded"]) == (0, 1)


def test_ends_are_counted_although_their_outputs_cannot_be_indexed(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    damaged(store, "outputs:until")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.finish(store.ended(fence, stdout=b"text"))
    assert store.end(fence) == "recorded"
    (queue,) = store.stats().queues
    assert (queue.running, queue.totals["succeeded"]) == (0, 1)


def test_the_others_are_handed_back(store: TimedStore, damage: Damage) -> None:
    fences = three_running(store, damage)
    store.extend()
    assert [store.state(fence.id) for fence in (fences[0], fences[2])] == ["ready", "ready"]


def test_the_others_are_claimed_again(store: TimedStore, damage: Damage) -> None:
    tasks = [store.put() for _ in range(3)]
    token = store.new_token()
    store.claim(3, token=token)
    damage(store, store.keys.task(tasks[1]))
    assert {task.id for task in store.claim(3, token=token, again=True)} >= {tasks[0], tasks[2]}


def test_the_others_are_shown(store: TimedStore, damage: Damage) -> None:
    first, bad, last = store.put(), store.put(priority=9), store.put()
    damage(store, store.keys.task(bad))
    assert store.ask(functions.states([first, bad, last]))[::2] == ["ready", "ready"]
    for queue in ("", "default"):
        call = functions.list_tasks(State.CANCELLED, queue, first="+inf", last="-inf", rest=0, limit=9)
        assert store.ask(call).tasks == []
    call = functions.list_tasks(State.READY, "default", first="-inf", last="+inf", rest=0, limit=9)
    assert [row.id for row in store.ask(call).tasks] == [first, last]
    assert store.stats().queues[0].ready == 3


def test_what_is_dropped_is_named_in_the_servers_log(server: RedisServer, store: TimedStore) -> None:
    bad = store.put()
    _garble(store, store.keys.task(bad))
    assert store.claim(5) == []
    server.wait_for_log(f"ready:default failed for {bad}: ")


def test_a_queue_whose_numbers_are_no_numbers_any_more_goes_on(store: TimedStore) -> None:
    for of_it in ("counts:default", None):
        scheduled, ready = store.put(delay_s=0.1), store.put()
        if of_it is None:
            store.client.delete(f"{store.keys.prefix}counts:default")
            store.client.hset(f"{store.keys.prefix}counts:default", mapping={"running": "many", "touched": "x"})
            store.client.hset(store.keys.meta, mapping={"live": "many", "kept": "much"})
        else:
            store.client.set(f"{store.keys.prefix}{of_it}", "not a hash")
        store.pass_ms(100)
        store.tick()
        assert index(store, "ready:default") == {scheduled, ready}
        fences = [store.take(), store.take()]
        assert {fence.id for fence in fences} == {scheduled, ready}
        assert store.extend(*fences) == ["ok", "ok"]
        assert [store.end(fence) for fence in fences] == ["succeeded", "succeeded"]


def test_ends_are_counted_although_the_claim_that_came_with_them_fails(store: TimedStore) -> None:
    store.put()
    fence = store.take()
    queues = f"{store.keys.prefix}queues"
    store.client.rename(queues, f"{queues}:away")
    damaged(store, "queues")
    wish = functions.ClaimRequest(["default"], 1, store.new_token(), 2)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.finish_and_claim(store.ended(fence), claim=wish)
    store.client.rename(f"{queues}:away", queues)
    assert store.end(fence) == "recorded"
    (queue,) = store.stats().queues
    assert (queue.running, queue.totals) == (0, {"submitted": 1, "started": 1, "succeeded": 1})


def test_places_are_not_given_again_after_a_tick_that_failed(store: TimedStore) -> None:
    store.put(delay_s=0.1)
    store.client.set(f"{store.keys.prefix}outputs:until", "not an index")
    store.pass_ms(100)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        store.tick()
    store.client.delete(f"{store.keys.prefix}outputs:until")
    store.put()
    ready: Any = store.client.zrange(f"{store.keys.prefix}ready:default", 0, -1, withscores=True)
    assert len({place for _, place in ready}) == 2


# ── a missing right is no damage: the caller is told, and nothing is removed ───────────────────────────────────────


@pytest.fixture
def without(server: RedisServer, store: TimedStore) -> Iterator[Callable[[str], None]]:
    """Connects the store as a user who may not run this command."""
    admin, name = server.client(), f"limited-{uuid4().hex}"

    def limit(command: str) -> None:
        admin.execute_command("ACL", "SETUSER", name, "on", "nopass", "~*", "&*", "+@all", f"-{command}")
        store.client = server.client(username=name, password="any")

    yield limit
    store.client = admin
    admin.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("call", ["finish", "release", "extend"])
def test_a_missing_right_is_reported_as_one(store: TimedStore, without: Callable[[str], None], call: str) -> None:
    store.put()
    fence = store.take()
    calls = {
        "finish": partial(store.finish, store.ended(fence)),
        "release": partial(store.release, fence),
        "extend": partial(store.extend, fence),
    }
    without("zadd" if call == "extend" else "zrem")
    with pytest.raises(redis.ResponseError) as caught:
        calls[call]()
    assert store_error(caught.value).kind == "permission"


def test_stats_without_a_right_are_no_zeros(store: TimedStore, without: Callable[[str], None]) -> None:
    store.put()
    without("zcard")
    with pytest.raises(redis.ResponseError) as caught:
        store.stats()
    assert store_error(caught.value).kind == "permission"


def test_the_other_ends_of_a_call_are_counted_although_a_right_is_missing(
    store: TimedStore, without: Callable[[str], None]
) -> None:
    fences = [store.take() for _ in (store.put(), store.put(retry=(1.0,)))]
    without("zrange")  # a retry needs it
    with pytest.raises(redis.ResponseError):
        store.finish(store.ended(fences[0]), store.ended(fences[1], "failed"))
    (queue,) = store.stats().queues
    assert (queue.running, queue.totals["succeeded"]) == (1, 1)


def test_a_tick_without_a_right_removes_no_task(store: TimedStore, without: Callable[[str], None]) -> None:
    store.put()
    fence = store.take()
    for _ in range(14):
        store.pass_ms(1000)
        store.tick()
    without("hincrby")
    store.pass_ms(1000)
    with pytest.raises(redis.ResponseError):
        store.tick()
    assert index(store, "running") == {fence.id}
