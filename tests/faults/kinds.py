"""What may happen to a task, one function each: `KINDS`."""

from __future__ import annotations

import msgspec

from tests.faults.making import MAX_LOST, GeneratedTask, Maker


def _now(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _scheduled(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, start_ms=maker.now_ms + maker.random.randrange(500, 3000))
    maker.submit(task)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _delayed(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, delay_ms=maker.random.randrange(1, 2000))
    maker.submit(task)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _retried(maker: Maker, kind: str) -> None:
    intervals = sorted(maker.random.sample(range(200, 1500, 100), 3))
    task = GeneratedTask(maker, retry_ms=intervals)
    maker.submit(task)
    for _ in intervals[:2]:
        task.ran("exit", 1)
    task.released()
    task.ran("exit", 3)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _failed(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, retry_ms=(100, 300))
    maker.submit(task)
    for _ in range(3):
        task.ran("exit", 7)
    maker.done(kind, task, task.ended("failed", "exit"))


def _no_retry(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, retry_ms=(100,))
    maker.submit(task)
    task.ran("no_retry", 100)
    maker.done(kind, task, task.ended("failed", "no_retry"))


def _lost(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    task.lost("kill worker 1")
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _overlapping(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    task.lost("stop worker 1", ends=True, next_ran_ms=100)
    task.ran(took_ms=500)
    maker.done(kind, task, task.ended("succeeded"))


def _poison(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    for _ in range(MAX_LOST):
        task.lost("kill worker 2")
    maker.done(kind, task, task.ended("failed", "lost"))


def _once(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, on_lost="fail")
    maker.submit(task)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _once_lost(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, on_lost="fail")
    maker.submit(task)
    task.lost("kill worker 1", runs=maker.random.random() < 0.7)
    maker.done(kind, task, task.ended("failed", "lost"))


def _shared(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    for _ in range(2):
        end = maker.random.choice(["ok", "info", "cut", "fail"])
        maker.submit(task, end, "exists", "unavailable", after_ms=maker.random.randrange(8, 500))
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _unsure(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task, maker.random.choice(["info", "cut"]), code="not_confirmed")
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _vanished(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task, "info", code="NoAnswer")
    maker.readings[task.id] = None
    maker.kinds[kind].append(task.id)


def _refused(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    for again in range(2):
        maker.submit(task, "fail", code="busy", after_ms=again * 20)
    maker.readings[task.id] = None
    maker.kinds[kind].append(task.id)


def _cancelled(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, delay_ms=60_000)
    maker.submit(task)
    at_ms = task.acked_ms + maker.random.randrange(5, 300)
    maker.call("cancel", task.id, at_ms - 1, 3, "ok", outcome="cancelled")
    maker.done(kind, task, task.ended("cancelled", "cancelled", at_ms=at_ms))


def _stopped(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    task.ran("cancelled", 0, took_ms=300)
    del maker.executions[-1]  # killed before its end
    task.attempts[-1] = msgspec.structs.replace(task.attempts[-1], exit_code=None, signal=15)
    maker.call("cancel", task.id, task.attempts[-1].ended_ms - 10, 2, "ok", outcome="cancelling")
    maker.done(kind, task, task.ended("cancelled", "cancelled"))


def _expired(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, delay_ms=50, expires_ms=maker.now_ms + 1000)
    maker.submit(task)
    at_ms = task.asked.expires_ms + maker.random.randrange(0, 50)
    maker.done(kind, task, task.ended("expired", "expires_at", at_ms=at_ms))


def _in_time(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker, expires_ms=maker.now_ms + 5000)
    maker.submit(task)
    task.ran()
    maker.done(kind, task, task.ended("succeeded"))


def _cut(maker: Maker, kind: str) -> None:
    task = GeneratedTask(maker)
    maker.submit(task)
    task.ran(cut=True)
    maker.done(kind, task, task.ended("succeeded"))


def _requeued(maker: Maker, kind: str) -> None:
    old = GeneratedTask(maker, start_ms=maker.now_ms + 100, retry_ms=())
    maker.submit(old)
    old.ran("exit", 2)
    before = old.ended("failed", "exit")
    maker.done("origin", old, before)
    new = GeneratedTask(maker)
    new.asked = msgspec.structs.replace(old.asked, start_ms=0)
    new.created_ms = before.finished_ms + 500
    new.acked_ms = new.created_ms + 2
    maker.call("requeue", new.id, new.created_ms - 2, 4, "ok", outcome="created", ack="fsync", origin=old.id)
    new.ran()
    maker.done(kind, new, msgspec.structs.replace(new.ended("succeeded"), origin=old.id))


KINDS = {
    "now": _now,
    "scheduled": _scheduled,
    "delayed": _delayed,
    "retried": _retried,
    "failed": _failed,
    "no_retry": _no_retry,
    "lost": _lost,
    "overlapping": _overlapping,
    "poison": _poison,
    "once": _once,
    "once_lost": _once_lost,
    "shared": _shared,
    "unsure": _unsure,
    "vanished": _vanished,
    "refused": _refused,
    "cancelled": _cancelled,
    "stopped": _stopped,
    "expired": _expired,
    "in_time": _in_time,
    "cut": _cut,
    "requeued": _requeued,
}
