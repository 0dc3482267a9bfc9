"""deploy/redis/kingtask.acl on a real server: broker and worker may do everything that they need, and nothing else.

Their commands, and the worker's keys, are compared with the code in store/test_rights.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from kingtask import RequestRefused
from kingtask.policy import Policy
from kingtask.store import functions, rights
from kingtask.store.keys import Keys
from kingtask.store.library import shipped
from kingtask.store.redis.redis_errors import store_error
from kingtask.task import TaskSpec
from tests.integration.rig import StackHarness
from tests.integration.test_brokers import refused_start
from tests.processes import PATIENCE_S, until
from tests.servers import free_port
from tests.systemd.source import page_blocks

pytestmark = pytest.mark.long

FILE = Path(__file__).parents[2] / "deploy" / "redis" / "kingtask.acl"
ROLES: tuple[rights.Role, ...] = ("broker", "worker")
USERS = (*ROLES, "admin")
KEYS = Keys("kingtask")


def password(role: str) -> str:
    return f"{role}-s3cret"


def with_passwords() -> str:
    """The file, as deploy/README.md has it filled in."""
    text = FILE.read_text()
    for user in USERS:
        mark = f"SHA256_OF_THE_{user.upper()}S_PASSWORD"
        assert text.count(mark) == 1
        text = text.replace(mark, sha256(password(user).encode()).hexdigest())
    return text


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackHarness]:
    """A server with the users of the file."""
    path = tmp_path_factory.mktemp("acl") / "kingtask.acl"
    path.write_text(with_passwords())
    with StackHarness(aclfile=str(path)) as started:
        yield started


@pytest.fixture
def rig(shared: StackHarness) -> Iterator[StackHarness]:
    """The same, with the users as in the file, and emptied of what the test before left."""
    yield shared
    for daemon in shared.daemons:
        daemon.kill()
    shared.daemons.clear()
    admin(shared).execute_command("ACL", "LOAD")  # which may end the connections of its users
    boss = admin(shared)
    boss.execute_command("ACL", "LOG", "RESET")
    boss.flushall()


def login(rig: StackHarness, role: str) -> dict[str, Any]:
    """The settings of a daemon."""
    path = rig.directory / f"{role}.password"
    path.write_text(password(role))
    path.chmod(0o600)
    return {"redis": f"unix://kingtask-{role}@{rig.redis.socket}", "redis_password_file": str(path)}


def as_user(rig: StackHarness, role: str, **options: Any) -> redis.Redis:
    return rig.redis.client(username=f"kingtask-{role}", password=password(role), **options)


def admin(rig: StackHarness) -> redis.Redis:
    return as_user(rig, "admin", decode_responses=True)


def doctor(*files: Path) -> list[dict[str, str]]:
    options = [word for name, path in zip(("-c", "--worker-config"), files, strict=False) for word in (name, str(path))]
    command = [sys.executable, "-m", "kingtask", "doctor", "--json", *options]
    command += ["--timeout", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def failures(findings: list[dict[str, str]]) -> list[str]:
    return [f"{each['text']} → {each['advice']}" for each in findings if each["level"] == "fail"]


def test_everything_works_and_nothing_that_was_tried_is_refused(rig: StackHarness):
    broker, worker = rig.start_broker(**login(rig, "broker")), rig.start_worker(**login(rig, "worker"))
    client = rig.client()
    assert client.ping()["ack"] == "fsync"
    assert client.submit("ledger", env=rig.env).wait(PATIENCE_S).success
    assert client.submit("ledger", delay=0.2, env=rig.env).wait(PATIENCE_S).success
    assert client.submit("missing", retry=[0.1]).wait(PATIENCE_S).reason == "missing"
    scheduled = client.submit("ledger", delay=3600)
    client.cancel(scheduled.id)
    assert scheduled.wait(PATIENCE_S).state == "cancelled"
    running = client.submit("ledger", ["3600"], env=rig.env)
    until(lambda: client.get(running.id).state == "running", "it runs")
    client.cancel(running.id)
    assert running.wait(PATIENCE_S).state == "cancelled"
    assert client.requeue(scheduled.id).wait(PATIENCE_S).success is False
    client.pause("mail")
    client.resume("mail")
    assert {found.name for found in client.list("cancelled")} == {"ledger"}
    findings = doctor(broker.path, worker.path)
    assert failures(findings) == []
    assert {"clock", "cluster", "library", "memory", "ack", "workers"} <= {each["subject"] for each in findings}
    assert not [each for each in findings if "may not" in each["text"]]
    assert worker.stop() == 0
    assert broker.stop() == 0
    denied: list[dict[str, Any]] = admin(rig).acl_log()
    assert {entry["object"] for entry in denied} <= {"client|setinfo"}  # redis-py introduces itself to no avail


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "command",
    [
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("FUNCTION", "FLUSH"),
        ("FUNCTION", "DELETE", shipped().name),
        ("FUNCTION", "DUMP"),
        ("FUNCTION", "RESTORE", "x", "REPLACE"),
        ("CONFIG", "SET", "appendfsync", "no"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("SHUTDOWN", "NOSAVE"),
        ("EVAL", "return 1", "0"),
        ("SET", "{kingtask}:meta", "x"),
        ("RENAME", "{kingtask}:meta", "{kingtask}:x"),
        ("MONITOR",),
        ("REPLICAOF", "NO", "ONE"),
        ("HGET", "{other}:meta", "schema"),
        ("HSET", "meta", "schema", "2"),
        ("EXISTS", "kingtask"),
        ("PUBLISH", "{other}:0:due", "1"),
    ],
    ids=" ".join,
)
def test_what_neither_may_do(rig: StackHarness, role: str, command: tuple[str, ...]):
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_user(rig, role).execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("FUNCTION", "LOAD", "REPLACE", shipped().text),
        ("CONFIG", "GET", "masterauth"),
        ("SUBSCRIBE", "{kingtask}:0:due"),
        ("PUBLISH", "{kingtask}:0:cancel", "w1 id"),
        ("DEL", "{kingtask}:task:1"),
        ("HSETNX", "{kingtask}:meta", "schema", "9"),
        ("HDEL", "{kingtask}:meta", "cluster"),
        *(
            ("PEXPIRE", f"{{kingtask}}:{name}", "1")
            for name in ("meta", "queues", "schedule", "ready:default", "counts:x")
        ),
        ("HSET", "{kingtask}:queues", "default", "1"),
        ("HSET", "{kingtask}:brokers", "b", "x"),
        ("ZREM", "{kingtask}:brokers:seen", "b"),
        ("ZADD", "{kingtask}:owned:alice", "1", "x"),
        ("ZPOPMIN", "{kingtask}:schedule"),
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_a_worker_may_not_do_what_only_brokers_do(rig: StackHarness, command: tuple[str, ...]):
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_user(rig, "worker").execute_command(*command)


def test_a_worker_may_call_no_function_that_changes_what_is_the_brokers(rig: StackHarness):
    """A function has the rights of its caller."""
    rig.start_broker(**login(rig, "broker"))
    policy, own = Policy(), as_user(rig, "worker")
    spec = TaskSpec(name="ledger")
    for call in (
        functions.pause(policy, "default", True),
        functions.submit(policy, [functions.prepare("1" * 36, spec)]),
    ):
        with pytest.raises(redis.ResponseError) as caught:
            own.fcall(shipped().function(call.function), 1, KEYS.meta, call.payload(0))
        assert store_error(caught.value).kind == "permission"


@pytest.mark.parametrize(
    "command",
    [
        ("HSET", "{kingtask}:task:1", "s", "another request"),
        ("PEXPIRE", "{kingtask}:task:1", "1"),
        ("ZADD", "{kingtask}:schedule", "9e15", "1"),
        ("ZPOPMIN", "{kingtask}:ready:default"),
        ("HSET", "{kingtask}:meta", "cluster", "another"),
        ("HGETALL", "{kingtask}:task:1"),
    ],
    ids=" ".join,
)
def test_what_the_page_says_that_the_workers_password_still_allows(rig: StackHarness, command: tuple[str, ...]):
    as_user(rig, "worker").execute_command(*command)


@pytest.mark.parametrize(
    ("user", "secret"), [(None, None), ("default", ""), ("default", "default"), ("kingtask-worker", password("broker"))]
)
def test_nobody_else_gets_in(rig: StackHarness, user: str | None, secret: str | None):
    with pytest.raises(redis.AuthenticationError):
        rig.redis.client(username=user, password=secret).ping()
    with pytest.raises(redis.AuthenticationError):
        rig.redis.client().flushall()


def test_a_restarted_server_has_its_data(rig: StackHarness):
    """Redis reads its file with the rights of the user `default`, and drops the transactions that these forbid."""
    rig.start_broker(**login(rig, "broker"))
    task = rig.client().submit("ledger", delay=3600)
    rig.redis.restart()
    assert rig.client().get(task.id).state == "scheduled"


def test_the_file_as_it_is_shipped_is_not_taken():
    """So that nobody runs it with a password that everybody knows."""
    with pytest.raises(RuntimeError, match="password hash must be"), StackHarness(aclfile=str(FILE)):
        pass


def test_the_page_fills_in_the_passwords(tmp_path: Path):
    (script,) = [block for block in page_blocks("Install") if "kingtask.acl" in block]
    script = script[script.index("install -m 640 -g redis deploy/redis/kingtask.acl") : script.index("done\n") + 5]
    for here, there in (
        ("/etc/kingtask/secrets/$user/redis.password", f"{tmp_path}/redis-$user.password"),
        (" -g redis", ""),
        ("deploy/redis/kingtask.acl", "kingtask.acl"),
        ("/etc/redis/kingtask.acl", f"{tmp_path}/users.acl"),
    ):
        assert here in script
        script = script.replace(here, there)
    (tmp_path / "kingtask.acl").write_text(FILE.read_text())
    subprocess.run(["sh", "-eu", "-c", script], cwd=tmp_path, check=True)
    with StackHarness(aclfile=str(tmp_path / "users.acl")) as rig:
        settings: dict[str, dict[str, Any]] = {
            role: {
                "redis": f"unix://kingtask-{role}@{rig.redis.socket}",
                "redis_password_file": f"{tmp_path}/redis-{role}.password",
            }
            for role in ROLES
        }
        rig.start_broker(**settings["broker"])
        rig.start_worker(**settings["worker"])
        assert rig.client().submit("ledger", env=rig.env).wait(PATIENCE_S).success


# ── what doctor says of it ───────────────────────────────────────────────────────────────────────────────────────────


def rules_of(role: str) -> list[str]:
    """The rules of a user, those of a group of keys in one."""
    (line,) = [line for line in with_passwords().splitlines() if f"user kingtask-{role} " in line]
    _, _, rules = line.partition(f"user kingtask-{role} ")
    return re.findall(r"\([^)]*\)|\S+", rules)


def without(rules: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each right, and the rules without it."""
    for i, rule in enumerate(rules):
        for right in re.findall(r"[+&~]\S+", rule.strip("()")) if rule[0] == "(" else [rule]:
            if right[0] in "+&~%":
                rest = rule.replace(f" {right}", "").replace(f"({right} ", "(")
                yield right, [*rules[:i], *([rest] if rule[0] == "(" else []), *rules[i + 1 :]]


