"""What real daemons tell of real work, and while Redis is away."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from kingtask import TaskNotFound
from kingtask.broker import metrics
from kingtask.metrics.collector import text_parts
from kingtask.store.stats import QueueStats, StoreStats
from tests.integration.rig import StackHarness
from tests.metrics.conftest import Metered
from tests.metrics.scrape import Figures, ask, scrape
from tests.processes import PATIENCE_S, until
from tests.servers import free_port


def test_each_task_is_counted_where_it_ended(metered: Metered) -> None:
    metered.executable("ok", "#!/bin/sh\necho fine\n")
    metered.executable("bad", "#!/bin/sh\nexit 3\n")
    client = metered.client()
    client.submit("ok", queue="default").wait(PATIENCE_S)
    client.submit("bad", retry=[0.01]).wait(PATIENCE_S)
    client.submit("missing").wait(PATIENCE_S)
    client.submit("ok", delay=3600).cancel()
    client.submit("ok", queue="mail", delay=3600)
    client.submit("ok", queue="mail")
    client.pause("mail")

    broker = metered.of_broker()
    counted = {"submitted": 4, "started": 4, "retried": 1, "lost": 0}
    for what, number in counted.items():
        assert broker(f"kingtask_queue_{what}_total", queue="default") == number, what
    outcomes = {"succeeded": 1, "failed": 2, "cancelled": 1, "expired": 0}
    for outcome, number in outcomes.items():
        assert broker("kingtask_queue_finished_total", queue="default", outcome=outcome) == number, outcome
    waiting = {"ready": 1, "scheduled": 1, "running": 0, "paused": 1}
    for what, number in waiting.items():
        assert broker(f"kingtask_queue_{what}", queue="mail") == number, what
    assert broker("kingtask_queue_oldest_ready_seconds", queue="mail") > 0
    assert broker("kingtask_queue_oldest_ready_seconds", queue="default") == 0
    assert (broker("kingtask_queues"), broker("kingtask_tasks"), broker("kingtask_output_bytes")) == (2, 2, 5)
    assert (broker("kingtask_workers"), broker("kingtask_brokers")) == (1, 1)

    def told() -> bool:
        worker = metered.of_worker()
        return worker("kingtask_worker_ends_unconfirmed") == 0

    until(told, "all ends confirmed")
    worker = metered.of_worker()
    attempts = {("succeeded", ""): 1, ("failed", "exit"): 2, ("failed", "missing"): 1}
    for (outcome, reason), number in attempts.items():
        assert worker("kingtask_worker_attempts_total", queue="default", outcome=outcome, reason=reason) == number
    for what, number in {"lateness": 3, "queue_wait": 3, "run": 3}.items():  # what is missing never started
        assert worker(f"kingtask_worker_{what}_seconds_count", queue="default") == number, what
    assert 0 < worker("kingtask_worker_lateness_seconds_sum") < PATIENCE_S
    assert worker("kingtask_worker_claimed_total") == 4


def test_requests_and_redis_are_timed_by_what_they_are(metered: Metered) -> None:
    client = metered.client()
    task = client.submit("ledger", env=metered.env)
    task.wait(PATIENCE_S)
    client.get(task.id)
    figures = metered.of_broker()
    for op, number in {"submit": 1, "wait": 1, "get": 1, "cancel": 0}.items():
        assert figures("kingtask_broker_request_seconds_count", op=op) == number, op
        assert figures("kingtask_broker_request_seconds_bucket", op=op, le="+Inf") == number, op
    assert figures("kingtask_redis_call_seconds_count", function="submit") == 1
    assert figures("kingtask_redis_call_seconds_sum", function="submit") > 0
    assert figures("kingtask_redis_call_seconds_count", function="tick") <= figures("kingtask_broker_ticks_total")
    assert figures("kingtask_broker_wakeups_total") == 1
    assert figures("kingtask_broker_ack_info", level="fsync") == 1
    assert abs(figures("kingtask_redis_clock_offset_seconds")) < PATIENCE_S
    worker = metered.of_worker()
    assert worker("kingtask_redis_call_seconds_count", function="finish") == 1
    assert worker("kingtask_worker_wakeups_total") == 2  # the first one asks whether it is a worker
    assert worker("kingtask_worker_broker_up") == 1


def test_what_is_in_progress_is_seen_in_progress(metered: Metered) -> None:
    metered.executable("gate", '#!/bin/sh\nread line < "$TASK_GATE"\n')
    fifo = metered.directory / "gate"
    subprocess.run(["mkfifo", fifo], check=True)
    task = metered.client().submit("gate", env={"TASK_GATE": str(fifo)})
    until(lambda: metered.of_worker()("kingtask_worker_slots_used") == 1, "a slot in use")
    until(lambda: metered.of_broker()("kingtask_queue_running", queue="default") == 1, "it is running")
    assert metered.of_worker()("kingtask_worker_slots") == 4
    fifo.write_text("go\n")
    task.wait(PATIENCE_S)
    until(lambda: metered.of_worker()("kingtask_worker_slots_used") == 0, "the slot is free")


def test_a_refusal_is_counted_by_its_code(metered: Metered) -> None:
    client = metered.client()
    with pytest.raises(TaskNotFound):
        client.get("6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11")
    figures = metered.of_broker()
    assert figures("kingtask_broker_refusals_total", code="not_found") == 1
    assert figures("kingtask_broker_refusals_total", code="store_full") == 0


def becomes(address: str, status: int) -> str:
    """Wait until /readyz answers with it; return what it says."""
    return until(lambda: text if (answer := ask(address, "/readyz"))[0] == status and (text := answer[1]) else "", "it")


@pytest.mark.parametrize("gone", ["ended", "silent"])
def test_without_redis_it_is_alive_not_ready_and_tells_the_rest(metered: Metered, gone: str) -> None:
    addresses = {name: daemon.config["metrics_addr"] for name, daemon in metered.both.items()}
    for address in addresses.values():
        assert becomes(address, 200) == "ok\n"
    before = metered.of_broker()
    assert before("kingtask_queues_told") == 1
    if gone == "ended":
        metered.redis.stop()
    else:
        metered.redis.pause()
        # Before the connection is given up, a scrape waits for so long, and is told without the queues.
        until(lambda: metered.of_broker()("kingtask_queues_told") == 0, "a scrape without queues")
    for name, address in addresses.items():
        assert becomes(address, 503).startswith("redis (")
        assert ask(address, "/healthz") == (200, "ok\n")

        def down(name: str = name, address: str = address) -> bool:  # a text is kept for a second
            return scrape(address)("kingtask_redis_up", purpose=name) == 0

        until(down, "the connection is told to be down")
    during = metered.of_broker()
    assert (during("kingtask_queues_told"), list(during.all("kingtask_queue_ready"))) == (0, [])
    if gone == "ended":
        metered.redis.start()
    else:
        metered.redis.resume()
    for address in addresses.values():
        becomes(address, 200)
    until(lambda: metered.of_broker()("kingtask_queues_told") == 1, "queues are told again")
    after = metered.of_broker()
    name = "kingtask_redis_connects_total"
    assert after(name, purpose="broker") > before(name, purpose="broker")


def test_it_answers_before_redis_was_ever_there() -> None:
    with StackHarness() as rig:
        rig.redis.stop()
        address = f"127.0.0.1:{free_port()}"
        rig.start_broker(ready=False, metrics_addr=address)

        def answers() -> tuple[int, str] | None:
            try:
                return ask(address, "/readyz")
            except OSError:
                return None

        reply = until(answers, "an answer")
        assert reply is not None
        assert reply[0] == 503
        assert ask(address, "/healthz") == (200, "ok\n")
        assert scrape(address)("kingtask_broker_ack_info", level="unknown") == 1


def test_a_lost_attempt_is_counted_and_named() -> None:
    with Metered() as rig:
        rig.executable("gate", '#!/bin/sh\nread line < "$TASK_GATE"\n')
        subprocess.run(["mkfifo", rig.directory / "gate"], check=True)
        rig.broker = rig.start_broker(metrics_addr=f"127.0.0.1:{free_port()}", max_lost=1, lease=0.5)
        worker = rig.start_worker(renew=0.1, lease=0.5)
        (name,) = rig.worker_names()
        task = rig.client().submit("gate", queue="default", env={"TASK_GATE": str(rig.directory / "gate")})
        until(lambda: rig.of_broker()("kingtask_queue_running", queue="default") == 1, "it is running")
        worker.kill()
        assert task.wait(PATIENCE_S).reason == "lost"
        until(lambda: rig.of_broker()("kingtask_queue_lost_total", queue="default") == 1, "it is told")
        assert rig.of_broker()("kingtask_broker_lost_total") == 1
        assert f"lease=expired task={task.id} attempt=1 queue=default worker={name}\n" in rig.broker.text()


def test_a_worker_that_is_stopping_is_not_ready(metered: Metered) -> None:
    metered.executable("gate", '#!/bin/sh\nread line < "$TASK_GATE"\n')
    fifo = metered.directory / "gate"
    subprocess.run(["mkfifo", fifo], check=True)
    metered.client().submit("gate", env={"TASK_GATE": str(fifo)})
    until(lambda: metered.of_worker()("kingtask_worker_slots_used") == 1, "a slot in use")
    metered.worker.signal(signal.SIGTERM)
    assert becomes(metered.worker.config["metrics_addr"], 503) == "it is stopping\n"
    until(lambda: metered.of_worker()("kingtask_worker_draining") == 1, "it is told")
    fifo.write_text("go\n")
    assert metered.worker.stop() == 0


def test_every_broker_tells_the_same_of_the_queues(metered: Metered) -> None:
    other = f"127.0.0.1:{free_port()}"
    metered.start_broker(metrics_addr=other)
    client = metered.client()
    for _ in range(3):
        client.submit("ledger", queue="q")
    first, second = metered.of_broker(), scrape(other)
    assert first("kingtask_queue_ready", queue="q") == second("kingtask_queue_ready", queue="q") == 3
    until(lambda: metered.of_broker()("kingtask_brokers") == 2, "two brokers")


def test_an_address_that_is_taken_stops_the_start(metered: Metered) -> None:
    taken = metered.broker.config["metrics_addr"]
    for daemon in (metered.start_broker, metered.start_worker):
        started = daemon(ready=False, metrics_addr=taken)
        assert started.process is not None
        assert started.process.wait(PATIENCE_S) == 3
        assert f"metrics_addr: cannot listen on {taken}: it is in use" in started.text()
        assert "Traceback" not in started.text()


def test_a_public_address_is_allowed_and_said(metered: Metered) -> None:
    port = free_port()
    worker = metered.start_worker(metrics_addr=f"0.0.0.0:{port}")
    assert f"level=warning program=worker from=kingtask.metrics metrics=public address=0.0.0.0:{port}" in worker.text()
    assert "metrics=public" not in metered.worker.text()
    assert ask(f"127.0.0.1:{port}", "/healthz")[0] == 200


def test_without_metrics_nothing_of_prometheus_is_loaded() -> None:
    code = "import sys, kingtask.broker.server, kingtask.worker.host; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_of_very_many_queues_only_some_are_told() -> None:
    def queue(n: int) -> QueueStats:
        return QueueStats(
            name=f"q{n:05}", paused=False, scheduled=0, ready=n, running=0, oldest_waiting_s=0.0, totals={}, rates={}
        )

    found = StoreStats([queue(n) for n in range(5_000)], [], [])
    figures = Figures(b"".join(text_parts(metrics.of_queues(found))).decode())
    ready = [sample.labels["queue"] for sample in figures.samples if sample.name == "kingtask_queue_ready"]
    assert len(ready) == len(set(ready)) == metrics.MAX_QUEUES
    assert figures("kingtask_queues") == 5_000
