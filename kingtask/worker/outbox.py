"""Reports of ended attempts on their way to Redis: sent in batches, retried, kept until confirmed. Pure.

A retry is safe: Redis answers `recorded` if it has the report, and `fenced` if the lease was given away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kingtask.store.functions import CUT_BYTES, EndedTask, Fence
from kingtask.worker.exec.capture import shorten

MAX_ITEMS = 200
MAX_BYTES = 1_048_576
"""Bounds of one call, which blocks the server while it runs. One attempt alone may exceed them."""

Report = EndedTask | bytes
"""How an attempt ended; or the packed record of a release."""


class Claim(NamedTuple):
    token: bytes
    nth: int
    n: int
    again: bool


class Finish(NamedTuple):
    ended: list[EndedTask]
    cut: bool
    """True if the outputs are cut so that even a full Redis accepts them."""
    claim: Claim | None = None
    """A claim that the same call makes."""


class Release(NamedTuple):
    attempts: list[tuple[Fence, bytes]]


@dataclass(slots=True)
class _Item:
    report: Report
    failed: bool = False
    """The call failed: retry at the next poll."""
    cut: bool = False
    queue: str = ""
    once: bool = False
    """At most once: dropped only when the end is confirmed, since a failover that forgets the end starts it again."""


class Outbox:
    """Reports by fence."""

    def __init__(self) -> None:
        self._items: dict[Fence, _Item] = {}
        self._due: list[Fence] = []

    def __len__(self) -> int:
        """Reports that Redis has not confirmed."""
        return len(self._items)

    @property
    def fences(self) -> Collection[Fence]:
        return self._items.keys()

    def queue_of(self, fence: Fence) -> str:
        """The queue of an attempt that has ended; empty once it is confirmed."""
        item = self._items.get(fence)
        return "" if item is None else item.queue

    def add(self, fence: Fence, report: Report, *, queue: str = "", once: bool = False) -> None:
        """`once`: an at-most-once attempt, whose end counts only when it is stored at the level of `ack`."""
        self._items[fence] = _Item(report, queue=queue, once=once and isinstance(report, EndedTask))
        self._due.append(fence)

    def retry(self) -> None:
        """Make due again what failed."""
        for fence, item in self._items.items():
            if item.failed:
                item.failed = False
                self._due.append(fence)

    def answered(self, fences: Iterable[Fence]) -> list[Fence]:
        """Redis answered a finish or release. Drop the reports, except those returned, which need a confirmation."""
        unconfirmed = [fence for fence in fences if fence in self._items and self._items[fence].once]
        self.confirmed(set(fences).difference(unconfirmed))
        return unconfirmed

    def confirmed(self, fences: Iterable[Fence]) -> None:
        """Drop these reports: they are stored at the level of `ack`."""
        for fence in fences:
            self._items.pop(fence, None)

    def not_confirmed(self, fences: Iterable[Fence], *, full: bool = False) -> None:
        """A call or its confirmation failed. `full`: Redis is out of memory, and accepts cut outputs only."""
        for fence in fences:
            item = self._items[fence]
            if full and isinstance(item.report, EndedTask) and not item.cut:
                item.report, item.cut = _cut(item.report), True
                self._due.append(fence)
            else:
                item.failed = True

    def take(self) -> list[Finish | Release]:
        """Return what is due, in calls of bounded size; it becomes due again only when a call fails."""
        if not self._due:
            return []
        due = [self._items[fence] for fence in self._due]
        released = [(fence, report) for fence in self._due if isinstance(report := self._items[fence].report, bytes)]
        self._due = []
        return [
            *_finishes([item.report for item in due if isinstance(item.report, EndedTask) and not item.cut], cut=False),
            *_finishes([item.report for item in due if isinstance(item.report, EndedTask) and item.cut], cut=True),
            *(Release(released[i : i + MAX_ITEMS]) for i in range(0, len(released), MAX_ITEMS)),
        ]


def _finishes(reports: list[EndedTask], *, cut: bool) -> list[Finish]:
    batches: list[Finish] = []
    size = 0
    for report in reports:
        more = len(report.stdout) + len(report.stderr) + len(report.record)
        if not batches or len(batches[-1].ended) == MAX_ITEMS or size + more > MAX_BYTES:
            batches.append(Finish([], cut))
            size = 0
        batches[-1].ended.append(report)
        size += more
    return batches


def _cut(ended: EndedTask) -> EndedTask:
    """Cut both outputs to CUT_BYTES together; each may use what the other leaves free."""
    half = CUT_BYTES // 2
    stdout = shorten(ended.stdout, max(half, CUT_BYTES - len(ended.stderr)))
    return ended._replace(stdout=stdout, stderr=shorten(ended.stderr, CUT_BYTES - len(stdout)))