@pytest.mark.parametrize("role", ROLES)
def test_trying_changes_nothing_and_misses_nothing(rig: StackHarness, role: rights.Role):
    """Each right by itself: with it no trial is refused, without it one is."""
    boss = admin(rig)
    boss.hset(KEYS.meta, mapping={"schema": 1, "cluster": "a" * 32})
    before = boss.dbsize(), boss.hgetall(KEYS.meta), boss.execute_command("FUNCTION", "LIST")
    tried = {f"+{name}" for name, _ in rights.trials(KEYS, role)}
    for right, rest in without(rules_of(role)):
        if right in tried or right[0] != "+":
            boss.execute_command("ACL", "SETUSER", f"kingtask-{role}", "reset", *rest)
            found = rights.lacking(as_user(rig, role), KEYS, role, used=True)
            assert found != rights.Lacking(), right
            assert {f"+{name}" for name in found.commands} <= {right}
    boss.execute_command("ACL", "SETUSER", f"kingtask-{role}", "reset", *rules_of(role))
    assert rights.lacking(as_user(rig, role), KEYS, role, used=True) == rights.Lacking()
    assert (boss.dbsize(), boss.hgetall(KEYS.meta), boss.execute_command("FUNCTION", "LIST")) == before


@pytest.mark.parametrize(
    ("rules", "told", "advice"),
    [
        (["-function|load"], "the broker's user may not call FUNCTION LOAD", "+function|load"),
        (["-fcall", "-publish"], "the broker's user may not call FCALL, PUBLISH", "+fcall +publish"),
        (["-time"], "the broker's user may not call TIME", "+time"),
        (["-hget"], "the broker's user may not call HGET", "+hget"),
        (["resetkeys"], "the broker's user may not use all keys of this namespace", "keys of kingtask-broker"),
        (["resetkeys", "%R~{kingtask}:*"], "the broker's user may not use all keys", "keys of kingtask-broker"),
        (["resetkeys", "~{other}:*"], "the broker's user may not use all keys", "keys of kingtask-broker"),
        (["resetchannels"], "the broker's user may not use all channels", "channels of kingtask-broker"),
        (["-config|get"], "ack: fsync cannot work: the broker may not read the settings", "+config|get"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_doctor_says_what_a_user_lacks(rig: StackHarness, rules: list[str], told: str, advice: str):
    path = rig.directory / "examined.yaml"
    path.write_text(yaml.safe_dump({"addr": f"127.0.0.1:{free_port()}", "ack": "fsync", **login(rig, "broker")}))
    admin(rig).execute_command("ACL", "SETUSER", "kingtask-broker", *rules)
    found = [text for text in failures(doctor(path)) if told in text]
    assert len(found) == 1
    assert advice in found[0]
    assert "deploy/redis/kingtask.acl" in found[0]


def test_doctor_says_what_the_workers_user_lacks(rig: StackHarness):
    broker = rig.start_broker(**login(rig, "broker"))
    worker = rig.start_worker(**login(rig, "worker"))
    boss = admin(rig)
    boss.execute_command("ACL", "SETUSER", "kingtask-worker", "-zscore")
    (found,) = failures(doctor(broker.path, worker.path))
    assert found.startswith("the worker's user may not call ZSCORE → give it +zscore ")
    boss.execute_command("ACL", "SETUSER", "kingtask-worker", "+zscore", "clearselectors")
    boss.execute_command("ACL", "SETUSER", "kingtask-worker", "(~{kingtask}:* +fcall +hset +hdel +pexpire +zadd +zrem)")
    (found,) = failures(doctor(broker.path, worker.path))
    assert found.startswith("the worker's user may not call ZPOPMIN, ZREMRANGEBYRANK → give it +zpopmin ")


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        (["-function"], "function|list"),
        (["-info"], "info"),
        (["-subscribe"], "subscribe"),
        (["resetkeys"], "key"),
        (["resetchannels"], "channel"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_daemon_whose_user_lacks_a_right_does_not_start(rig: StackHarness, rules: list[str], part: str):
    admin(rig).execute_command("ACL", "SETUSER", "kingtask-broker", *rules)
    told = refused_start(rig, "broker", {"addr": f"127.0.0.1:{free_port()}", **login(rig, "broker")})
    for word in (part, "kingtask doctor", "deploy/redis/kingtask.acl"):
        assert word in told
    assert "s3cret" not in told


def test_a_worker_that_checks_the_disk_needs_one_right_more(rig: StackHarness):
    rig.start_broker(**login(rig, "broker"))
    settings = {"bin_path": str(rig.bin_path), "ack": "fsync", **login(rig, "worker")}
    assert "since the user lacks +config|get" in refused_start(rig, "worker", settings)
    admin(rig).execute_command("ACL", "SETUSER", "kingtask-worker", "+config|get")
    rig.start_worker(ack="fsync", **login(rig, "worker"))


def test_a_right_that_only_a_function_misses_is_told_to_the_client(rig: StackHarness):
    rig.start_broker(**login(rig, "broker"))
    client = rig.client()
    admin(rig).execute_command("ACL", "SETUSER", "kingtask-broker", "-hexists")
    with pytest.raises(RequestRefused, match=r"lacks a right .* `kingtask doctor`") as caught:
        client.submit("ledger", timeout=1)
    assert (caught.value.code, caught.value.stored) == ("internal", "unknown")
