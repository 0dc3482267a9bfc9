"""What ended tasks keep, through everything: a client that waits for each of its tasks cannot fill Redis with them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kingtask import Client
from kingtask.errors import IdConflict, PermissionDenied, WrongState
from tests.integration.keyed import Keyed
from tests.integration.rig import StackHarness
from tests.processes import PATIENCE_S, until

MIB = 1024 * 1024
YEAR_S = 31_536_000


@pytest.fixture
def keyed() -> Iterator[Keyed]:
    with Keyed() as rig:
        for name in ("bob", "carol"):
            rig.admit(rig.pair(name))
        yield rig


def memory(rig: StackHarness) -> int:
    """Bytes of all records."""
    redis: Any = rig.redis.client()
    return sum(redis.memory_usage(key, samples=0) for key in redis.keys("*:task:*"))


def run(client: Client, number: int, **options: Any) -> str:
    """One task with a mebibyte of input; the client has no other one meanwhile."""
    return client.submit("cat", stdin=bytes([number]) * MIB, **options).wait(PATIENCE_S).id


def test_one_task_after_the_other_does_not_fill_redis(rig: StackHarness) -> None:
    rig.executable("cat", "#!/bin/sh\ncat > /dev/null\n")
    rig.start_broker(max_result_bytes=2 * MIB)
    rig.start_worker()
    client = rig.client()
    ids = [run(client, number, keep_result=YEAR_S) for number in range(8)]
    until(lambda: memory(rig) < 3 * MIB, lambda: f"{memory(rig)} bytes")
    results = [client.get(task) for task in ids]
    assert [result.request_dropped for result in results] == [True] * 7 + [False]
    assert all(result.success and not result.dropped for result in results)
    again = client.submit("cat", stdin=bytes([0]) * MIB, keep_result=YEAR_S, id=ids[0])
    assert again.outcome == "exists", "the same request"
    with pytest.raises(IdConflict):
        client.submit("cat", stdin=bytes([1]) * MIB, keep_result=YEAR_S, id=ids[0])
    with pytest.raises(WrongState, match="dropped to make room"):
        client.requeue(ids[0])
    assert client.requeue(ids[7]).wait(PATIENCE_S).success
    assert client.forget(ids[7]) == "forgotten"


def test_the_bounds_of_a_client_with_a_key(keyed: Keyed) -> None:
    rules: dict[str, Any] = {
        "clients": {
            "alice": {"max_outstanding": 1, "max_keep_result": 3600, "max_kept_bytes": 2 * MIB},
            "bob": {},
            "worker": {"worker": True, "ops": []},
        },
        "default": {"max_kept_bytes": 1 * MIB},
    }
    path = keyed.directory / "permissions.yaml"
    path.write_text(yaml.safe_dump(rules))
    keyed.executable("cat", "#!/bin/sh\ncat > /dev/null\n")
    broker = keyed.start_broker(permissions=str(path))
    keyed.start_worker()
    alice, bob, carol = (keyed.client(timeout=5, **keyed.keys_of(name)) for name in ("alice", "bob", "carol"))
    with pytest.raises(PermissionDenied, match=r"task\.keep_result_s: expected at most 3600 s.*alice\.max_keep_result"):
        run(alice, 0, keep_result=YEAR_S)
    theirs = run(bob, 0)
    mine = [run(alice, number) for number in range(4)]
    others = [run(carol, number) for number in range(2)]
    wanted = [True, True, True, False]
    until(lambda: [alice.get(task).request_dropped for task in mine] == wanted, "the bound of an entry")
    until(lambda: all(carol.get(task).request_dropped for task in others), "the bound of the default")
    assert memory(keyed) < 4 * MIB
    assert not bob.get(theirs).request_dropped
    redis: Any = keyed.redis.client()
    (key,) = redis.keys(f"*:task:{mine[3]}")
    assert 0 < redis.pttl(key) <= 3_600_000, "although result_keep_time is a day"
    failed = alice.submit("missing").wait(PATIENCE_S)
    (key,) = redis.keys(f"*:task:{failed.id}")
    assert 0 < redis.pttl(key) <= 3_600_000, "although failed_keep_time is a week"
    rules["clients"]["alice"]["max_kept_bytes"] = MIB
    path.write_text(yaml.safe_dump(rules))
    broker.signal(signal.SIGHUP)
    until(lambda: alice.get(mine[3]).request_dropped, "the lower bound, after a reload")
