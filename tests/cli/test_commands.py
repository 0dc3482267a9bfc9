"""Every command against a real broker, worker and store."""

from __future__ import annotations

import json
import subprocess
import uuid

import pytest

from kingtask.cli.param_types import id_of_key
from tests.cli.tree import KINGTASK, environment, kingtask

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def objects(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


# ── submit ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_submit_prints_the_id(dev):
    done = dev.run("submit", "example", "1", "2")
    assert (done.returncode, done.stderr) == (0, b"")
    assert str(uuid.UUID(done.stdout.decode().strip())).encode() + b"\n" == done.stdout


def test_the_same_id_makes_one_task(dev):
    task_id = str(uuid.uuid4())
    outcomes = [objects(dev.run("submit", "--json", "--id", task_id, "example", "1", "2"))[0] for _ in range(2)]
    assert outcomes == [{"id": task_id, "outcome": "created"}, {"id": task_id, "outcome": "exists"}]
    other = dev.run("submit", "--id", task_id, "example", "3", "4")
    assert (other.returncode, other.stdout) == (6, b"")
    assert b"choose a new id" in other.stderr


def test_the_same_key_makes_one_task(dev):
    key = f"nightly {uuid.uuid4()}"
    outcomes = [objects(dev.run("submit", "--json", "--key", key, "--at", "+1h", "example"))[0] for _ in range(2)]
    assert [outcome["outcome"] for outcome in outcomes] == ["created", "exists"]
    assert {outcome["id"] for outcome in outcomes} == {id_of_key(key)}


@pytest.mark.parametrize(
    ("words", "stdout"), [(["12", "45"], b"57\n"), (["12", "-45"], b"-33\n")], ids=["positive", "negative"]
)
def test_waiting_prints_what_the_task_printed(dev, words, stdout):
    done = dev.run("submit", "--wait", "example", *words)
    assert (done.returncode, done.stdout) == (0, stdout)
    uuid.UUID(done.stderr.decode().strip())


def test_output_passes_as_it_came(dev):
    done = dev.run("submit", "--wait", "binary")
    assert done.stdout == b"\xff\0\033[31m"
    fields = objects(dev.run("submit", "--wait", "--json", "binary"))[0]
    assert (fields["stdout_b64"], fields["state"], fields["success"]) == ("/wAbWzMxbQ==", "succeeded", True)


def test_arguments_and_stdin_arrive_as_they_are(dev):
    words = ["", " ", "-x", "--", "--help", "a\nb", "'\"$(id)*", "grün"]
    assert dev.run("submit", "--wait", "args", *words).stdout == "".join(f"{word}\0" for word in words).encode()
    data = bytes(range(256)) * 1000
    assert dev.run("submit", "--stdin", "-", "--wait", "cat", stdin=data).stdout == data


def test_stderr_is_passed_on_and_makes_it_fail_unless_kept(dev):
    done = dev.run("submit", "--wait", "noisy")
    task_id, message, reason = done.stderr.decode().split("\n", 2)
    assert (done.returncode, done.stdout, message) == (1, b"out\n", "err")
    assert task_id in reason
    assert "stderr" in reason
    kept = dev.run("submit", "--stderr", "keep", "--wait", "noisy")
    assert (kept.returncode, kept.stdout) == (0, b"out\n")
    assert kept.stderr.endswith(b"err\n")


@pytest.mark.parametrize(("words", "status"), [(["fails", "3"], 3), (["killed"], 137), (["no-such-thing"], 1)])
def test_the_tasks_own_exit_status_on_request(dev, words, status):
    assert dev.run("submit", "--wait", *words).returncode == 1
    assert dev.run("submit", "--wait", "--propagate", *words).returncode == status


@pytest.mark.parametrize(
    ("words", "hint"), [(["5", "example"], b"--wait=5 waits at most 5 s"), (["1m"], b"--wait=1m waits at most 60 s")]
)
def test_a_number_that_is_taken_for_the_name_gets_a_hint(dev, words, hint):
    first, second, *_ = dev.run("submit", "--wait", *words).stderr.splitlines()
    uuid.UUID(first.decode())  # whoever reads the id there still finds it
    assert hint in second
    assert b"--wait=" not in dev.run("submit", "--wait=20", *words).stderr
    assert b"--wait=" not in dev.run("submit", "--wait", "example", *words).stderr


def test_a_task_may_be_called_by_a_number(dev):
    (dev.executables / "5").write_text("#!/bin/sh\necho five\n")
    (dev.executables / "5").chmod(0o755)
    try:
        done = dev.run("submit", "--wait", "5")
    finally:
        (dev.executables / "5").unlink()
    assert (done.returncode, done.stdout) == (0, b"five\n")


def test_waiting_ends_when_its_time_is_up(dev):
    done = dev.run("submit", "--delay", "1h", "--wait=0", "--json", "example")
    assert done.returncode == 9
    assert objects(done)[0]["state"] == "scheduled"


def test_retries_are_recorded(dev):
    done = dev.run("submit", "--wait", "--json", "--retry", "0,50ms", "no-such-thing")
    fields = objects(done)[0]
    assert (done.returncode, fields["reason"], len(fields["attempts"])) == (1, "missing", 3)


# ── submit --from ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_in_lines_out_in_order(dev):
    task_id = str(uuid.uuid4())
    lines = [
        {"name": "example", "args": ["1", "2"], "id": task_id},
        {"name": "../x"},
        "no object",
        {"name": "cat", "stdin_b64": "/wA="},
        {"name": "example", "args": ["9", "9"], "id": task_id},
        {"name": "example", "surprise": 1},
    ]
    text = b"\n".join(json.dumps(line).encode() for line in lines[:2]) + b"\n\n{oops\n"
    text += b"\n".join(json.dumps(line).encode() for line in lines[2:])
    done = dev.run("submit", "--from", "-", stdin=text)
    found = objects(done)
    assert done.returncode == 6
    assert [(each["line"], each["outcome"]) for each in found] == [
        (1, "created"),
        (2, "error"),
        (4, "error"),
        (5, "error"),
        (6, "created"),
        (7, "error"),
        (8, "error"),
    ]
    assert found[0]["id"] == found[5]["id"] == task_id
    codes = [each["error"]["code"] for each in found if each["outcome"] == "error"]
    assert codes == ["invalid_request", "malformed", "invalid_request", "id_conflict", "invalid_request"]


def test_options_are_the_defaults_of_the_lines(dev, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"name": "example", "args": ["1", "2"]}\n{"name": "example", "queue": "elsewhere"}\n')
    done = dev.run("submit", "--delay", "1h", "--queue", "batch", "--from", str(path))
    assert done.returncode == 0
    found = [objects(dev.run("get", "--json", each["id"]))[0] for each in objects(done)]
    assert [(task["queue"], task["state"]) for task in found] == [("batch", "scheduled"), ("elsewhere", "scheduled")]
    assert dev.run("submit", "--id", UNKNOWN, "--from", str(path)).returncode == 2
    assert dev.run("submit", "--from", str(path), "example").returncode == 2
    assert dev.run("submit", "--from", str(tmp_path / "none")).returncode == 2


def test_a_slow_writer_gets_each_answer_at_once(dev):
    process = subprocess.Popen(
        [*KINGTASK, "submit", "--from", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(dev.broker),
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in range(1, 4):
            process.stdin.write(b'{"name": "example"}\n')
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == n
    assert process.returncode == 0


def test_lines_without_an_answer_end_it():
    done = kingtask("submit", "--timeout", "0.2", "--from", "-", broker="127.0.0.1:1", stdin=b'{"name": "x"}\n{}\n')
    assert done.returncode == 4
    first, second = objects(done)
    assert (first["error"]["code"], first["error"]["stored"]) == ("no_answer", "no")
    assert second["error"]["field"] == "name"
    assert b"line 2" in done.stderr


def test_many_lines_with_their_results(dev):
    lines = b"".join(b'{"name": "example", "args": ["%d", "1"]}\n' % n for n in range(50))
    done = dev.run("submit", "--from", "-", "--wait", stdin=lines)
    assert done.returncode == 0
    assert [each["stdout"] for each in objects(done)] == [f"{n + 1}\n" for n in range(50)]


# ── what becomes of tasks ────────────────────────────────────────────────────────────────────────────────────────────


def test_get_shows_a_task_to_people_and_programs(dev):
    task_id = dev.submit("--tag", "evil\x1b[31m", "--retry", "0", "fails", "3")
    assert dev.run("wait", task_id).returncode == 1
    done = dev.run("get", task_id)
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "\x1b" not in text
    for part in (task_id, "fails 3", "failed", "attempt 2", "exit status 3", "partly"):
        assert part in text
    fields = objects(dev.run("get", "--json", task_id, task_id))
    assert [each["exit_code"] for each in fields] == [3, 3]


@pytest.mark.parametrize(
    ("words", "once"),
    [
        (["noisy"], ["  err", "stderr: keep", "exit status 0", "  out"]),
        (["loudly", "3"], [" trouble", "exit status 3"]),
        (["fails", "3"], ["nothing on stderr", "exit status 3", "partly"]),
        (["killed"], ["killed by", "SIGKILL"]),
        (["no-such-thing"], ["no no-such-thing in bin_path"]),
    ],
)
def test_get_says_each_thing_once(dev, words, once):
    task_id = dev.submit(*words)
    dev.run("wait", task_id)
    text = dev.run("get", task_id).stdout.decode()
    assert {part: text.count(part) for part in once} == dict.fromkeys(once, 1), text


def test_get_tells_what_each_attempt_said(dev):
    task_id = dev.submit("--retry", "0", "loudly", "3")
    dev.run("wait", task_id)
    text = dev.run("get", task_id).stdout.decode()
    assert text.count("trouble in attempt 1") == text.count("trouble in attempt 2") == 1


def test_an_unknown_task_is_not_found_and_hinders_no_other(dev):
    task_id = dev.submit("example", "1", "2")
    done = dev.run("get", "--json", UNKNOWN, task_id)
    assert done.returncode == 7
    assert [each["id"] for each in objects(done)] == [task_id]
    assert UNKNOWN.encode() in done.stderr
    for command in (["wait"], ["cancel"], ["requeue"], ["forget"]):
        assert dev.run(*command, UNKNOWN).returncode == 7
    assert dev.run("get", "no-uuid").returncode == 2


def test_wait_shows_output_in_the_order_of_the_ids(dev):
    ids = [dev.submit("example", str(n), "0") for n in range(3)]
    done = dev.run("wait", *reversed(ids))
    assert (done.returncode, done.stdout) == (0, b"2\n1\n0\n")


def test_wait_has_a_time_limit_and_says_how_it_stands(dev):
    task_id = dev.submit("--delay", "1h", "example", "1", "2")
    done = dev.run("wait", "--timeout", "0", task_id)
    assert (done.returncode, done.stdout) == (9, b"")
    assert b"scheduled" in done.stderr
    done = dev.run("wait", "--timeout", "0", "--json", task_id)
    assert (done.returncode, objects(done)[0]["state"]) == (9, "scheduled")


def test_cancel(dev):
    scheduled = dev.submit("--delay", "1h", "example")
    assert dev.run("cancel", scheduled).stdout.decode() == f"{scheduled}: cancelled\n"
    assert dev.run("cancel", scheduled).returncode == 0
    running = dev.submit("slow", "600")
    dev.until_state(running, "running")
    assert objects(dev.run("cancel", "--json", running)) == [{"id": running, "outcome": "cancelling"}]
    assert b"cancelled" in dev.run("wait", running).stderr
    ended = dev.submit("example", "1", "2")
    dev.run("wait", ended)
    assert dev.run("cancel", ended).returncode == 6


def test_forget(dev):
    ended, other, waiting = (
        dev.submit("example", "1", "2"),
        dev.submit("example"),
        dev.submit("--delay", "1h", "example"),
    )
    dev.run("wait", ended, other)
    done = dev.run("forget", waiting, ended)
    assert (done.returncode, done.stdout.decode()) == (6, f"{ended}: forgotten\n")
    assert objects(dev.run("forget", "--json", other)) == [{"id": other, "outcome": "forgotten"}]
    for command in ("get", "forget"):
        assert dev.run(command, ended).returncode == 7
    assert dev.run("get", waiting).returncode == 0


def test_requeue_by_id_makes_a_new_task_each_time(dev):
    old = dev.submit("example", "12", "45")
    dev.run("wait", old)
    new = [dev.run("requeue", old).stdout.decode().strip(), objects(dev.run("requeue", "--json", old))[0]["id"]]
    assert len({old, *new}) == 3
    assert dev.run("wait", *new).stdout == b"57\n57\n"
    assert objects(dev.run("get", "--json", new[0]))[0]["origin"] == old
    waiting = dev.submit("--delay", "1h", "example")
    assert dev.run("requeue", waiting).returncode == 6


def test_requeue_by_state_is_safe_to_repeat(dev, tmp_path):
    queue = f"q{uuid.uuid4().hex[:8]}"
    dev.run("pause", queue)
    ids = {dev.submit("--delay", "1h", "--queue", queue, "example", str(n), "1") for n in range(3)}
    dev.run("cancel", *ids)
    command = ["requeue", "--state", "cancelled", "--queue", queue, "--since", "-1h"]
    first, second = (objects(dev.run(*command, "--json")) for _ in range(2))
    assert {each["outcome"] for each in first} == {"created"}
    assert second == [{**each, "outcome": "exists"} for each in first]
    assert {each["origin"] for each in first} == ids
    late = dev.submit("--delay", "1h", "--queue", queue, "example", "9", "9")
    dev.run("cancel", late)
    third = dev.run(*command)
    assert third.returncode == 0
    new = third.stdout.decode().split()
    assert [each["origin"] for each in objects(dev.run("get", "--json", *new))] == [late]
    assert b"3 tasks had been requeued before" in third.stderr
    dev.run("cancel", *new)
    listed = objects(dev.run("list", "--state", "ready", "--queue", queue, "--json"))
    assert {task["id"] for task in listed} == {each["id"] for each in first}
    assert objects(dev.run("requeue", "--state", "failed", "--queue", queue, "--json")) == []
    for words in ([], ["--state", "failed", ids.pop()], ["--queue", queue], ["--state", "running"]):
        assert dev.run("requeue", *words).returncode == 2


# ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_list_by_state_queue_and_time(dev):
    queue = f"q{uuid.uuid4().hex[:8]}"
    dev.run("pause", queue)
    soon, later = (dev.submit("--delay", delay, "--queue", queue, "example") for delay in ("30m", "2h"))
    ready = dev.submit("--queue", queue, "example")
    listed = objects(dev.run("list", "--queue", queue, "--json"))
    assert [task["id"] for task in listed] == [ready, soon, later]
    assert [task["state"] for task in listed] == ["ready", "scheduled", "scheduled"]
    assert "stdout" not in listed[0]
    until = objects(dev.run("list", "--state", "scheduled", "--queue", queue, "--until", "+1h", "--json"))
    assert [task["id"] for task in until] == [soon]
    everywhere = objects(dev.run("list", "--state", "ready", "--limit", "0", "--json"))
    assert ready in [task["id"] for task in everywhere]
    limited = dev.run("list", "--queue", queue, "--limit", "1")
    assert limited.stdout.decode().count(queue) == 2
    assert b"--limit" in limited.stderr
    assert dev.run("list", "--state", "ready", "--since", "-1h").returncode == 2
    assert dev.run("list", "--since", "-1h").returncode == 2
    assert dev.run("list", "--state", "failed", "--queue", "none-such").stdout == b"No such tasks.\n"


def test_pause_and_resume(dev):
    queue = f"q{uuid.uuid4().hex[:8]}"
    assert dev.run("pause", queue).stdout.decode() == f"{queue}: paused\n"
    stats = objects(dev.run("stats", "--json"))[0]
    assert {each["name"]: each["paused"] for each in stats["queues"]}[queue] is True
    assert b"paused" in dev.run("stats").stdout
    assert objects(dev.run("resume", "--json", queue)) == [{"queue": queue, "paused": False}]
    assert dev.run("pause", "a b").returncode == 2


def test_stats_and_ping(dev):
    text = dev.run("stats").stdout.decode()
    for part in ("QUEUE", "WORKER", "BROKER", dev.broker, "fsync", str(dev.executables)):
        assert part in text
    done = dev.run("ping")
    assert done.returncode == 0
    assert b"fsync" in done.stdout
    pong = objects(dev.run("ping", "--json"))[0]
    assert pong["ready"] is True
    assert pong["round_trip_ms"] > 0
