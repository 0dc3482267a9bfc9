"""The library on a server: loaded once, beside others, under names that carry its hash."""

from __future__ import annotations

import json
import logging
import re
from importlib.resources.abc import Traversable
from typing import Any
from uuid import uuid4

import pytest
import redis

from kingtask import __version__
from kingtask.policy import Policy
from kingtask.store import functions, keys, store
from kingtask.store.keys import Keys
from kingtask.store.library import Library, shipped, sources
from tests.servers import RedisServer
from tests.store import keyspace
from tests.store.syncstore import SyncStore, TimedStore, load
from tests.store.test_identity import broker, opened, until, worker

FUNCTIONS = set(
    "submit requeue tick claim extend finish finish_cut release cancel forget pause wait".split()
    + "open mark clock get states list stats".split()
)


def library_names(client: redis.Redis) -> dict[str, set[str]]:
    found = {}
    for library in client.function_list():
        fields = dict(zip(library[::2], library[1::2], strict=True))
        functions = [dict(zip(row[::2], row[1::2], strict=True)) for row in fields[b"functions"]]
        found[fields[b"library_name"].decode()] = {row[b"name"].decode() for row in functions}
    return found


def test_loading_it_again_says_that_it_exists(server: RedisServer) -> None:
    client = server.client()
    load(client, shipped())
    with pytest.raises(redis.ResponseError, match="already exists"):
        client.function_load(shipped().text)


def test_every_name_carries_the_hash_of_the_text(server: RedisServer) -> None:
    client, library = server.client(), shipped()
    load(client, library)
    assert re.fullmatch(r"[0-9a-f]{12}", library.hash)
    functions = library_names(client)[f"kingtask_{library.hash}"]
    assert all(re.fullmatch(rf"kingtask_[a-z_]+_{library.hash}", name) for name in functions)
    assert "@HASH@" not in library.text


def test_every_call_has_its_function_and_no_other_is_there(server: RedisServer) -> None:
    client, library = server.client(), shipped()
    load(client, library)
    assert library_names(client)[f"kingtask_{library.hash}"] == {library.function(name) for name in FUNCTIONS}


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.name)
def test_a_source_is_short(source: Traversable) -> None:
    lines = source.read_text("utf-8").splitlines()
    assert len(lines) <= 260
    assert [line for line in lines if len(line) > 120] == []


def test_the_short_field_names_are_the_same_in_python() -> None:
    pattern = r"^local ([A-Z, ]+) = ('.'(?:, '.'){7})$"
    ((names, letters),) = re.findall(pattern, shipped().text, re.MULTILINE)
    assert names == "PLAN, SPEC, STATE, CREATED, OWNER, QUOTA, GIVEN, LIMITS"
    assert re.findall(r"'(.)'", letters) == [getattr(keys, name) for name in names.split(", ")]
    code = re.sub(r"--[^\n]*", "", shipped().text)
    assert len(re.findall(r"'[pstcwogk]'", code)) == 8, "a letter is written once; elsewhere by its name"


def test_two_versions_work_side_by_side_on_one_namespace(server: RedisServer, store: TimedStore) -> None:
    """As during an upgrade: an old broker and a new worker share the schema."""
    newer = Library(store.library.template + "\n-- the next release\n")
    assert newer.hash != store.library.hash
    other = SyncStore(server.client(), store.keys.namespace, newer)
    task = store.put()
    claims = other.ask(functions.claim(store.policy, "w1", functions.ClaimRequest(["default"], 1, b"t" * 16, 1)))
    assert [claimed.id for claimed in claims.tasks] == [task]
    assert store.end(functions.Fence(task, 1, b"t" * 16)) == "succeeded"


def test_the_shipped_library_reads_the_servers_clock(server: RedisServer) -> None:
    """All other tests set the clock; this one lets the server's run."""
    store = SyncStore(server.client(), uuid4().hex)
    policy = Policy()
    timed = TimedStore(store.client, store.keys.namespace)
    before_s, before_us = store.client.time()
    spec = timed.spec()
    submitted = store.ask(functions.submit(policy, [functions.prepare(spec.id or "", spec)]))
    after_s, after_us = store.client.time()
    assert before_s * 1_000_000 + before_us <= submitted.now_us <= after_s * 1_000_000 + after_us
    (claimed,) = store.ask(functions.claim(policy, "w1", functions.ClaimRequest(["default"], 1, b"t" * 16, 1))).tasks
    assert submitted.now_us // 1000 <= claimed.claimed_ms
    ended = timed.ended(functions.Fence(claimed.id, 1, b"t" * 16))
    assert store.ask(functions.finish(policy, "w1", [ended])).answers == ["succeeded"]
    keyspace.check(keyspace.dump(store.client, store.keys))
    keyspace.remove(store.client, store.keys)


