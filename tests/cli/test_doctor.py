"""`kingtask doctor`, from its findings on real servers to its exit status."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kingtask import __version__
from kingtask.cli import findings
from kingtask.cli.findings import Level
from kingtask.config import BrokerConfig, WorkerConfig
from kingtask.config.sandbox_settings import RunAs
from kingtask.errors import NoAnswer, PermissionDenied, StoreError
from kingtask.store.inspect import Asked, Inspection, inspect
from kingtask.store.keys import Keys
from kingtask.store.redis.address import parse_address
from kingtask.store.redis.sentinel import Named
from tests.cli.tree import kingtask, until
from tests.servers import FAST_REPLICATION, RedisServer, Sentinel, free_port

STATS = {
    "queues": [
        {"name": "default", "paused": False, "scheduled": 1, "ready": 2, "running": 0, "served": True},
    ],
    "workers": [{"name": "w", "seen_s": 1.0}],
    "brokers": [{"name": "b", "seen_s": 0.5, "clock_offset_s": 0.001}],
}


@pytest.fixture
def namespace():
    return f"doctor-{uuid.uuid4().hex[:8]}"


def look(server: RedisServer, namespace: str) -> Inspection:
    return inspect(server.address, namespace)


def levels(findings) -> dict[str, str]:
    """The worst level of each subject."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    worst: dict[str, Level] = {}
    for finding in findings:
        worst[finding.subject] = max(worst.get(finding.subject, Level.OK), finding.level, key=order.index)
    return {subject: str(level) for subject, level in worst.items()}


def text(findings) -> str:
    return "\n".join(f"{finding.text} → {finding.advice}" for finding in findings)


# ── what it sees of a server ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_is_looked_at_and_nothing_is_written(server, namespace):
    client = server.client()
    before = client.dbsize(), client.info("stats")["total_commands_processed"]
    found = look(server, namespace)
    assert client.dbsize() == before[0]
    assert client.info("stats")["total_commands_processed"] > before[1]
    assert (found.server.product in ("redis", "valkey"), found.role, found.functions) == (True, "master", True)
    assert found.offset_s is not None
    assert abs(found.offset_s) < 1
    assert found.schema is None
    assert not found.denied
    assert not found.too_old


@pytest.mark.parametrize(
    ("options", "level", "part"),
    [
        ({"appendonly": "no"}, "warn", "everything is lost"),
        ({"appendonly": "no", "save": "60 1"}, "warn", "last snapshot"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "warn", "two seconds"),
        ({"appendonly": "yes", "appendfsync": "always", "no_appendfsync_on_rewrite": "yes"}, "warn", "rewritten"),
        ({"appendonly": "yes", "appendfsync": "always"}, "ok", "on disk before"),
    ],
)
def test_what_an_acknowledgement_is_worth(namespace, options, level, part):
    with RedisServer(**options) as server:
        found = look(server, namespace)
        listed = list(findings.redis(found, None))
        assert levels(listed)["ack"] == level
        assert part in text(listed)
        wanted = levels(findings.redis(found, "fsync"))["ack"]
        assert wanted == ("ok" if level == "ok" else "fail")


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({"maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"}, "fail"),
        ({"maxmemory_policy": "allkeys-lru"}, "warn"),
        ({"maxmemory": "100mb", "maxmemory_policy": "noeviction"}, "ok"),
    ],
)
def test_a_server_that_throws_keys_away(namespace, options, level):
    with RedisServer(**options) as server:
        assert levels(findings.redis(look(server, namespace), None))["memory"] == level


def test_a_server_that_takes_anybody(namespace):
    with RedisServer(tcp=True) as server:
        found = look(server, namespace)
        assert levels(findings.redis(found, None))["access"] == "warn"
        assert "kingtask.acl" in text(findings.redis(found, None))
        # A user with a password keeps nobody out as long as the others need none.
        server.client().execute_command("ACL", "SETUSER", "known", "on", ">s3cret", "~*", "&*", "+@all")
        known = replace(server.address, user="known", password="s3cret")
        assert levels(findings.redis(inspect(known, namespace), None))["access"] == "warn"
        server.client().execute_command("ACL", "SETUSER", "default", "off")
        assert "access" not in levels(findings.redis(inspect(known, namespace), None))


@pytest.mark.parametrize(("mode", "warned"), [("777", True), ("770", False), ("700", False)])
def test_a_socket_that_lets_anybody_in(namespace, mode, warned):
    with RedisServer(unixsocketperm=mode) as server:
        assert ("access" in levels(findings.redis(look(server, namespace), None))) == warned


