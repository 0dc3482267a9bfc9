"""Each kind of trouble that Redis can have, on a real server: what the caller is told, and that it passes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import redis

from kingtask import policy
from kingtask.broker.ops import store_refusal
from kingtask.errors import StoreError
from kingtask.policy import Ack
from kingtask.store import functions
from kingtask.store.redis.connection import connect
from kingtask.store.redis.redis_errors import store_error
from kingtask.store.store import BrokerStore
from kingtask.task import TaskSpec
from tests.processes import PATIENCE_S, until
from tests.servers import RedisServer, free_port


@pytest.fixture
def troubled() -> Iterator[RedisServer]:
    """A server for one test, which will not be the same afterwards."""
    with RedisServer(tcp=True, enable_debug_command="yes", busy_reply_threshold=50) as running:
        yield running


def broker_store(server: RedisServer) -> BrokerStore:
    return BrokerStore(server.address, "troubled", ack=Ack(level="stored"))


async def submit(store: BrokerStore) -> functions.Submitted | StoreError:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    task = functions.prepare(str(uuid4()), TaskSpec(name="example"))
    store.submit(functions.submit(policy.Policy(), [task]), answer.set_result, lambda reached: None)
    return await answer


async def until_submitted(store: BrokerStore) -> None:
    """It works again, of itself."""
    deadline = time.monotonic() + PATIENCE_S
    while isinstance(answer := await submit(store), StoreError):
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.02)


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def readonly(client: redis.Redis) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", free_port())


def primary_again(client: redis.Redis) -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")


def without_snapshots(client: redis.Redis) -> None:
    """Its directory is gone, so its last snapshot failed."""
    client.config_set("save", "3600 1")
    shutil.rmtree(str(client.config_get("dir")["dir"]))
    client.bgsave()
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot that fails")


def spin(client: redis.Redis) -> None:
    def run() -> None:
        with contextlib.suppress(redis.ResponseError):  # killed
            client.eval("while true do end", 0)

    threading.Thread(target=run).start()
    until(lambda: says_busy(client), "the script runs for longer than the threshold")


def says_busy(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


class RedisFailure(NamedTuple):
    kind: str
    begin: Callable[[redis.Redis], object]
    end: Callable[[redis.Redis], object]
    code: str = "unavailable"
    retryable: bool = True


TROUBLES = [
    RedisFailure("readonly", readonly, primary_again),
    RedisFailure(
        "noreplicas",
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
    RedisFailure(
        "full",
        lambda client: client.config_set("maxmemory", 1),
        lambda client: client.config_set("maxmemory", 0),
        code="store_full",
    ),
    RedisFailure("misconf", without_snapshots, lambda client: client.config_set("stop-writes-on-bgsave-error", "no")),
    RedisFailure("busy", spin, lambda client: client.script_kill()),
    RedisFailure("no_function", lambda client: client.execute_command("FUNCTION", "FLUSH"), lambda client: None),
    RedisFailure(
        "permission",
        lambda client: client.execute_command("ACL", "SETUSER", "default", "-fcall"),
        lambda client: client.execute_command("ACL", "SETUSER", "default", "+fcall"),
        code="internal",
        retryable=False,
    ),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.kind)
async def test_it_is_told_as_what_it_is_and_passes_by_itself(troubled: RedisServer, trouble: RedisFailure) -> None:
    """None of these was begun, so a client may take the task for not stored."""
    client = troubled.client()
    store = broker_store(troubled)
    await store.open()
    try:
        assert isinstance(await submit(store), functions.Submitted)
        trouble.begin(client)
        error = await submit(store)
        assert isinstance(error, StoreError), error
        assert (error.kind, error.stored) == (trouble.kind, "no"), error
        told = store_refusal(error, writes=True)
        assert (told.code, told.retryable, told.stored) == (trouble.code, trouble.retryable, "no")
        trouble.end(client)
        await until_submitted(store)
    finally:
        await store.close()


async def test_a_server_that_still_loads_is_waited_for(troubled: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    client = troubled.client()
    for i in range(100):
        client.set(f"filler:{i}", "x" * 4096)
    client.save()
    troubled.stop()
    troubled.options |= {"key_load_delay": 10_000, "loading_process_events_interval_bytes": 1024}  # µs a key
    ended = threading.Event()

    def start() -> None:
        troubled.start()
        ended.wait()  # a server ends with the thread that started it

    starting = threading.Thread(target=start)
    starting.start()
    store = broker_store(troubled)
    try:
        until(lambda: loading(client), "it loads")
        await store.open()
        await until_submitted(store)
        assert "LOADING" in caplog.text
    finally:
        await store.close()
        ended.set()
        starting.join()


async def test_a_replica_that_has_lost_its_primary(troubled: RedisServer) -> None:
    """Even reading is refused then; writing is anyway, as on every replica."""
    client = troubled.client()
    store = broker_store(troubled)
    await store.open()
    try:
        client.config_set("replica-serve-stale-data", "no")
        readonly(client)
        with pytest.raises(StoreError) as caught:
            await store.ask(next(functions.gather_stats()))
        assert (caught.value.kind, caught.value.stored) == ("masterdown", "no")
        primary_again(client)
        await until_submitted(store)
    finally:
        await store.close()


def loading(client: redis.Redis) -> bool:
    try:
        return bool(client.info("persistence")["loading"])
    except redis.RedisError:
        return False


async def test_an_error_in_the_middle_of_a_function_says_nothing_of_what_was_stored(server: RedisServer) -> None:
    name = f"broken_{uuid4().hex}"
    server.client().function_load(
        f"#!lua name={name}\n"
        f"redis.register_function('{name}_call', function(keys) redis.call('SET', keys[1], 1);"
        " redis.call('HSET', keys[1], 'a', 1) end)\n"
        f"redis.register_function('{name}_raise', function(keys) redis.call('SET', keys[1], 1); error('x') end)\n"
    )
    connection = await connect(server.address, timeout_s=PATIENCE_S, on_lost=lambda connection, why: None)
    for function in (f"{name}_call", f"{name}_raise"):
        with pytest.raises(StoreError) as caught:
            await connection.ask("FCALL", function, 1, function)
        assert (caught.value.kind, caught.value.stored) == ("error", "unknown")
        assert server.client().exists(function), "it was written"
        assert store_refusal(caught.value, writes=True).stored == "unknown"
        assert store_refusal(caught.value, writes=False).stored == "no"
        server.client().delete(function)
    connection.abort("done")


async def test_a_transaction_that_was_refused(server: RedisServer) -> None:
    connection = await connect(server.address, timeout_s=PATIENCE_S, on_lost=lambda connection, why: None)
    await connection.ask("MULTI")
    with pytest.raises(StoreError):
        await connection.ask("SET", "too few")
    with pytest.raises(StoreError) as caught:
        await connection.ask("EXEC")
    assert (caught.value.kind, caught.value.stored) == ("execabort", "no")
    connection.abort("done")


async def test_a_cluster_that_serves_no_slot() -> None:
    with RedisServer(tcp=True, cluster_enabled="yes", cluster_port=free_port()) as server:  # else port + 10,000
        store = broker_store(server)
        await store.open()
        assert "CLUSTERDOWN" in store.problem
        assert not store.up
        await store.close()


@pytest.mark.parametrize(
    ("text", "kind", "stored"),
    [
        ("LOADING Redis is loading the dataset in memory", "loading", "no"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "tryagain", "no"),
        ("MOVED 3999 127.0.0.1:6381", "moved", "no"),
        ("ASK 3999 127.0.0.1:6381", "moved", "no"),
        ("NOSCRIPT No matching script.", "no_function", "no"),
        ("NOAUTH Authentication required.", "auth", "no"),
        ("UNBLOCKED force unblock from blocking operation", "unblocked", "unknown"),
        ("FOREIGN another database script: f, on @user_function:1.", "foreign", "no"),
        ("NOPERM this user may not script: f, on @user_function:9.", "permission", "unknown"),
        ("ERR ACL failure in script: User u has no … script: f, on @user_function:2.", "permission", "unknown"),
        ("ERR The user executing the script can't run this … script: f, on @user_function:2.", "permission", "unknown"),
        ("READONLY late script: f, on @user_function:9.", "readonly", "unknown"),
        ("ERR something new", "error", "unknown"),
    ],
)
def test_other_replies(text: str, kind: str, stored: str) -> None:
    error = store_error(Exception(text))
    assert (error.kind, error.stored) == (kind, stored)


# ── no reply ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lose", [RedisServer.pause, RedisServer.kill], ids=["silent", "gone"])
async def test_without_an_answer_it_may_have_been_done(
    troubled: RedisServer, lose: Callable[[RedisServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kingtask.store.store.TIMEOUT_S", 0.3)
    store = broker_store(troubled)
    await store.open()
    try:
        troubled.pause()
        waiting = asyncio.create_task(submit(store))
        await asyncio.sleep(0)  # it has been sent
        lose(troubled)
        error = await waiting
        assert isinstance(error, StoreError)
        assert (error.kind, error.stored) == ("lost", "unknown")
        told = store_refusal(error, writes=True)
        assert (told.code, told.retryable, told.stored) == ("not_confirmed", True, "unknown")
        error = await submit(store)
        assert isinstance(error, StoreError)
        assert (error.kind, error.stored) == ("away", "no"), "nothing was sent"
    finally:
        await store.close()


async def test_a_subscription_notices_that_nothing_answers(
    troubled: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to send of its own accord."""
    monkeypatch.setattr("kingtask.store.store.TIMEOUT_S", 0.4)
    store = broker_store(troubled)
    stands, heard = asyncio.Event(), asyncio.Queue[str]()
    store.listen({"ready": heard.put_nowait}, stands.set)
    await store.open()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await stands.wait()
            stands.clear()
            connections = troubled.client().client_list(_type="pubsub")
            troubled.client().client_pause(1000)  # the other connections have nothing under way
            await stands.wait()
            assert troubled.client().client_list(_type="pubsub")[0]["id"] != connections[0]["id"]
            troubled.client().publish("{troubled}:0:ready", "default 1")
            assert await heard.get() == "default 1"
    finally:
        await store.close()


async def test_a_password_that_was_changed_is_noticed(troubled: RedisServer) -> None:
    """What is connected stays; what connects anew is refused, until the old one is back."""
    store = broker_store(troubled)
    await store.open()
    try:
        client = troubled.client()
        client.config_set("requirepass", "new")
        troubled.client(password="new").client_kill_filter(_type="normal", skipme=True)
        async with asyncio.timeout(PATIENCE_S):
            while store.up or "Authentication" not in store.problem:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        troubled.client(password="new").config_set("requirepass", "")
        await until_submitted(store)
    finally:
        await store.close()