def test_open_writes_schema_and_cluster_once(store: TimedStore) -> None:
    now_us, schema, cluster = store.ask(functions.open_namespace(1, "first"))
    assert (now_us, schema, cluster) == (store.now_ms * 1000, 1, "first")
    assert store.ask(functions.open_namespace(2, "second"))[1:] == (1, "first")


# ── who loads it ─────────────────────────────────────────────────────────────────────────────────────────────────────

OTHER = Library(shipped().template + "\n-- another release\n")


def text_on(server: RedisServer) -> str:
    """The loaded text under the name of the shipped library; empty without one."""
    listed: Any = server.client().execute_command("FUNCTION", "LIST", "LIBRARYNAME", shipped().name, "WITHCODE")
    return "".join(dict(zip(row[::2], row[1::2], strict=True))[b"library_code"].decode() for row in listed)


def only_of_another_release(server: RedisServer, namespace: str) -> SyncStore:
    """A namespace of which only the brokers of another release have been started."""
    other = SyncStore(server.client(), namespace, OTHER)
    other.ask(functions.open_namespace(1, 32 * "0"))
    return other


async def test_a_worker_waits_for_a_broker_that_loads_its_library(
    own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    namespace = uuid4().hex
    only_of_another_release(own, namespace)
    async with opened(worker(own, namespace)) as waiting:
        assert not waiting.up
        assert text_on(own) == ""
        (record,) = [record for record in caplog.records if str(record.msg).startswith("library=missing")]
        assert (record.levelno, f"kingtask {__version__} ({shipped().name})" in str(record.msg)) == (30, True)
        assert waiting.problem in str(record.msg)
        async with opened(broker(own, namespace)):
            await until(lambda: waiting.up)
        assert text_on(own) == shipped().text


async def test_a_worker_that_waits_says_so_in_stats(own: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = uuid4().hex
    other = only_of_another_release(own, namespace)
    waiting = worker(own, namespace)
    waiting.heartbeat = lambda why: ("w.1", json.dumps({"unfit": why}).encode())
    async with opened(waiting):
        (peer,) = other.stats().workers
        assert (peer.name, peer.facts["unfit"]) == ("w.1", waiting.problem)
        assert peer.seen_s < 5
        keyspace.check(keyspace.dump(own.client(), Keys(namespace)))
    monkeypatch.setattr(store, "PEERS_CAP", 1)
    late = worker(own, namespace)
    late.heartbeat = lambda why: ("w.2", b"{}")
    async with opened(late):
        assert [peer.name for peer in other.stats().workers] == ["w.1"], "the number of workers is bounded"


def test_the_cap_of_the_peers_is_the_librarys() -> None:
    assert f"local PEERS_CAP = {store.PEERS_CAP} " in shipped().text


async def test_another_text_under_its_name_is_replaced(own: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """It was loaded with the rights of an administrator, and runs with those of the broker."""
    planted = shipped().text + "\nlocal planted = true\n"
    own.client().function_load(planted)
    namespace = uuid4().hex
    async with opened(broker(own, namespace)) as first:
        assert first.up
        assert text_on(own) == shipped().text
        (record,) = [record for record in caplog.records if str(record.msg).startswith("library=replaced")]
        assert (record.levelno, shipped().name in str(record.msg)) == (logging.WARNING, True)
        own.client().function_load(planted, replace=True)
        async with opened(worker(own, namespace)) as waiting:
            assert not waiting.up
            async with opened(broker(own, namespace)):
                await until(lambda: waiting.up)


async def test_functions_of_another_library_are_never_called(own: RedisServer) -> None:
    """Names of functions are global on a server, so a library of any name could hold ours."""
    planted = shipped().text.replace(f"name={shipped().name}", "name=planted")
    own.client().function_load(planted)
    namespace = uuid4().hex
    async with opened(broker(own, namespace)) as refused:
        assert not refused.up
        assert "already exists" in refused.problem
        own.client().function_delete("planted")
        await until(lambda: refused.up)