def test_a_broker_that_other_machines_reach():
    assert list(findings.reach(BrokerConfig())) == []
    public = BrokerConfig(addr=("127.0.0.1:1", "10.0.0.1:9595"), insecure=True)
    (finding,) = findings.reach(public)
    assert finding.level == "warn"
    assert "10.0.0.1:9595" in finding.text
    assert "every executable" in finding.text


def test_a_user_with_few_rights_sees_less_and_is_told(server, namespace):
    client = server.client()
    client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+ping", "+time", "+select", "+hget")
    found = inspect(replace(server.address, user="poor", password="secret"), namespace)
    assert {"INFO", "CONFIG GET", "FUNCTION LIST"} <= set(found.denied)
    listed = list(findings.redis(found, None))
    assert levels(listed)["redis"] in ("warn", "fail")
    assert "CONFIG GET" in text(listed)


def test_a_replica_and_a_newer_schema_fail(server, namespace):
    found = look(server, namespace)
    assert levels(findings.redis(replace(found, role="slave"), None))["redis"] == "fail"
    assert levels(findings.redis(replace(found, too_old=True), None)) == {"redis": "fail"}
    assert levels(findings.redis(replace(found, functions=False), None)) == {"redis": "fail"}
    assert levels(findings.redis(replace(found, info={"aof_last_write_status": "err"}), None))["disk"] == "fail"
    assert levels(findings.record(replace(found, schema=99)))["library"] == "fail"
    assert levels(findings.record(replace(found, schema=None, library=False)))["library"] == "warn"
    assert levels(findings.record(replace(found, schema=1, library=True)))["library"] == "ok"


def test_which_database_it_is(server, namespace):
    found = look(server, namespace)
    assert (found.cluster, found.used) == ("", False)
    assert "first broker begins it" in text(findings.record(found))
    server.client().hset(Keys(namespace).lasting[1], "default", 0)
    found = look(server, namespace)
    assert levels(findings.record(found))["cluster"] == "fail"
    server.client().hset(Keys(namespace).meta, mapping={"schema": 1, "cluster": "a" * 32})
    found = look(server, namespace)
    assert "a" * 32 in text(findings.record(found))
    assert levels(findings.record(found, "a" * 32))["cluster"] == "ok"
    assert levels(findings.record(found, "b" * 32))["cluster"] == "fail"


@pytest.fixture(scope="module")
def watched():
    """A primary, its replica, and a sentinel."""
    with (
        RedisServer(tcp=True, **FAST_REPLICATION) as primary,
        primary.replica() as replica,
        Sentinel(primary) as sentinel,
    ):
        asked: Any = sentinel.client()
        until(lambda: asked.sentinel_master(Sentinel.SERVICE)["num-slaves"] == 1, "the sentinel knows the replica")
        yield primary, replica, sentinel


def test_sentinels_are_asked_one_by_one(watched, namespace):
    primary, _, sentinel = watched
    dead = free_port()
    found = inspect(parse_address(f"redis+sentinel://127.0.0.1:{dead},{sentinel.url}/mymaster"), namespace)
    assert found.role == "master"
    listed = list(findings.sentinels(found, BrokerConfig(ack="replicas", ack_replicas=1)))
    assert [finding.level for finding in listed] == ["warn", "ok"]
    assert f"127.0.0.1:{primary.port}, and knows 1 replicas" in text(listed)
    assert levels(findings.redis(found, "replicas"))["ack"] == "warn"


def test_sentinels_that_disagree_and_replicas_that_are_not_waited_for(watched, namespace):
    _, _, sentinel = watched
    found = inspect(parse_address(f"redis+sentinel://{sentinel.url}/mymaster"), namespace)
    (host, named) = found.sentinels[0]
    assert isinstance(named, Named)
    later = named._replace(epoch=named.epoch + 1, replicas=2)
    both = replace(found, sentinels=(Asked(host, named), Asked("other:1", later)))
    listed = list(findings.sentinels(both, BrokerConfig(ack="replicas", ack_replicas=1)))
    assert [finding.level for finding in listed] == ["warn", "ok", "warn"]
    assert "names a former primary" in text(listed)
    assert "set ack_replicas: 2" in text(listed)


def test_without_sentinels_or_replicas(server, namespace):
    with pytest.raises(StoreError, match="no sentinel of"):
        inspect(parse_address(f"redis+sentinel://127.0.0.1:{free_port()}/mymaster"), namespace)
    found = look(server, namespace)
    assert list(findings.sentinels(found, BrokerConfig())) == []
    assert "no replica is attached" in text(findings.redis(found, "replicas"))


