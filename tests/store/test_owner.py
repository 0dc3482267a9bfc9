"""The owner of a task: kept for life, checked before anything else is read, and free for anonymous clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kingtask.states import State
from kingtask.store import functions
from kingtask.store.functions import Quota, StoredTask
from tests.store.syncstore import TimedStore, with_id


def as_(store: TimedStore, owner: str | None, *, own_only: bool = True) -> None:
    """The calls that follow are those of a client of this owner."""
    store.owner, store.of = owner, owner if own_only else None


def ended(store: TimedStore, **fields: Any) -> str:
    task = store.put(**fields)
    store.cancel(task)
    return task


def listed(store: TimedStore, state: State) -> list[str]:
    first, last = ("-inf", "+inf") if state is State.READY else ("+inf", "-inf")
    call = functions.list_tasks(state, "default", first=first, last=last, rest=0, limit=200)
    return [task.id for task in store.ask(call.of(store.of)).tasks]


BY_ID: dict[str, Callable[[TimedStore, str], Any]] = {
    "get": lambda store, task: store.ask(functions.get(task).of(store.of)),
    "wait": lambda store, task: store.wait(task),
    "cancel": lambda store, task: store.cancel(task),
    "requeue": lambda store, task: store.requeue(task)[0],
    "forget": lambda store, task: store.forget(task),
}


@pytest.mark.parametrize("op", BY_ID)
def test_a_foreign_task_is_left_alone_and_told_from_a_missing_one_for_the_log_only(store: TimedStore, op: str) -> None:
    as_(store, "alice")
    tasks = [store.put(), ended(store)]
    as_(store, "bob")
    for task in tasks:
        before = store.client.hgetall(store.keys.task(task))
        found, missing = BY_ID[op](store, task), BY_ID[op](store, store.new_id())
        if op == "get":
            assert (found.result, missing.result) == (None, None)
            assert (found.foreign, missing.foreign) == (True, False)
        else:
            assert (found, missing) == ("foreign", "missing")
        assert store.client.hgetall(store.keys.task(task)) == before
    assert listed(store, State.READY) == listed(store, State.CANCELLED) == []


@pytest.mark.parametrize("op", BY_ID)
def test_a_foreign_task_takes_the_way_of_a_missing_one(store: TimedStore, op: str) -> None:
    """The same commands, and nothing of the record but its owner and state: no output, no arguments."""
    as_(store, "alice")
    task = store.put(stdin=b"x" * 100_000)
    as_(store, "bob")
    foreign, missing = (commands(store, partial(BY_ID[op], store, one)) for one in (task, store.new_id()))
    assert foreign == missing
    assert "hgetall" not in foreign


@pytest.mark.parametrize("op", BY_ID)
def test_clients_of_one_owner_act_on_each_others_tasks(store: TimedStore, op: str) -> None:
    as_(store, "team")
    task = ended(store) if op == "requeue" else store.put()
    assert BY_ID[op](store, task) not in ("foreign", "missing", StoredTask(0, None))
    assert listed(store, State.READY) != [] or op == "cancel"
    as_(store, "bob", own_only=False)
    assert BY_ID[op](store, task) not in ("foreign", "missing"), "`of: all`"
    assert store.field(task, "w") == b"team"


def test_a_task_of_an_anonymous_client_has_no_owner_and_is_foreign(store: TimedStore) -> None:
    task = store.put()
    assert store.field(task, "w") is None
    as_(store, "bob")
    assert store.cancel(task) == "foreign"


def test_the_owner_stays_and_the_mark_of_the_quota_goes(store: TimedStore) -> None:
    as_(store, "team")
    store.quota = Quota("team", 1)
    task = store.put()
    assert (store.field(task, "w"), store.field(task, "o")) == (b"team", b"team")
    assert store.submit(store.spec()).outcomes == ["quota_exceeded"], "another client of the owner shares it"
    store.end(store.take())
    assert (store.field(task, "w"), store.field(task, "o")) == (b"team", None)
    assert store.put()


def test_another_owners_id_is_a_conflict_whatever_its_task_is(store: TimedStore) -> None:
    spec, new = store.spec(), store.spec()
    as_(store, "alice")
    assert store.submit(spec).outcomes == ["ready"]
    as_(store, "bob")
    for again in (spec, with_id(spec, priority=9)):
        assert store.submit(again).outcomes == ["conflict"]
    store.of = None
    assert store.submit(spec).outcomes == ["conflict"], "`of: all` makes it no task of bob"
    as_(store, None)
    assert store.submit(spec, new).outcomes == ["conflict", "ready"]
    as_(store, "alice")
    assert store.submit(spec, new).outcomes == ["exists", "conflict"]


def test_two_owners_with_one_id_in_one_batch(store: TimedStore) -> None:
    spec = store.spec()
    rows = [functions.prepare(spec.id or "", spec, None, owner) for owner in ("alice", "bob", None, "alice")]
    assert store.ask(functions.submit(store.policy, rows)).outcomes == ["ready", "conflict", "conflict", "exists"]


def test_a_requeue_keeps_the_owner_and_is_held_to_the_quota_of_its_client(store: TimedStore) -> None:
    as_(store, "alice")
    old, new = ended(store), store.new_id()
    as_(store, "bob", own_only=False)
    store.quota = Quota("bob", 1)
    assert store.requeue(old, new)[0] == "ready"
    assert (store.field(new, "w"), store.field(new, "o")) == (b"alice", b"bob")
    assert store.requeue(old)[0] == "quota_exceeded"
    as_(store, "bob")
    assert store.requeue(old, new)[0] == "conflict", "no word about a task of alice"
    as_(store, "alice")
    assert store.requeue(old, new)[0] == "exists"
    store.client.delete(store.keys.task(old))
    assert store.requeue(old, new)[0] == "exists"
    nobodys, again = store.new_id(), store.new_id()
    as_(store, None)
    store.quota = None
    store.put(id=nobodys)
    store.cancel(nobodys)
    as_(store, "bob", own_only=False)
    store.requeue(nobodys, again)
    assert store.field(again, "w") is None


def test_a_page_of_own_tasks_goes_on_behind_foreign_ones(store: TimedStore) -> None:
    as_(store, "bob")
    mine = ended(store)
    as_(store, "alice")
    store.pass_ms(1)
    for _ in range(250):
        ended(store)
    call = functions.list_tasks(State.CANCELLED, "", first="+inf", last="-inf", rest=0, limit=200)
    page = store.ask(call.of("bob"))
    assert page.tasks == []
    assert page.cursor is not None
    first, rest = page.cursor
    call = functions.list_tasks(State.CANCELLED, "", first=first, last="-inf", rest=rest, limit=200)
    page = store.ask(call.of("bob"))
    assert ([task.id for task in page.tasks], page.cursor) == ([mine], None)


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


def commands(store: TimedStore, act: Callable[[], Any]) -> dict[str, int]:
    """The Redis commands of a call, without those of the test."""
    store.client.config_resetstat()
    act()
    stats: dict[str, Any] = store.client.info("commandstats")
    used = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: n for name, n in used.items() if name not in {"lrange", "info", "fcall", "config|resetstat"}}


BEFORE = {
    "submit": "zadd exists hmget*2 hget hset*3 zcard hexists",
    "submit again": "exists*2 hmget*2 hset",
    "get": "hmget hgetall zscore",
    "wait": "hmget hget hset",
    "list": "hmget*2 zcount zrangebyscore",
    "claim": "zadd hmget*3 zpopmin hget pexpire hset*3",
    "finish": "zadd hmget*3 hdel*2 publish pexpire hset*3 zrem zremrangebyrank",
    "requeue": "zadd hmget*4 hget publish hset*3 zcard hexists",
    "cancel": "zadd hmget*5 pexpire hset*3 zrem zremrangebyrank",
}
"""The commands of each call before tasks had owners."""


def test_an_anonymous_client_costs_the_commands_that_it_cost_before(store: TimedStore) -> None:
    store.put(priority=1)
    spec, other = store.spec(), store.put(queue="other")
    task, fences = spec.id or "", []
    acts: dict[str, Callable[[], Any]] = {
        "submit": lambda: store.submit(spec),
        "submit again": lambda: store.submit(spec),
        "get": lambda: store.get(task),
        "wait": lambda: store.wait(task),
        "list": lambda: store.ask(
            functions.list_tasks(State.READY, "default", first="-inf", last="+inf", rest=0, limit=1)
        ),
        "claim": lambda: fences.append(store.take()),
        "finish": lambda: store.end(fences[0]),
        "requeue": lambda: store.requeue(task),
        "cancel": lambda: store.cancel(other),
    }
    for name, act in acts.items():
        wanted = {word.partition("*")[0]: int(word.partition("*")[2] or 1) for word in BEFORE[name].split()}
        assert commands(store, act) == wanted, name
    assert set(store.client.hkeys(store.keys.task(other))) & {b"w", b"o"} == set()


def test_an_owner_costs_no_command_of_a_submit_a_claim_and_a_finish(store: TimedStore) -> None:
    def all_of_them() -> dict[str, int]:
        return commands(store, lambda: (store.put(), store.end(store.take())))

    all_of_them()  # the queue is known now
    anonymous = all_of_them()
    as_(store, "alice")
    assert all_of_them() == anonymous
