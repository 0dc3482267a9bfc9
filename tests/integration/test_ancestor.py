"""Each hazard of the first kingtask, as a regression test on real processes."""

from __future__ import annotations

import os
import time
import uuid

import pytest

from kingtask import Client, InvalidRequest, Result, TaskFailed
from tests.integration.rig import StackHarness
from tests.processes import PATIENCE_S, alive, until

SUM = """#!/bin/sh
[ $# -eq 2 ] || { echo "two integers, please" >&2; exit 0; }
echo $(($1 + $2))
"""


def test_a_scheduled_task_survives_a_broker_restart(rig: StackHarness) -> None:
    broker = rig.start_broker()
    rig.start_worker()
    client = rig.client()
    at = time.time() + 2
    task = client.submit("ledger", at=at, env=rig.env)
    broker.kill()
    broker.start()
    assert task.wait(PATIENCE_S).success
    assert rig.executions()[0][2] >= at


def test_a_retry_survives_a_broker_restart(rig: StackHarness) -> None:
    rig.executable("flaky", "#!/bin/sh\n[ $KINGTASK_ATTEMPT -gt 1 ] && echo ok\n")
    rig.executable("failing", "#!/bin/sh\n[ $KINGTASK_ATTEMPT -gt 1 ] || exit 3\necho ok\n")
    broker = rig.start_broker()
    rig.start_worker()
    client = rig.client()
    task = client.submit("failing", retry=[2])
    until(lambda: client.get(task.id).state == "scheduled", "the retry is scheduled")
    broker.kill()
    broker.start()
    result = task.wait(PATIENCE_S)
    assert result.success
    assert [attempt.exit_code for attempt in result.attempts] == [3, 0]


def test_the_first_interval_of_the_list_is_used_first(rig: StackHarness, client: Client) -> None:
    rig.executable("failing", "#!/bin/sh\nexit 1\n")
    result = client.submit("failing", retry=[0.2, 0.6]).wait(PATIENCE_S)
    first, second, third = result.attempts
    assert second.started_at - first.ended_at >= 0.2
    assert third.started_at - second.ended_at >= 0.6
    assert second.started_at - first.ended_at < third.started_at - second.ended_at
    assert result.state == "failed"


def test_tasks_run_first_in_first_out_within_a_priority(rig: StackHarness) -> None:
    rig.start_broker()
    client = rig.client()
    client.pause("default")
    rig.start_worker(concurrency=1)
    ordinary = [client.submit("ledger", env=rig.env).id for _ in range(5)]
    urgent = [client.submit("ledger", env=rig.env, priority=9).id for _ in range(3)]
    client.resume("default")
    for task_id in ordinary + urgent:
        client.wait(task_id, PATIENCE_S)
    assert [task_id for task_id, _, _ in rig.executions()] == urgent + ordinary


def test_a_worker_killed_in_the_middle_loses_nothing(rig: StackHarness) -> None:
    rig.start_broker(lease=2)
    worker = rig.start_worker(lease=2, renew=0.5)
    client = rig.client()
    tasks = [client.submit("ledger", ["1"], env=rig.env) for _ in range(4)]
    until(lambda: len(rig.executions()) == 4, "all four are running")
    worker.kill()
    worker.start()
    results = [task.wait(PATIENCE_S) for task in tasks]
    assert all(result.success for result in results)
    assert {tuple(attempt.reason for attempt in result.attempts) for result in results} == {("lost", "")}


ARGUMENTS = ["two words", "", 'it\'s "quoted"', "line\nbreak", "-n", "--", "$(id); `id` *", "żółć 漢字 🙂", "\\", "\t "]


def test_arguments_arrive_intact(rig: StackHarness, client: Client) -> None:
    rig.executable("args", "#!/bin/sh\nfor a; do printf '%s\\0' \"$a\"; done\n")
    result = client.submit("args", ARGUMENTS).wait(PATIENCE_S)
    assert result.stdout == b"".join(arg.encode() + b"\0" for arg in ARGUMENTS)