# ── what it thinks of the rest ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("offset_s", "level"), [(0.01, "ok"), (-0.4, "ok"), (2, "warn"), (-2, "warn"), (61, "fail")])
def test_clocks(offset_s, level):
    assert levels([findings.clock(offset_s, "a against b")]) == {"clock": level}


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "ok"),
        ({"served": False}, "fail"),
        ({"served": False, "ready": 0}, "warn"),
        ({"served": False, "ready": 0, "scheduled": 0}, "ok"),
        ({"paused": True}, "warn"),
        ({"paused": True, "served": False}, "fail"),
    ],
)
def test_queues_that_nobody_serves(changes, level):
    stats = {**STATS, "queues": [{**STATS["queues"][0], **changes}]}
    assert levels(findings.peers(stats)) == {"brokers": "ok", "workers": "ok", "clock": "ok", "queues": level}


def test_a_worker_that_cannot_start_programs():
    unfit = {**STATS, "workers": [{**STATS["workers"][0], "unfit": "no processes left"}]}
    assert levels(findings.peers(unfit))["workers"] == "fail"
    assert "no processes left" in text(list(findings.peers(unfit)))


def test_peers_that_are_gone():
    gone = {**STATS, "workers": [{"name": "w", "seen_s": 50.0}], "brokers": []}
    assert levels(findings.peers(gone)) == {"brokers": "fail", "workers": "fail", "queues": "ok"}


def test_the_finding_about_a_broker_is_the_reply_to_ping_or_the_error():
    pong = {"version": __version__, "ready": True, "ack": "fsync"}
    assert findings.broker("a", pong).level == "ok"
    assert findings.broker("a", {**pong, "ready": False}).level == "fail"
    assert findings.broker("a", {**pong, "version": "0.1"}).level == "warn"
    silent = findings.broker("a", NoAnswer("no answer", stored="no"))
    assert (silent.level, silent.text) == ("fail", "a: no answer")
    assert "start kingtask-broker" in silent.advice
    assert "--curve-key" in findings.broker("a", PermissionDenied("unknown key")).advice


