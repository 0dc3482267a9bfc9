"""Behind Sentinel: broker and worker follow the primary through every kind of failover, without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kingtask import Client, KingtaskError, Task
from tests.integration.rig import Daemon, StackHarness
from tests.processes import PATIENCE_S, until
from tests.servers import FAST_REPLICATION, RedisServer, Sentinel

pytestmark = pytest.mark.fleet

DURABLE: dict[str, Any] = {"appendonly": "yes", "appendfsync": "always", **FAST_REPLICATION}


class SentinelGroup:
    """A primary with two replicas, and the sentinel that watches them."""

    def __init__(self, stack: ExitStack, **sentinel_options: Any) -> None:
        self.first = stack.enter_context(RedisServer(tcp=True, **DURABLE))
        replicas = [stack.enter_context(self.first.replica(**DURABLE)) for _ in range(2)]
        self.servers = [self.first, *replicas]
        self.sentinel = stack.enter_context(Sentinel(self.first, **sentinel_options))
        self.asked: Any = self.sentinel.client(password=sentinel_options.get("requirepass"))
        until(lambda: self.asked.sentinel_master(Sentinel.SERVICE)["num-slaves"] == 2, "the sentinel knows both")
        until(lambda: self.confirms(2), "both are in step")

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{Sentinel.SERVICE}/0"

    @property
    def primary(self) -> RedisServer:
        """As the sentinel has it."""
        port = int(self.asked.sentinel_get_master_addr_by_name(Sentinel.SERVICE)[1])
        return next(server for server in self.servers if server.port == port)

    def confirms(self, replicas: int) -> bool:
        client = self.primary.client()
        client.set("written", 1)
        return bool(client.execute_command("WAIT", replicas, 1000) >= replicas)

    def until_moved(self, former: RedisServer) -> RedisServer:
        until(lambda: self.primary is not former, "another primary")
        return self.primary


@pytest.fixture
def watched() -> Iterator[SentinelGroup]:
    with ExitStack() as stack:
        yield SentinelGroup(stack)


@pytest.fixture
def daemons(rig: StackHarness, watched: SentinelGroup) -> tuple[Daemon, Daemon]:
    """A broker that waits for every replica that may be promoted, and a worker."""
    common: dict[str, Any] = {"redis": watched.url, "ack": "replicas", "ack_replicas": 2, "ack_timeout": 1}
    return rig.start_broker(**common), rig.start_worker(**common)


def kill(watched: SentinelGroup) -> None:
    watched.primary.kill()


def hang(watched: SentinelGroup) -> None:
    """Its connections stay open, and nothing comes back."""
    watched.primary.pause()


def hand_over(watched: SentinelGroup) -> None:
    """On the operator's demand: the former primary serves until it is told to become a replica."""
    watched.asked.execute_command("SENTINEL", "FAILOVER", Sentinel.SERVICE)


def mend(former: RedisServer, primary: RedisServer) -> None:
    """The former primary comes back, and copies the new one; Sentinel would tell it to some seconds later."""
    if former.running:
        former.resume()
    else:
        former.start()
    former.client().execute_command("REPLICAOF", "127.0.0.1", primary.port)


def accepted(client: Client, rig: StackHarness, seconds: str = "") -> Task:
    """Sent again, by the client, until it is confirmed."""
    return client.submit("ledger", [seconds] if seconds else [], env=rig.env, timeout=PATIENCE_S)


@pytest.mark.parametrize("lose", [kill, hang, hand_over])
def test_nothing_is_lost_with_the_primary_and_nobody_is_restarted(
    rig: StackHarness, watched: SentinelGroup, daemons: tuple[Daemon, Daemon], lose: Callable[[SentinelGroup], None]
) -> None:
    client = rig.client(timeout=PATIENCE_S)
    running = accepted(client, rig, "2")
    tasks: list[Task] = []
    enough = threading.Event()

    def submit() -> None:
        while not enough.is_set():
            tasks.append(accepted(client, rig))

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: len(tasks) > 20, "tasks before it")
    former = watched.primary
    lose(watched)
    mend(former, watched.until_moved(former))
    seen = len(tasks)
    until(lambda: len(tasks) > seen + 20, "tasks after it")
    enough.set()
    thread.join(PATIENCE_S)
    for task in [running, *tasks]:
        assert task.wait(PATIENCE_S).success
    for daemon in daemons:
        assert daemon.process is not None
        assert daemon.process.poll() is None


def test_it_goes_on_without_sentinels_on_the_primary_that_it_knows(
    rig: StackHarness, watched: SentinelGroup, daemons: tuple[Daemon, Daemon]
) -> None:
    client = rig.client(timeout=PATIENCE_S)
    watched.sentinel.kill()
    for daemon in daemons:
        daemon.until_logged("sentinels=unreachable")
    assert accepted(client, rig).wait(PATIENCE_S).success
    watched.first.client().client_kill_filter(_type="normal", skipme=True)
    for daemon in daemons:
        daemon.until_logged("redis=lost")
    assert accepted(client, rig).wait(PATIENCE_S).success
    watched.sentinel.start()
    for daemon in daemons:
        daemon.until_logged("sentinels=up")


def test_sentinels_that_come_later_are_waited_for(rig: StackHarness, watched: SentinelGroup) -> None:
    watched.sentinel.stop()
    broker = rig.start_broker(redis=watched.url, ready=False)
    assert "no sentinel of redis+sentinel://" in broker.until_logged("redis=unreachable")
    watched.sentinel.start()
    client = rig.client()
    until(lambda: client.ping(timeout=PATIENCE_S)["ready"], "it has found the primary")


def test_sentinels_with_a_password_of_their_own(rig: StackHarness) -> None:
    with ExitStack() as stack:
        watched = SentinelGroup(stack, requirepass="s3ntinel")
        password = rig.directory / "sentinel.password"
        password.write_text("s3ntinel\n")
        password.chmod(0o600)
        broker = rig.start_broker(redis=watched.url, redis_sentinel_password_file=str(password))
        assert "s3ntinel" not in broker.text()


def test_the_replicas_have_the_functions(watched: SentinelGroup, rig: StackHarness) -> None:
    rig.start_broker(redis=watched.url)
    watched.confirms(2)
    for server in watched.servers:
        assert "kingtask_submit_" in str(server.client().function_list())


def test_sentinel_knows_the_replicas_that_are_away_at_the_start(rig: StackHarness, watched: SentinelGroup) -> None:
    """A broker that starts while one is mended starts, and confirms when it is back."""
    away = watched.servers[2]
    away.kill()
    until(lambda: watched.first.client().info("replication")["connected_slaves"] == 1, "one is away")
    rig.start_broker(redis=watched.url, ack="replicas", ack_replicas=2, ack_timeout=1).until_logged("attached=1")
    client = rig.client()
    with pytest.raises(KingtaskError):
        client.submit("ledger", timeout=1)
    away.start()
    assert client.submit("ledger", timeout=PATIENCE_S).id