def test_a_900_kb_request_and_a_900_kb_result_pass(rig: StackHarness, client: Client) -> None:
    rig.executable("cat", "#!/bin/sh\nexec /bin/cat\n")
    data = os.urandom(900_000)
    result = client.submit("cat", stdin=data).wait(PATIENCE_S)
    assert result.stdout == data
    assert not result.truncated


@pytest.mark.parametrize("name", ["../x", "/bin/sh", "a/../../x", "..", ".x", "a//b", "-x", "a b", "x/", ""])
def test_a_name_that_leaves_the_directory_is_refused(client: Client, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        client.submit(name)


def test_a_symlink_out_of_the_directory_is_refused(rig: StackHarness, client: Client) -> None:
    (rig.bin_path / "shell").symlink_to("/bin/sh")
    (rig.bin_path / "etc").symlink_to("/etc")
    for name in ("shell", "etc/passwd"):
        result = client.submit(name, ["-c", "echo out"]).wait(PATIENCE_S)
        assert result.state == "failed"
        assert result.stdout == b""
        assert result.reason in ("missing", "not_executable")


def test_the_time_limit_kills_the_grandchildren_too(rig: StackHarness, client: Client) -> None:
    pids = rig.directory / "pids"
    rig.executable("forking", f"#!/bin/sh\nsleep 600 &\necho $! > {pids}\necho $$ >> {pids}\nwait\n")
    result = client.submit("forking", time_limit=0.5).wait(PATIENCE_S)
    assert (result.state, result.reason) == ("failed", "time_limit")
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), "both processes are gone")


def test_a_missing_executable_yields_a_result(client: Client) -> None:
    task = client.submit("missing", retry=[0.05, 0.05])
    with pytest.raises(TaskFailed) as caught:
        task.result(PATIENCE_S)
    result: Result = caught.value.result
    assert [attempt.reason for attempt in result.attempts] == ["missing"] * 3


def test_as_many_tasks_as_there_are_slots_run_at_once(rig: StackHarness, client: Client) -> None:
    """Each waits until all four have begun, so none could end if they did not overlap."""
    meeting = rig.directory / "meeting"
    meeting.mkdir()
    rig.executable(
        "meet",
        f"#!/bin/sh\ntouch {meeting}/$KINGTASK_ID\nwhile [ $(ls {meeting} | wc -l) -lt 4 ]; do sleep 0.02; done\n",
    )
    tasks = [client.submit("meet", time_limit=PATIENCE_S) for _ in range(4)]
    assert all(task.wait(PATIENCE_S).success for task in tasks)


def test_warnings_on_stderr_fail_a_task_unless_it_keeps_them(rig: StackHarness, client: Client) -> None:
    rig.executable("warning", "#!/bin/sh\necho careful >&2\necho 57\n")
    strict = client.submit("warning").wait(PATIENCE_S)
    assert (strict.state, strict.reason, strict.stderr) == ("failed", "stderr", b"careful\n")
    assert "keep" in strict.attempts[-1].message
    lenient = client.submit("warning", stderr="keep").wait(PATIENCE_S)
    assert (lenient.state, lenient.text, lenient.stderr) == ("succeeded", "57\n", b"careful\n")


def test_the_original_example(rig: StackHarness, client: Client) -> None:
    rig.executable("example", SUM)
    assert client.submit("example", ["12", "45"], retry=[5, 8, 9]).result(PATIENCE_S) == "57\n"
    assert client.submit("example", ["12"]).wait(PATIENCE_S).reason == "stderr"


def test_the_same_id_again_is_the_same_task(rig: StackHarness, client: Client) -> None:
    task_id = str(uuid.uuid4())
    tasks = [client.submit("ledger", env=rig.env, id=task_id) for _ in range(5)]
    assert {task.wait(PATIENCE_S).success for task in tasks} == {True}
    assert len(rig.executions()) == 1


def test_cancelling_a_running_task_stops_its_children(rig: StackHarness, client: Client) -> None:
    pids = rig.directory / "pids"
    rig.executable("forking", f"#!/bin/sh\nsleep 600 &\necho $! $$ > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    task = client.submit("forking")
    until(pids.exists, "the task runs")
    task.cancel()
    assert task.wait(PATIENCE_S).state == "cancelled"
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), "both processes are gone")