def test_directories_of_executables(tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    (good / "x").touch(0o755)
    assert levels(findings.bin_paths([str(good)])) == {"bin_path": "ok"}
    (good / "plain").touch(0o644)
    assert levels(findings.bin_paths([str(good)])) == {"bin_path": "warn"}


@pytest.mark.parametrize(
    ("users", "slots", "count"), [(None, 2, 0), ("nobody", 2, 1), (["nobody", "daemon"], 2, 0), ("nobody", 1, 0)]
)
def test_attempts_that_share_a_user(users, slots, count):
    run_as = None if users is None else RunAs(user=users)
    found = list(findings.shared_users(WorkerConfig(bin_path=("/tmp",), concurrency=slots, run_as=run_as)))
    assert [finding.level for finding in found] == ["warn"] * count
    assert all("environment" in finding.text and "2 slots" in finding.advice for finding in found)


def test_keep_times_that_differ():
    broker, worker = BrokerConfig(), WorkerConfig(bin_path=("/tmp",))
    assert list(findings.keep_times(broker, worker)) == []
    for name in ("result_keep_time", "failed_keep_time"):
        (finding,) = findings.keep_times(broker, msgspec.structs.replace(worker, **{name: 3600.0}))
        assert finding.level == "warn"
        for part in (name, "3,600 s", f"{getattr(broker, name):,.0f} s"):
            assert part in finding.text
    other = msgspec.structs.replace(worker, result_keep_time=1.5, failed_keep_time=1.5)
    assert len(list(findings.keep_times(broker, other))) == 2


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def configured(tmp_path, server, namespace):
    """A broker's and a worker's configuration, for a server and a port at which nobody listens."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "broker.yaml").write_text(f"addr: 127.0.0.1:1\nredis: {server.url}\nnamespace: {namespace}\n")
    (tmp_path / "worker.yaml").write_text(f"redis: {server.url}\nbin_path: {tmp_path / 'bin'}\n")
    return tmp_path


def doctor(*args: str | Path, broker: str | None = None):
    done = kingtask("doctor", "--json", "--timeout", "0.3", *map(str, args), broker=broker)
    assert b"Traceback" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def subjects(findings) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding["subject"], set()).add(finding["level"])
    return found


def test_all_is_well_with_dev(dev):
    done = dev.run("doctor", "-c", str(dev.data / "broker.yaml"), "--worker-config", str(dev.data / "worker.yaml"))
    text = done.stdout.decode()
    for subject in ("broker", "redis", "memory", "ack", "library", "clock", "brokers", "workers", "queues", "bin_path"):
        assert f" {subject} " in text
    assert {line.split()[0] for line in text.splitlines() if not line.startswith(" ")} <= {"ok", "warn", "fail"}
    # Other tests leave tasks in queues that nobody serves.
    assert "fail broker" not in text
    assert "fail redis" not in text


def test_without_a_broker_the_record_still_tells(configured, server):
    status, findings = doctor("-c", configured / "broker.yaml", "--worker-config", configured / "worker.yaml")
    found = subjects(findings)
    assert status == 1
    assert found["broker"] == {"fail"}
    assert "127.0.0.1:1" in findings[0]["text"]
    assert found["redis"] == {"ok"}
    assert found["bin_path"] == {"ok"}


def test_executables_that_the_tasks_user_could_change_are_told(configured):
    path = configured / "worker.yaml"
    path.write_text(path.read_text() + "run_as: {user: nobody}\n")
    (configured / "bin" / "task").touch()
    (configured / "bin" / "task").chmod(0o757)
    status, findings = doctor("--worker-config", path)
    (found,) = [finding for finding in findings if finding["subject"] == "config"]
    assert (status, found["level"]) == (1, "fail")
    assert f"bin_path: every user may write to {configured}/bin/task, and so change" in found["text"]


def test_paths_that_others_may_change_are_findings(configured):
    (configured / "open").mkdir()
    (configured / "open").chmod(0o777)
    for daemon in ("broker", "worker"):
        (configured / f"{daemon}.yaml").rename(configured / "open" / f"{daemon}.yaml")
    there = configured / "open"
    _, found = doctor("-c", there / "broker.yaml", "--worker-config", there / "worker.yaml")
    told = [each for each in found if each["subject"] == "config"]
    assert [each["level"] for each in told] == ["warn", "warn"]
    for each, daemon in zip(told, ("broker", "worker"), strict=True):
        assert each["text"].startswith(f"{there}/{daemon}.yaml: every user may write to {there}, ")
        assert each["advice"] == f"chmod o-w {there}"


@pytest.mark.parametrize("kind", ["none", "file", "open"])
def test_a_directory_of_executables_that_a_worker_refuses_fails(configured, kind):
    executables = configured / "bin"
    if kind == "open":
        executables.chmod(0o777)
    else:
        executables.rmdir()
    if kind == "file":
        executables.touch()
    status, findings = doctor("--worker-config", configured / "worker.yaml")
    (found,) = [finding for finding in findings if finding["subject"] == "config"]
    assert (status, found["level"]) == (1, "fail")
    assert "bin_path: " in found["text"]
    assert str(executables) in found["text"]


def test_keep_times_are_compared_if_both_configurations_are_given(configured):
    files = [configured / "broker.yaml", configured / "worker.yaml"]
    changed = [path.read_text() + "result_keep_time: 3600\n" for path in files]
    files[0].write_text(changed[0])
    both = ["-c", files[0], "--worker-config", files[1]]
    assert subjects(doctor(*both)[1])["keep_time"] == {"warn"}
    for one in (both[:2], both[2:]):
        assert "keep_time" not in subjects(doctor(*one)[1])
    files[1].write_text(changed[1])
    assert "keep_time" not in subjects(doctor(*both)[1])


def test_the_broker_of_the_configuration_is_asked_unless_one_is_named(configured, dev):
    named = doctor("-c", configured / "broker.yaml", broker=dev.broker)[1]
    assert (named[0]["level"], dev.broker in named[0]["text"]) == ("ok", True)


def test_a_redis_that_is_away_or_says_no_is_one_line(configured):
    path = configured / "broker.yaml"
    path.write_text("redis: redis://user:topsecret@127.0.0.1:1/0\n")
    status, findings = doctor("-c", path)
    assert status == 1
    assert subjects(findings)["redis"] == {"fail"}
    assert "topsecret" not in json.dumps(findings)
    with RedisServer(requirepass="right") as server:
        path.write_text(f"redis: {server.url}\n")
        (finding,) = [each for each in doctor("-c", path)[1] if each["subject"] == "redis"]
        assert (finding["level"], "redis_password_file" in finding["advice"]) == ("fail", True)


def test_a_configuration_that_is_wrong_is_a_finding(tmp_path):
    (tmp_path / "broker.yaml").write_text("adr: 127.0.0.1:9595\n")
    status, findings = doctor("-c", tmp_path / "broker.yaml", "--worker-config", tmp_path / "none")
    assert status == 1
    assert len(subjects(findings)["config"]) == 1
    assert "addr" in json.dumps(findings)
