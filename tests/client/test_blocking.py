"""What only the blocking client promises: threads, forks, signals, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kingtask import Client
from kingtask.client import channel
from kingtask.errors import KingtaskError, NoAnswer
from kingtask.task import TaskSpec
from tests.client.processes import in_child, leaves_something
from tests.client.responder import PATIENCE_S, SILENCE, Responder, result, task_reply

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"


@pytest.fixture
def client(broker: Responder):
    with Client(broker.endpoint, timeout=PATIENCE_S) as made:
        yield made


def test_threads_share_a_client_and_each_gets_its_own_replies(broker: Responder, client: Client):
    def story(number: int) -> None:
        for i in range(50):
            text = f"{number} {i}"
            assert client.submit("example", [text]).result() == text

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(story, range(8)))

    assert len(broker.tasks) == 400
    assert len(set(broker._peers)) <= 8, "one connection for a thread, and kept"


def test_idle_connections_are_bounded(broker: Responder, client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(channel, "MAX_IDLE", 2)
    together = threading.Barrier(6)

    def story(_number: int) -> None:
        completed = client.as_completed([client.submit("example").id, client.submit("example").id])
        next(completed)
        together.wait(PATIENCE_S)  # all hold a connection now
        list(completed)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(story, range(6)))

    assert len(client._pool._idle) == 2
    assert not client._pool._taken


def test_nothing_is_left_behind(broker: Responder):
    broker.script = lambda request: SILENCE if request["op"] == "ping" else broker.succeed(request)

    def story() -> None:
        Client(broker.endpoint)
        with Client(broker.endpoint, timeout=PATIENCE_S) as client:
            client.submit_many([TaskSpec(name="example")] * 10)
            client.submit("example").wait()
            unfinished = client.as_completed([client.submit("example").id, client.submit("example").id])
            next(unfinished)
            with pytest.raises(NoAnswer):
                client.ping(timeout=0.05)

    assert in_child(lambda: leaves_something(story), "") == 0


def test_a_client_that_is_dropped_unclosed_leaves_nothing_behind(broker: Responder):
    def story() -> None:
        Client(broker.endpoint, timeout=PATIENCE_S).submit("example").wait()

    assert in_child(lambda: leaves_something(story), "") == 0


def test_a_process_may_end_with_a_client_unclosed_and_a_thread_inside(broker: Responder):
    broker.script = lambda request: SILENCE if request["op"] == "wait" else broker.succeed(request)
    code = """
import sys, threading
from kingtask import Client
client = Client(sys.argv[1])
print(client.ping()["server"])
threading.Thread(target=client.wait, args=(sys.argv[2],), daemon=True).start()
"""
    command = [sys.executable, "-c", code, broker.endpoint, ID]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert (done.stdout, done.stderr) == ("kingtask\n", "")


def test_an_interrupt_ends_a_call_and_not_the_client(broker: Responder, client: Client):
    def interrupt(request: dict[str, Any]) -> Any:
        if request["op"] == "get":
            os.kill(os.getpid(), signal.SIGINT)
            return SILENCE
        return broker.succeed(request)

    broker.script = interrupt
    task = client.submit("example")

    with pytest.raises(KeyboardInterrupt):
        client.get(task.id)

    broker.script = broker.succeed
    assert client.get(task.id).success


def test_an_exception_in_the_tasks_given_is_the_callers(broker: Responder, client: Client):
    def tasks():
        for _ in range(1_500):
            yield TaskSpec(name="example")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.submit_many(tasks())

    assert client.ping()["ready"]


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_forked_child_uses_the_client_and_so_does_the_parent(broker: Responder, client: Client):
    first = client.submit("example", ["before"])

    status = in_child(lambda: client.submit("example", ["child"]).result() + first.result(), "childbefore")

    assert status == 0
    assert client.submit("example", ["after"]).result() == "after"
    assert [task["args"] for task in broker.tasks.values()] == [["before"], ["child"], ["after"]]
    assert len(set(broker._peers)) == 2, "the child has a connection of its own"


def test_a_child_that_closes_the_client_leaves_the_parents_alone(broker: Responder, client: Client):
    client.ping()

    def close() -> str:
        client.close()
        return "closed"

    assert in_child(close, "closed") == 0

    assert client.ping()["ready"]


def test_a_fork_while_other_threads_are_inside(broker: Responder, client: Client):
    broker.script = lambda request: SILENCE if request["op"] == "wait" else broker.succeed(request)
    task = client.submit("example")
    waiting = threading.Thread(target=client.wait, args=(task,))
    waiting.start()
    request = broker.received(2)[1]

    with client._pool._lock:  # as if another thread held it at that moment
        status = in_child(
            lambda: client.submit("example", id="6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11").id[:8], "6f1c2b8e"
        )

    assert status == 0
    broker.push(request, broker.succeed(request))
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_an_iteration_of_the_parent_ends_in_the_child(broker: Responder, client: Client):
    ids = [client.submit("example").id for _ in range(2)]
    broker.script = lambda request: SILENCE if request["id"] == ids[1] else broker.succeed(request)
    completed = client.as_completed(ids)
    next(completed)
    request = broker.received(4)[3]

    def go_on() -> str:
        try:
            next(completed)
        except KingtaskError as error:
            return type(error).__name__
        return "went on"

    assert in_child(go_on, "ClientClosed") == 0

    broker.push(request, task_reply(result(ids[1])))
    assert next(completed).id == ids[1]


def test_a_pool_of_forked_processes(broker: Responder, client: Client):
    client.ping()
    global _shared
    _shared = client
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(_submit_in_pool, ["a", "b", "c"]) == ["a", "b", "c"]


_shared: Client | None = None


def _submit_in_pool(text: str) -> str:
    assert _shared is not None
    return _shared.submit("example", [text]).result()


# ── imports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("statement", ["from kingtask import Client", "from kingtask.client import Client"])
def test_the_blocking_client_imports_no_more_than_it_needs(statement: str):
    code = (
        f"import sys; {statement}; Client().close();"
        "print(*{'asyncio', 'redis', 'yaml', 'click', 'logging', 'concurrent'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_addresses_and_keys_of_a_client_import_nothing_slow():
    code = (
        "import sys, re, typing, msgspec, zmq; known = set(sys.modules); import kingtask.curve, kingtask.endpoint;"
        "print(*(name for name in sys.modules if name not in known and not name.startswith('kingtask')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_itself_imports_nothing():
    code = "import sys; import kingtask; print(kingtask.__version__, *[m for m in sys.modules if 'kingtask.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1
